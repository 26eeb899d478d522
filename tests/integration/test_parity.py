"""What a rebuild says of the tables it replaces: digests, what differs, why, and nothing private."""

import io

import pytest
from typer.testing import CliRunner

from command_side.commands import CancelTask
from projector.parity import SHOWN, Parity
from projector.rebuild import rebuild
from projector.rebuild_command import run
from projector.view import SCHEMA_VERSION
from taskledger.cli import app
from taskledger.settings import PostgresSettings, Settings
from tests.integration.projection import execute, many_histories, project
from tests.support import Service

SAME_DEFINITION = (
    f"generation 1 has this release's definition ({SCHEMA_VERSION}): its rows were changed by hand,"
    " or by a fault"
)


def compared(service: Service) -> Parity:
    parity = rebuild(service.dsn).parity
    assert parity is not None
    return parity


def said(service: Service, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(Settings(postgres=PostgresSettings.model_validate({"dsn": service.dsn}))) == 0
    return capsys.readouterr().out


async def test_equal_tables_have_one_digest(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    await many_histories(service)
    head = project(service.dsn)
    parity = compared(service)
    assert (parity.count, parity.differences, parity.reasons) == (0, [], [])
    assert parity.old == parity.new
    line, live = said(service, capsys).splitlines()
    assert line == f"the old tables and the new ones were equal at position {head}: digest {parity.new}"
    assert live == f"generation 3 is live, at position {head}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stderr", "shown"), [(Terminal(), True), (io.StringIO(), False)])
async def test_progress_is_for_terminals(
    service: Service,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stderr: io.StringIO,
    *,
    shown: bool,
) -> None:
    await service.create()
    project(service.dsn)
    monkeypatch.setattr("sys.stderr", stderr)
    assert "were equal" in said(service, capsys)
    assert ("[####################] 100%  1 of 1 events" in stderr.getvalue()) == shown
    assert bool(stderr.getvalue()) == shown


def test_what_is_dropped_cannot_be_gone_back_to() -> None:
    refused = CliRunner().invoke(app, ["rebuild", "--prune", "--rollback"])
    assert refused.exit_code == 2
    assert "there is no way back to what is dropped" in refused.output


async def test_another_log_has_another_digest(service: Service) -> None:
    await many_histories(service, count=5)
    project(service.dsn)
    before = compared(service)
    await service.create()
    project(service.dsn)
    assert compared(service).new != before.new


async def test_row_column_and_both_values_are_told(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    task = await service.create(queue="mail")
    head = project(service.dsn)
    execute(service.dsn, "update taskledger_read_g1.tasks set attempt = 7, worker = repeat('w', 1000)")
    execute(service.dsn, "update taskledger_read_g1.counts set tasks = 5")
    lines = said(service, capsys).splitlines()
    assert lines[0].startswith(
        f"the old tables were not what the log says at position {head}: 2 rows, digest"
    )
    assert lines[0].endswith("; now they are")
    assert lines[1:4] == [
        f"  tasks {task.id}: attempt is 7, the log says 0",
        f"  tasks {task.id}: worker is {'w' * 80}…, the log says None",
        "  counts default/mail/sum/queued: tasks is 5, the log says 1",
    ]
    assert lines[4] == f"  {SAME_DEFINITION}"
    assert lines[5].endswith(
        ", these columns differ: tasks.attempt in 1, tasks.worker in 1, counts.tasks in 1"
    )


async def test_what_clients_wrote_is_never_shown(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    task = await service.create(payload={"card": "4111"})
    await service.execute(task.id, CancelTask(reason="hush"))
    await service.commands.set_paused("q0", paused=True, reason="hush")
    project(service.dsn)
    columns = ("payload", "result", "error", "cancel_by", "cancel_reason", "actor", "traceparent")
    for column in columns:
        other = "'4112'::bytea" if column in {"payload", "result", "error"} else "'4112'"
        execute(service.dsn, f"update taskledger_read_g1.tasks set {column} = {other}")
    execute(service.dsn, "update taskledger_read_g1.queues set reason = '4112'")
    found = said(service, capsys)
    for column in columns:
        assert f"tasks {task.id}: {column} is not what the log says" in found
    assert "queues default/q0: reason is not what the log says" in found
    for text in ("4111", "4112", "hush", b"4112".hex()):
        assert text not in found


async def test_some_are_shown_and_all_are_counted(service: Service) -> None:
    for _ in range(SHOWN + 5):
        await service.create()
    project(service.dsn)
    execute(service.dsn, "update taskledger_read_g1.tasks set worker = 'x'")
    parity = compared(service)
    assert (len(parity.differences), parity.count) == (SHOWN, SHOWN + 5)
    assert parity.reasons[-1].endswith(f"these columns differ: tasks.worker in {SHOWN + 5}")


async def test_another_definition_is_explained_by_its_columns(service: Service) -> None:
    await service.create()
    project(service.dsn)
    execute(service.dsn, "update taskledger.projection_generations set schema_version = 'old'")
    execute(
        service.dsn,
        "alter table taskledger_read_g1.tasks drop column worker, add column extra int,"
        " alter column attempt type int",
    )
    parity = compared(service)
    assert (parity.count, parity.old) == (0, parity.new)
    assert parity.reasons == [
        f"generation 1 has definition old, this release has {SCHEMA_VERSION}",
        "column tasks.attempt was integer and is bigint",
        "column tasks.extra is no longer there",
        "column tasks.worker is new",
    ]


async def test_a_changed_fold_is_explained_by_the_columns_it_fills_otherwise(service: Service) -> None:
    """The release before counted attempts from 1."""
    for _ in range(3):
        await service.create()
    project(service.dsn)
    execute(service.dsn, "update taskledger.projection_generations set schema_version = 'old'")
    execute(service.dsn, "update taskledger_read_g1.tasks set attempt = attempt + 1")
    parity = compared(service)
    assert parity.count == 3
    assert parity.reasons == [
        f"generation 1 has definition old, this release has {SCHEMA_VERSION}",
        "they have the same columns: indexes or the fold were changed",
        "of the rows looked into (up to 1,000 a table), these columns differ: tasks.attempt in 3",
    ]
