"""GET /tasks/{id}/explain over a real log and real leases, and beside real processes."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest
from redis.asyncio import Redis

from command_side.commands import CancelTask, FailTask, RequeueTask, StartTask
from command_side.worker.main import Worker
from events.ids import new_task_id
from events.task_events import TaskError
from events.task_state import TaskState
from query_side.read_model import statement
from tests.integration.dispatching import Bench
from tests.integration.projection import append_raw, execute, live_number, project
from tests.integration.query import EXTERNAL, NO_HANDLERS, query_api
from tests.integration.workers import Running, settled, submit, worker_settings
from tests.support import Service


@pytest.fixture
def dispatched(dsn: str) -> None:
    """A dispatcher has come to all that is queued."""
    execute(dsn, "insert into taskledger.checkpoints (name, position) values ('outstanding', 1000)")


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with query_api(dsn, NO_HANDLERS, external_kinds=EXTERNAL) as client:
        yield client


async def _explain(api: httpx.AsyncClient, task: TaskState) -> dict[str, Any]:
    response = await api.get(f"/tasks/{task.id}/explain")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert list(found) == ["id", "status", "summary", "causes", "advice", "position"]
    assert (found["id"], found["summary"]) == (str(task.id), found["causes"][0]["message"])
    assert response.headers["x-position"] == found["position"]
    return found


async def _codes(api: httpx.AsyncClient, task: TaskState) -> list[str]:
    return [cause["code"] for cause in (await _explain(api, task))["causes"]]


async def _evidence(api: httpx.AsyncClient, task: TaskState, code: str) -> dict[str, Any]:
    causes = (await _explain(api, task))["causes"]
    return next(cause["evidence"] for cause in causes if cause["code"] == code)


def _lease(dsn: str, holder: str, info: str | None, age_seconds: float = 0.0) -> None:
    execute(
        dsn,
        "insert into taskledger.leases (holder, lease_seconds, info, renewed_at)"
        " values (%s, 15, %s::jsonb, clock_timestamp() - make_interval(secs => %s))",
        holder,
        info,
        age_seconds,
    )


def _worker(dsn: str, holder: str = "h", age_seconds: float = 0.0, **info: Any) -> None:
    known = {"queues": ["default"], "kinds": ["sum"], "concurrency": 4, "running": 0, **info}
    _lease(dsn, holder, json.dumps(known), age_seconds)


@pytest.mark.usefixtures("dispatched")
async def test_workers_that_live_and_what_they_know(service: Service, api: httpx.AsyncClient) -> None:
    """Nothing was projected yet: the answer needs no read tables."""
    task = await service.create()
    assert await _codes(api, task) == ["no_live_worker"]
    _worker(service.dsn, "gone", age_seconds=16)
    _lease(service.dsn, f"{task.id}:1", None)  # of a claim, not of a worker
    assert await _codes(api, task) == ["no_live_worker"]
    _worker(service.dsn, "other", queues=["mail"])
    assert await _codes(api, task) == ["no_worker_for_queue"]
    _worker(service.dsn, "ignorant", kinds=["sha256"])
    assert await _evidence(api, task, "no_worker_for_kind") == {
        "kind": "sum",
        "queue": "default",
        "live_workers": 2,
        "reading_the_queue": 1,
    }
    _worker(service.dsn, "busy", running=4)
    assert await _codes(api, task) == ["workers_busy"]
    _worker(service.dsn, "idle", concurrency=3, running=1)
    assert (await _evidence(api, task, "about_to_start")).items() >= {
        "workers": 2,
        "slots": 7,
        "running": 5,
    }.items()


@pytest.mark.usefixtures("dispatched")
async def test_who_comes_first_in_each_lane(service: Service, api: httpx.AsyncClient) -> None:
    _worker(service.dsn)
    lanes = ("low", "high", "normal", "high", "normal")
    before = [await service.create(priority=priority) for priority in lanes]
    await service.create(queue="mail", priority="high")
    await service.execute(before[3].id, CancelTask())
    task = await service.create()
    later = [await service.create(priority=priority) for priority in lanes]
    checkpoint = project(service.dsn)

    assert await _evidence(api, task, "behind_others") == {
        "ahead": 5,
        "of_higher_priority": 3,
        "of_the_same_priority": 2,
        "and_more": False,
        "priority": "normal",
        "counted_at": f"{checkpoint}.{await service.log.tag()}",
    }
    assert await _codes(api, before[1]) == ["about_to_start"]
    ahead = await _evidence(api, later[0], "behind_others")
    assert (ahead["of_higher_priority"], ahead["of_the_same_priority"]) == (8, 1)


async def test_a_million_tasks_ahead_are_not_counted(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more are looked at, however many there are. Fewer than a million show that as well."""
    for module in ("gather", "waiting"):
        monkeypatch.setattr(f"query_side.explain.{module}.MOST_AHEAD", 100)
    first = await service.create(priority="low")
    project(service.dsn)
    schema = f"taskledger_read_g{live_number(service.dsn)}"
    with psycopg.connect(service.dsn, autocommit=True) as connection:
        kept = "created_at, kind, queue, tenant, tags, payload, max_attempts, timeout_seconds, version"
        connection.execute(
            f"insert into {schema}.tasks (id, created_position, priority, position, status,"
            f" queued_position, attempt, failures, isolated, cancel_requested, {kept})"
            " select gen_random_uuid(), n, 'high', n, 'queued', n, 0, 0, false, false,"
            f" {kept} from {schema}.tasks, generate_series(2, 3000) n".encode()
        )
        connection.execute(f"vacuum analyze {schema}.tasks".encode())
    _worker(service.dsn)
    ahead = await _evidence(api, first, "behind_others")
    assert (ahead["ahead"], ahead["and_more"]) == (100, True)

    sql = statement("ahead").format(read=schema)
    lane = {"higher": ["high"], "priority": "low", "queue": "default", "tenant": "default"}
    with psycopg.connect(service.dsn, options="-c enable_seqscan=off") as connection:
        query = f"explain (analyze, format json) {sql}".encode()
        row = connection.execute(query, {**lane, "queued_position": 1, "limit": 101}).fetchone()
    assert row is not None
    scans = [node for node in _nodes(row[0][0]["Plan"]) if "Index Name" in node]
    assert {node["Index Name"] for node in scans} == {"tasks_waiting"}
    assert max(node["Actual Rows"] for node in scans) <= 101


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    below = [node for child in plan.get("Plans", []) for node in _nodes(child)]
    return [{name: value for name, value in plan.items() if name != "Plans"}, *below]


