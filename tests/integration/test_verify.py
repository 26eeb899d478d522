"""Verify finds what is wrong with the log or the read tables, and nothing else."""

from collections.abc import Sequence
from uuid import UUID, uuid4

import pytest

from command_side.commands import CompleteTask, StartTask
from events.errors import SchemaNotReady
from projector.rebuild import rebuild
from projector.rebuild_command import run as run_rebuild
from projector.verify import inspect, run, verify
from taskledger.settings import PostgresSettings, Settings
from tests.integration.projection import execute, many_histories, project
from tests.support import Service


async def test_a_sound_log_and_table_have_no_difference(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = await many_histories(service)
    head = project(service.dsn)
    await service.create()  # beyond the checkpoint: neither missing nor compared

    report = inspect(service.dsn)
    assert (report.differences, report.tasks, report.checkpoint) == ([], len(ids), head)
    assert report.events == head + 1
    assert verify(service.dsn) == 0
    assert capsys.readouterr().out.endswith("no difference\n")


def test_an_empty_log_is_sound_once_projected(dsn: str) -> None:
    assert inspect(dsn).differences == ["there is no live generation of the read tables"]
    project(dsn)
    assert verify(dsn) == 0


def test_a_database_that_is_not_migrated_is_refused(empty_dsn: str) -> None:
    with pytest.raises(SchemaNotReady):
        inspect(empty_dsn)


async def test_a_falsified_row_is_found_and_put_right_by_rebuild(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    task = await service.create()
    project(service.dsn)
    execute(service.dsn, "update taskledger_read_g1.tasks set status = 'completed', payload = 'x'::bytea")
    settings = Settings(postgres=PostgresSettings.model_validate({"dsn": service.dsn}))

    assert run(settings) == 1
    found = capsys.readouterr().out
    assert f"task {task.id}: status is completed, the log says queued" in found
    assert f"task {task.id}: payload is not what the log says" in found
    assert "2 differences" in found

    assert run_rebuild(settings, prune=True) == 0
    found = capsys.readouterr().out
    assert f"tasks {task.id}: status is completed, the log says queued\n" in found
    assert f"tasks {task.id}: payload is not what the log says\n" in found
    assert "generation 1 dropped" in found
    assert run(settings) == 0


FALSIFIED_TABLES: Sequence[tuple[str, str]] = [
    ("delete from taskledger_read_g1.tasks", "no row"),
    ("update taskledger_read_g1.tasks set id = gen_random_uuid()", "a row without events"),
    ("update taskledger_read_g1.tasks set tags = '{x}'", "tags is ['x'], the log says []"),
    ("update taskledger_read_g1.tasks set created_at = created_at + '1us'", "created_at is"),
    ("update taskledger_read_g1.counts set tasks = 2", "counts default/default/sum/completed: is (2,)"),
    ("delete from taskledger_read_g1.activity", "activity"),
    (
        "insert into taskledger_read_g1.queues values ('t', 'q', 1, 1, true, now(), null, null)",
        "queues t/q",
    ),
]


@pytest.mark.parametrize(("statement", "difference"), FALSIFIED_TABLES)
async def test_a_falsified_table_is_found(service: Service, statement: str, difference: str) -> None:
    await _completed(service)
    project(service.dsn)
    assert execute(service.dsn, statement) > 0
    assert any(difference in line for line in inspect(service.dsn).differences)


FALSIFIED_LOGS: Sequence[tuple[str, str]] = [
    ("delete from taskledger.task_events where notification_id = 2", "position 3 follows 1"),
    ("delete from taskledger.task_events where notification_id = 2", "version 3 follows 1"),
    (
        (
            "update taskledger.task_events set recorded_at = recorded_at - interval '1 h'"
            " where notification_id = 3"
        ),
        "recorded_at falls at position 3",
    ),
    (
        "update taskledger.task_events set topic = 'TaskEncrypted' where notification_id = 3",
        "does not know the topic",
    ),
    (
        (
            "update taskledger.task_events set state = convert_to(replace(convert_from(state, 'UTF8'),"
            " '\"attempt\":1', '\"attempt\":7'), 'UTF8') where notification_id = 3"
        ),
        "has attempt 7, not 1",
    ),
    (
        (
            "update taskledger.task_events set topic = 'TaskQueued',"
            """ state = '{"event_uid":"u","reason":"due"}' where notification_id = 3"""
        ),
        "TaskQueued at version 3 cannot follow running",
    ),
    (
        (
            "update taskledger.task_events set notification_id = 5 - notification_id"
            " where notification_id in (2, 3)"
        ),
        "lies before the version it follows",
    ),
    (
        "delete from taskledger.task_events where notification_id = 1",
        "version 2 follows 0",
    ),
]


@pytest.mark.parametrize(("statement", "difference"), FALSIFIED_LOGS)
async def test_a_falsified_log_is_found(service: Service, statement: str, difference: str) -> None:
    await _completed(service)
    project(service.dsn)
    assert execute(service.dsn, statement) > 0
    assert any(difference in line for line in inspect(service.dsn).differences)


async def test_a_log_that_was_cut_off_is_found(service: Service) -> None:
    await _completed(service)
    project(service.dsn)
    execute(service.dsn, "delete from taskledger.task_events")
    report = inspect(service.dsn)
    assert report.checkpoint == 3
    assert any("beyond the log" in line for line in report.differences)


async def test_only_the_first_hundred_are_listed(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(101):
        await service.create()
    project(service.dsn)
    execute(service.dsn, "update taskledger_read_g1.tasks set worker = 'x'")
    report = inspect(service.dsn)
    assert (report.count, len(report.differences)) == (101, 100)
    assert verify(service.dsn) == 1
    assert "… and 1 more" in capsys.readouterr().out


async def test_a_generation_of_another_release_is_not_compared(service: Service) -> None:
    await _completed(service)
    project(service.dsn)
    execute(service.dsn, "update taskledger.projection_generations set schema_version = 'old'")
    assert inspect(service.dsn).differences == ["generation 1 has another release's schema: not compared"]
    rebuild(service.dsn)
    assert inspect(service.dsn).differences == []


async def test_a_stream_of_another_aggregate_is_no_task(service: Service) -> None:
    await service.commands.set_paused("mail", paused=True)
    await service.commands.set_paused("mail", paused=False)
    execute(
        service.dsn,
        "insert into taskledger.task_events select 3, 1, recorded_at, %s, 'Webhook', '', '', '', '{}'"
        " from taskledger.task_events where notification_id = 2",
        uuid4(),
    )
    project(service.dsn)
    assert inspect(service.dsn).differences == []


async def _completed(service: Service) -> UUID:
    task = await service.create()
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    await service.execute(task.id, CompleteTask(1, {"sum": 3}))
    return task.id
