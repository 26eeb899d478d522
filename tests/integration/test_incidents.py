"""A task that failed in production becomes a regression test: its history, its handler, its decisions."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from command_side.commands import CancelTask, CompleteTask, FailTask, QueueDue, RequeueTask, StartTask
from command_side.errors import AttemptSuperseded, WrongState
from command_side.testing import given, happened
from events.errors import ArchiveRefused, ConfigurationError, UnknownEvent
from events.task_events import (
    RetryPolicy,
    TaskCancelled,
    TaskCompleted,
    TaskDeadLettered,
    TaskError,
    TaskFailed,
    TaskQueued,
    TaskRequeued,
    TaskStarted,
)
from taskledger import TaskContext, task
from taskledger.archives import run_export
from taskledger.testing import Incident, load_incident
from tests.integration.projection import append_raw
from tests.integration.query import settings_for
from tests.support import Service

ROOT = Path(__file__).parents[2]
AT_ONCE = RetryPolicy(base_seconds=0.0)
ERROR = TaskError(type="ZeroDivisionError", message="division by zero")


class Order(BaseModel):
    total: int
    items: int


@task("price")
def broken(order: Order) -> float:
    return order.total / order.items


@task("price")
def repaired(order: Order) -> float:
    return order.total / max(1, order.items)


@task("price")
async def with_context(order: Order, context: TaskContext) -> tuple[int, str, str]:
    return context.attempt, context.kind, str(context.task_id)


@task("price")
def stricter(order: int) -> int:
    return order


async def exported(service: Service, folder: Path) -> Path:
    """A task that failed twice and was dead: TaskCreated, then Started and Failed twice with TaskQueued in
    between, and TaskDeadLettered."""
    order = await service.create(
        kind="price", payload={"total": 7, "items": 0}, max_attempts=2, retry=AT_ONCE
    )
    for attempt in (1, 2):
        await service.execute(order.id, StartTask(holder="h", worker="w"))
        await service.execute(order.id, FailTask(attempt=attempt, cause="error", error=ERROR))
        if attempt == 1:
            await service.execute(order.id, QueueDue())
    file = folder / "order.ndjson"
    run_export(settings_for(service.dsn), task_id=order.id, file=file)
    return file


@pytest.fixture
async def incident(service: Service, tmp_path: Path) -> Incident:
    return load_incident(await exported(service, tmp_path))


async def test_the_history_is_the_one_that_was_exported(service: Service, incident: Incident) -> None:
    assert incident.state == await service.state(incident.task_id)
    assert [state.status for state in incident.states] == [
        "queued",
        "running",
        "retrying",
        "queued",
        "running",
        "retrying",
        "dead",
    ]
    assert incident.payload == {"total": 7, "items": 0}
    assert incident.state.error == ERROR
    assert incident.before(3).state.status == "running"
    with pytest.raises(ValueError, match="nothing had happened before version 1"):
        incident.before(1)


def test_the_handler_runs_on_the_payload_that_was_sent(incident: Incident) -> None:
    with pytest.raises(ZeroDivisionError):
        incident.run(broken)
    assert incident.run(repaired) == 7
    assert incident.run(with_context) == [2, "price", str(incident.task_id)]
    assert incident.before(2).run(with_context, attempt=5)[0] == 5
    with pytest.raises(ValidationError):
        incident.run(stricter)
    with pytest.raises(ConfigurationError):
        incident.run(len)


def test_what_the_service_decides_is_what_it_decided_then(incident: Incident) -> None:
    given(incident.before(3)).when(FailTask(attempt=1, cause="error", error=ERROR)).then(incident.events[2])
    given(incident.before(6)).when(FailTask(attempt=2, cause="error", error=ERROR)).then(
        *incident.events[5:]
    )
    given(incident.before(6)).when(FailTask(attempt=2, cause="lost")).then(
        happened(TaskFailed, attempt=2, counted=False), happened(TaskQueued, reason="lost")
    )
    given(incident.before(2)).when(CancelTask(reason="why")).then(happened(TaskCancelled, reason="why"))
    given(incident).when(RequeueTask()).then(happened(TaskRequeued))
    given(incident).when(FailTask(attempt=2, cause="error", error=ERROR)).then()
    given(incident.before(6)).when(CompleteTask(1, None)).then_refused(AttemptSuperseded)
    given(incident).when(CancelTask()).then_refused(WrongState)


def test_what_is_not_so_is_told(incident: Incident) -> None:
    failed = given(incident.before(6)).when(FailTask(attempt=2, cause="error", error=ERROR))
    with pytest.raises(AssertionError, match=r"TaskDeadLettered'\] followed, not \['TaskCompleted'\]"):
        failed.then(happened(TaskCompleted))
    with pytest.raises(AssertionError, match=r"TaskFailed\.counted is True, not False"):
        failed.then(happened(TaskFailed, counted=False), happened(TaskDeadLettered))
    with pytest.raises(AssertionError, match=r"TaskFailed\.retry_at is None, not a time"):
        failed.then(incident.events[2].model_copy(update={"attempt": 2}), happened(TaskDeadLettered))
    with pytest.raises(AssertionError, match="not refused with WrongState"):
        failed.then_refused(WrongState)
    with pytest.raises(AssertionError, match="refused: AttemptSuperseded"):
        given(incident.before(6)).when(CompleteTask(1, None)).then(happened(TaskStarted))


async def test_the_example_of_the_page_is_such_a_test(service: Service, tmp_path: Path) -> None:
    page = (ROOT / "docs/howto/export-import.md").read_text()
    example = tmp_path / "test_incident.py"
    example.write_text("\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)))
    order = await service.create(kind="title_check", payload={"title": "odd", "delay_seconds": 0})
    await service.execute(order.id, StartTask(holder="h", worker="w"))
    await service.execute(order.id, FailTask(attempt=1, cause="discarded", error=ERROR))
    file = tmp_path / "incident.ndjson"
    run_export(settings_for(service.dsn), task_id=order.id, file=file)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:xdist", example.name),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert b"taskledger.context.Discard: the title has an odd number of characters" in said, said
    assert b"1 failed, 1 passed" in said, said


async def test_what_is_no_exported_task_is_refused(service: Service, tmp_path: Path) -> None:
    file = await exported(service, tmp_path)
    whole = tmp_path / "log.ndjson"
    run_export(settings_for(service.dsn), task_id=None, file=whole)
    with pytest.raises(ArchiveRefused, match="whole log"):
        load_incident(whole)
    file.write_bytes(file.read_bytes().replace(b'"total":7', b'"total":8'))
    with pytest.raises(ArchiveRefused):
        load_incident(file)
    order = await service.create()
    await append_raw(service, order.id, 2, "TaskTeleported", b"{}")
    run_export(settings_for(service.dsn), task_id=order.id, file=file)
    with pytest.raises(UnknownEvent):
        load_incident(file)
