"""What the query API answers is what the log holds, in the shape that design.md §5 promises."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from command_side.commands import CancelTask, CompleteTask, FailTask, StartTask
from events.ids import new_task_id, queue_id
from events.task_events import TaskError
from projector.rebuild import drop_retired, rebuild
from taskledger.registry import load_registry
from tests.integration.projection import ERROR, execute, following, many_histories, project
from tests.integration.query import EXTERNAL, query_api
from tests.support import Service, eventually, wait_until

TASK_FIELDS = [
    *("id", "kind", "status", "queue", "priority", "tags", "payload", "result", "error", "attempt"),
    *("max_attempts", "progress", "version", "position", "created_at", "run_at", "started_at"),
    *("finished_at", "worker", "erased_at"),
]


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with query_api(dsn) as client:
        yield client


async def _get(api: httpx.AsyncClient, path: str, **parameters: Any) -> Any:
    response = await api.get(path, params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


async def _tag(service: Service) -> str:
    return await service.log.tag()


def _time(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


async def test_who_waits_for_a_position_does_not_wait_until_the_projector_has_gathered(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does who waits for the end of a task: it is told of at once, with all that came before."""
    monkeypatch.setattr("projector.runner.QUIET_SECONDS", 60.0)
    tag = await _tag(service)
    with following(service.dsn, poll_seconds=3.0) as projector:
        wait_until(lambda: projector.status().ready, "it follows")
        task = await service.create()
        found = await _get(api, f"/tasks/{task.id}", min_position=f"{task.position}.{tag}")
        assert found["status"] == "queued"

        last = await service.create()
        ending = asyncio.create_task(
            _get(api, f"/tasks/{last.id}", min_position=f"{last.position}.{tag}", wait_seconds=30)
        )
        await service.execute(last.id, StartTask(holder="h", worker="w"))
        assert projector.status().checkpoint == task.position
        await service.execute(last.id, CompleteTask(attempt=1, result={}, duration=0.0))
        assert (await ending)["status"] == "completed"


async def test_a_queued_task_has_every_field(service: Service, api: httpx.AsyncClient) -> None:
    payload = {"b": 1, "a": [1.5, None, "\0", "ß"], "n": 2**53 - 1}
    task = await service.create(payload=payload, tags=("x", "y"), priority="high", queue="mail")
    project(service.dsn)

    response = await api.get(f"/tasks/{task.id}")

    found = response.json()
    tag = await _tag(service)
    assert list(found) == TASK_FIELDS
    assert list(found["payload"]) == ["b", "a", "n"]  # as sent: not sorted, not normalised
    assert _time(found["created_at"]) == task.created_at
    assert found == {
        "id": str(task.id),
        "kind": "sum",
        "status": "queued",
        "queue": "mail",
        "priority": "high",
        "tags": ["x", "y"],
        "payload": payload,
        "result": None,
        "error": None,
        "attempt": 0,
        "max_attempts": 5,
        "progress": None,
        "version": 1,
        "position": f"1.{tag}",
        "created_at": found["created_at"],
        "run_at": None,
        "started_at": None,
        "finished_at": None,
        "worker": None,
        "erased_at": None,
    }
    assert response.headers["x-position"] == f"1.{tag}"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "x-request-id" in response.headers


async def test_a_completed_and_a_failed_task(service: Service, api: httpx.AsyncClient) -> None:
    good, bad = await service.create(), await service.create(max_attempts=1)
    for task in (good, bad):
        await service.execute(task.id, StartTask(holder="h", worker="w"))
    await service.execute(good.id, CompleteTask(1, {"sum": 3}))
    await service.execute(bad.id, FailTask(attempt=1, cause="error", error=ERROR))
    project(service.dsn)

    done, dead = await _get(api, f"/tasks/{good.id}"), await _get(api, f"/tasks/{bad.id}")
    assert (done["status"], done["result"], done["attempt"], done["worker"]) == (
        "completed",
        {"sum": 3},
        1,
        "w",
    )
    assert _time(done["started_at"]) <= _time(done["finished_at"])
    assert dead["status"] == "dead"
    assert dead["error"] == {"type": "ValueError", "message": "no", "traceback": None}