@pytest.mark.usefixtures("dispatched")
async def test_a_paused_queue(service: Service, api: httpx.AsyncClient) -> None:
    _worker(service.dsn)
    task, other = await service.create(), await service.create(queue="mail")
    await service.commands.set_paused("default", paused=True, reason="maintenance")
    evidence = await _evidence(api, task, "queue_paused")
    assert (evidence["queue"], evidence["reason"]) == ("default", "maintenance")
    assert evidence["told_position"] == f"3.{await service.log.tag()}"
    assert await _codes(api, task) == ["queue_paused"]
    assert "queue_paused" not in await _codes(api, other)
    await service.commands.set_paused("default", paused=False)
    assert await _codes(api, task) == ["about_to_start"]


@pytest.mark.usefixtures("dispatched")
async def test_a_kind_whose_workers_claim(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create(kind="scan", queue="q0")
    assert await _codes(api, task) == ["awaiting_claim"]
    await service.execute(task.id, StartTask(holder=None, worker="elsewhere"))
    assert await _codes(api, task) == ["holder_silent"]
    _lease(service.dsn, f"{task.id}:1", None, age_seconds=7)
    found = await _explain(api, task)
    assert found["summary"] == "Attempt 1 runs on elsewhere."


@pytest.mark.usefixtures("dispatched")
async def test_failures_and_how_it_ended(service: Service, api: httpx.AsyncClient) -> None:
    _worker(service.dsn)
    error = TaskError(type="ValueError", message="no")
    task = await service.create(max_attempts=2)
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    await service.execute(task.id, FailTask(attempt=1, cause="error", error=error, jitter=1.0))
    evidence = await _evidence(api, task, "backing_off")
    assert (evidence["failures"], evidence["max_attempts"]) == (1, 2)
    assert evidence["last_failure"]["message"] == "no"

    await service.execute(task.id, CancelTask(by="ann", reason="enough"))
    cancelled = await _explain(api, task)
    assert cancelled["summary"] == "It was cancelled by ann."
    assert cancelled["causes"][0]["evidence"]["reason"] == "enough"

    await service.execute(task.id, RequeueTask())
    assert await _codes(api, task) == ["about_to_start"]
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    await service.execute(task.id, FailTask(attempt=2, cause="error", error=error, retryable=False))
    evidence = await _evidence(api, task, "dead_letter")
    assert (evidence["reason"], len(evidence["last_failures"])) == ("not_retryable", 2)


@pytest.mark.usefixtures("dispatched")
async def test_an_event_that_nobody_can_read(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create()
    await append_raw(service, task.id, 2, "TaskTeleported", b"{}")
    found = await _explain(api, task)
    assert (found["status"], found["causes"][0]["code"]) == ("queued", "unreadable_event")

    nobody = new_task_id()
    await append_raw(service, nobody, 1, "TaskCreated", b"[]")
    response = await api.get(f"/tasks/{nobody}/explain")
    assert (response.status_code, response.json()["code"]) == (422, "as_of_out_of_reach")


async def test_no_task_has_no_explanation(api: httpx.AsyncClient) -> None:
    for path, status, code in (
        (f"/tasks/{new_task_id()}/explain", 404, "task_not_found"),
        ("/tasks/1/explain", 404, "task_not_found"),
        (f"/tasks/{new_task_id()}/explain?x=1", 422, "invalid_request"),
    ):
        response = await api.get(path)
        assert (response.status_code, response.json()["code"]) == (status, code)


async def test_beside_a_real_dispatcher_and_a_real_worker(
    service: Service, api: httpx.AsyncClient, redis: Redis, redis_url: str
) -> None:
    task = await submit(service, redis, "sleep", {"seconds": 30})
    assert await _codes(api, task) == ["no_live_worker"]
    await Bench(service, redis).started()
    running = await Running(Worker(worker_settings(service.dsn, redis_url, name="w7"))).ready()
    try:
        await settled(service, task, "running")
        found = await _explain(api, task)
        evidence = found["causes"][0]["evidence"]
        assert evidence["worker"] == "w7"
        assert evidence["seen_seconds_ago"] is not None
        unknown = await service.create(kind="unheard_of")
        assert (await _codes(api, unknown))[-1] == "no_worker_for_kind"
        await service.execute(task.id, CancelTask(by="ann"))
        assert set(await _codes(api, task)) <= {"cancel_requested", "cancelled"}
        await settled(service, task, "cancelled")
    finally:
        await running.stopped()
    assert "no_live_worker" in await _codes(api, unknown)


async def test_a_worker_that_fell_silent(service: Service, api: httpx.AsyncClient) -> None:
    """It was killed: its lease stays as it was, and is past its half."""
    task = await service.create()
    await service.execute(task.id, StartTask(holder="w8", worker="w8"))
    _worker(service.dsn, "w8", age_seconds=9, host="there", pid=8)
    found = await _explain(api, task)
    assert found["summary"] == "Attempt 1 was started by w8, not seen for 9 s."
    evidence = found["causes"][0]["evidence"]
    assert evidence["seen_seconds_ago"] >= 9
    assert (evidence["host"], evidence["pid"], evidence["lease_seconds"]) == ("there", 8, 15)