async def test_progress_is_shown_while_the_attempt_runs(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create()
    await service.execute(task.id, StartTask(holder=None, worker="w"))
    project(service.dsn)
    assert (await _get(api, f"/tasks/{task.id}"))["progress"] is None
    execute(
        service.dsn,
        "insert into taskledger.leases (holder, lease_seconds, progress, note)"
        " values (%s, 15, 0.5, 'half')",
        f"{task.id}:1",
    )
    found = await api.get(f"/tasks/{task.id}")
    assert found.json()["progress"] == {"progress": 0.5, "note": "half"}
    listed = await _get(api, "/tasks")
    assert listed["tasks"][0]["progress"] == {"progress": 0.5, "note": "half"}

    await service.execute(task.id, CompleteTask(1, 1))
    project(service.dsn)
    assert (await _get(api, f"/tasks/{task.id}"))["progress"] is None


async def test_etag_and_304(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create()
    project(service.dsn)
    first = await api.get(f"/tasks/{task.id}")
    etag = first.headers["etag"]

    for value in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await api.get(f"/tasks/{task.id}", headers={"If-None-Match": value})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    other = await api.get(f"/tasks/{task.id}", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200

    await service.execute(task.id, CancelTask())
    project(service.dsn)
    changed = await api.get(f"/tasks/{task.id}", headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json()["status"]) == (200, "cancelled")


async def test_head_is_get_without_a_body(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create()
    project(service.dsn)
    response = await api.head(f"/tasks/{task.id}")
    assert (response.status_code, response.content) == (200, b"")
    assert "etag" in response.headers


async def test_reading_your_own_write(service: Service, api: httpx.AsyncClient) -> None:
    with following(service.dsn):
        for _ in range(20):
            task = await service.create()
            token = f"{task.position}.{await _tag(service)}"
            found = await _get(api, f"/tasks/{task.id}", min_position=token)
            assert found["version"] >= 1
            done = await service.execute(task.id, CancelTask())
            token = f"{done.position}.{await _tag(service)}"
            assert (await _get(api, f"/tasks/{task.id}", min_position=token))["status"] == "cancelled"


async def test_a_404_is_given_only_once_the_position_is_reached(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "query_side.consistency.Consistency.__init__.__kwdefaults__", {"budget_seconds": 0.3}
    )
    async with query_api(service.dsn) as impatient:
        task = await service.create()
        project(service.dsn)
        tag = await _tag(service)
        absent = await impatient.get(f"/tasks/{new_task_id()}?min_position=1.{tag}")
        ahead = await impatient.get(f"/tasks/{new_task_id()}?min_position=2.{tag}")
        present = await impatient.get(f"/tasks/{task.id}?min_position=2.{tag}")
    assert (absent.status_code, absent.json()["code"]) == (404, "task_not_found")
    for late in (ahead, present):
        assert (late.status_code, late.json()["code"]) == (503, "read_model_lagging")
        assert late.headers["retry-after"] == "1"


async def test_a_long_poll_ends_when_the_task_is_settled(service: Service, api: httpx.AsyncClient) -> None:
    task, other = await service.create(), await service.create()
    project(service.dsn)
    with following(service.dsn):
        waiting = [
            asyncio.create_task(_get(api, f"/tasks/{i}", wait_seconds=20)) for i in (task.id, other.id) * 3
        ]
        await service.execute(task.id, StartTask(holder="h", worker="w"))
        await service.execute(task.id, CompleteTask(1, {"sum": 3}))
        await service.execute(other.id, CancelTask())
        found = await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert [f["status"] for f in found] == ["completed", "cancelled"] * 3


async def test_a_long_poll_answers_at_its_end_and_without_notifications(
    service: Service, api: httpx.AsyncClient
) -> None:
    task = await service.create()
    project(service.dsn)
    assert (await _get(api, f"/tasks/{task.id}", wait_seconds="0.2"))["status"] == "queued"

    waiting = asyncio.create_task(_get(api, f"/tasks/{task.id}", wait_seconds=20))

    async def listens() -> bool:
        statement = (
            "select from pg_stat_activity where application_name = 'taskledger-query-listen'"
            " and datname = current_database()"
        )
        return execute(service.dsn, statement) == 1

    await eventually(listens)
    execute(service.dsn, "update taskledger_read_g1.tasks set status = 'completed'")
    assert (await asyncio.wait_for(waiting, 5))["status"] == "completed"
    gone = await api.get(f"/tasks/{new_task_id()}", params={"wait_seconds": 20})
    assert gone.status_code == 404


async def test_the_listener_comes_back_after_its_connection_is_lost(
    service: Service, api: httpx.AsyncClient
) -> None:
    task = await service.create()
    project(service.dsn)
    with following(service.dsn):
        waiting = asyncio.create_task(_get(api, f"/tasks/{task.id}", wait_seconds=20))
        kill = (
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and application_name like 'taskledger-query%%'"
        )

        async def killed() -> bool:
            return execute(service.dsn, kill) > 0

        await eventually(killed)
        await service.execute(task.id, CancelTask())
        assert (await asyncio.wait_for(waiting, 10))["status"] == "cancelled"


async def test_the_history_of_a_task(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create(payload={"x": 1})
    await service.create()
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    await service.execute(
        task.id, FailTask(attempt=1, cause="error", error=TaskError(type="E", message="m"), jitter=0.5)
    )
    events = (await _get(api, f"/tasks/{task.id}/events"))["events"]
    tag = await _tag(service)

    assert [list(e) for e in events] == [
        ["position", "version", "type", "timestamp", "data", "metadata"]
    ] * 3
    assert [e["type"] for e in events] == ["TaskCreated", "TaskStarted", "TaskFailed"]
    assert [e["position"] for e in events] == [f"{n}.{tag}" for n in (1, 3, 4)]
    assert [e["version"] for e in events] == [1, 2, 3]
    assert events[0]["data"]["payload"] == {"x": 1}
    assert events[1]["data"] == {"attempt": 1, "holder": "h", "worker": "w"}
    assert events[2]["data"]["error"] == {"type": "E", "message": "m", "traceback": None}
    assert events[0]["metadata"]["event_uid"]
    assert _time(events[0]["timestamp"]) == task.created_at
    paused = await service.commands.set_paused("mail", paused=True)
    assert paused == 5
    assert (await api.get(f"/tasks/{queue_id('default', 'mail')}/events")).status_code == 404


async def test_the_feed(service: Service, api: httpx.AsyncClient) -> None:
    task = await service.create(queue="mail")
    await service.commands.set_paused("mail", paused=True)
    await service.execute(task.id, CancelTask())
    tag = await _tag(service)

    page = await _get(api, "/events", after="start", limit=2)
    assert [(e["type"], e["task_id"], e["kind"], e["queue"]) for e in page["events"]] == [
        ("TaskCreated", str(task.id), "sum", "mail"),
        ("QueuePaused", None, None, "mail"),
    ]
    assert (page["next"], page["head"]) == (f"2.{tag}", f"3.{tag}")
    rest = await _get(api, "/events", after=page["next"])
    assert [e["type"] for e in rest["events"]] == ["TaskCancelled"]
    assert await _get(api, "/events", after=rest["next"]) == {
        "events": [],
        "next": f"3.{tag}",
        "head": f"3.{tag}",
    }
    assert (await _get(api, "/events", after="now"))["next"] == f"3.{tag}"
    assert len((await _get(api, "/events"))["events"]) == 3

    execute(
        service.dsn, "update taskledger.task_events set topic = 'TaskEncrypted' where notification_id = 3"
    )
    unknown = (await _get(api, "/events", after=f"2.{tag}"))["events"][0]
    assert (unknown["type"], unknown["metadata"]) == ("TaskEncrypted", {})


async def test_large_events_end_a_page_of_the_feed(
    service: Service, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query_side.feed.PAGE_BYTES", 2000)
    for _ in range(5):
        await service.create(payload={"text": "x" * 1500})
    seen: list[str] = []
    after, pages = "start", 0
    while True:
        page = await _get(api, "/events", after=after)
        if not page["events"]:
            break
        seen += [e["task_id"] for e in page["events"]]
        after, pages = page["next"], pages + 1
    assert (len(set(seen)), len(seen), pages) == (5, 5, 3)


async def test_stats_queues_kinds_workers_and_dead_letters(service: Service) -> None:
    ids = await many_histories(service)
    project(service.dsn)
    execute(
        service.dsn,
        "insert into taskledger.leases (holder, lease_seconds, info, renewed_at) values"
        """ ('live', 15, '{"name": "w1"}', now()), ('gone', 15, '{}', now() - interval '16 s'),"""
        " ('attempt:1', 15, null, now())",
    )
    states = [await service.state(i) for i in ids]
    registry = load_registry(["examples.handlers"])
    async with query_api(service.dsn, registry, external_kinds=EXTERNAL) as api:
        stats = await _get(api, "/stats")
        assert stats["total"] == len(ids)
        assert {s: n for s, n in stats["by_status"].items() if n} == {
            s: [t.status for t in states].count(s) for s in {t.status for t in states}
        }
        assert set(stats["by_kind"]) == {"k0", "k1", "k2"}
        assert set(stats["rates"]) == {"1m", "5m", "60m"}
        assert (stats["lag"], stats["head"]) == (0, stats["position"])

        queues = (await _get(api, "/queues"))["queues"]
        for queue in queues:
            mine = [t for t in states if t.queue == queue["queue"]]
            queued = [t.queued_at for t in mine if t.status == "queued" and t.queued_at is not None]
            assert queue["depth"] == len(queued)
            assert sum(queue["counts"].values()) == len(mine)
            oldest = queue["oldest_queued_at"]
            assert (_time(oldest) if oldest else None) == min(queued, default=None)
            assert (queue["oldest_age_seconds"] is None) == (not queued)
            assert queue["paused"] == (queue["queue"] == "q1")
        assert [q["paused_reason"] for q in queues] == [None, "maintenance"]

        kinds = {k["kind"]: k for k in (await _get(api, "/kinds"))["kinds"]}
        assert kinds["sum"]["payload_schema"]["properties"].keys() == {"x", "y"}
        assert (kinds["scan"]["external"], kinds["scan"]["queue"]) == (True, "q0")

        workers = (await _get(api, "/workers"))["workers"]
        assert [(w["holder"], w["info"]) for w in workers] == [("live", {"name": "w1"})]

        dead = (await _get(api, "/dead-letters"))["tasks"]
        assert {d["id"] for d in dead} == {str(t.id) for t in states if t.status == "dead"}
        assert dead
        assert all(d["error"] == ERROR.model_dump() for d in dead)


async def test_rates_are_of_whole_minutes(service: Service, api: httpx.AsyncClient) -> None:
    await service.create()
    project(service.dsn)
    minute = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=3)
    execute(service.dsn, "update taskledger_read_g1.activity set minute = %s, completed = 600", minute)
    rates = (await _get(api, "/stats"))["rates"]
    assert rates["1m"]["completed"] == 0
    assert rates["5m"]["completed"] == 2.0
    assert rates["60m"]["completed"] == round(600 / 3600, 3)


async def test_reads_during_switches_never_fail_and_never_go_back(
    service: Service, api: httpx.AsyncClient
) -> None:
    ids = [(await service.create()).id for _ in range(20)]
    project(service.dsn)
    stop = asyncio.Event()
    reads = 0

    async def read(task_id: UUID) -> None:
        nonlocal reads
        version = position = 0
        while not stop.is_set():
            response = await api.get(f"/tasks/{task_id}")
            assert response.status_code == 200, response.text
            page = await api.get("/tasks")
            assert page.status_code == 200, page.text
            assert len(page.json()["tasks"]) == 20
            seen = int(response.headers["x-position"].split(".")[0])
            assert seen >= position
            assert response.json()["version"] >= version
            version, position = response.json()["version"], seen
            reads += 1

    with following(service.dsn):
        readers = [asyncio.create_task(read(i)) for i in ids[:4]]
        for n in range(4):
            await service.execute(ids[n], CancelTask())
            assert (await asyncio.to_thread(rebuild, service.dsn)).differences == ()
            await asyncio.to_thread(drop_retired, service.dsn)
        stop.set()
        await asyncio.gather(*readers)
    assert reads > 10
    assert (await _get(api, f"/tasks/{ids[0]}"))["status"] == "cancelled"


async def test_health_and_documents(service: Service, api: httpx.AsyncClient) -> None:
    assert (await api.get("/health/live")).status_code == 200
    unready = await api.get("/health/ready")
    assert (unready.status_code, unready.headers["content-type"]) == (503, "application/problem+json")
    assert "no read tables yet" in unready.json()["detail"]
    project(service.dsn)
    assert (await api.get("/health/ready")).status_code == 200

    page = (await api.get("/docs")).text
    assert "/tasks/{task_id}" in page
    assert not any(mark in page for mark in ("<script", "<link", "src=", "http://", "https://", "@import"))
    document = await _get(api, "/openapi.json")
    assert set(document["paths"]) == {
        "/tasks",
        "/tasks/{task_id}",
        "/tasks/{task_id}/events",
        "/tasks/{task_id}/explain",
        "/tasks/{task_id}/proof",
        "/proof/head",
        "/proof/consistency",
        "/events",
        "/dead-letters",
        "/stats",
        "/queues",
        "/kinds",
        "/usage",
        "/workers",
        "/webhooks",
        "/webhooks/{webhook_id}",
        "/webhooks/{webhook_id}/deliveries",
        "/health/live",
        "/health/ready",
    }
    assert list(document["components"]["schemas"]["Task"]["properties"]) == TASK_FIELDS
