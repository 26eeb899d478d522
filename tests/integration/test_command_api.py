"""Every command over HTTP: what it answers and what it leaves in the log."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from command_side.commands import StartTask
from command_side.service import Applied
from tests.integration.command_api import (
    GREET,
    SUM,
    Tasks,
    in_process,
    locations,
    problem,
    settings_for,
)
from tests.support import Service, now


@pytest.fixture
async def tasks(dsn: str, redis_url: str, service: Service, redis: Redis) -> AsyncIterator[Tasks]:
    async with in_process(settings_for(dsn, redis_url)) as client:
        yield Tasks(client, service, redis)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_created_task_is_stored_before_the_answer(tasks: Tasks) -> None:
    answer = await tasks.post("/tasks", {**SUM, "tags": ["a", "b.c"], "priority": "high"})

    body = answer.json()
    state = await tasks.state(body["id"])
    tag = await tasks.service.log.tag()
    assert answer.status_code == 201
    assert body == {
        "id": str(state.id),
        "version": 1,
        "status": "queued",
        "attempt": 0,
        "position": f"1.{tag}",
        "retry_at": None,
        "cancel_requested": False,
    }
    assert answer.headers["location"] == f"https://tasks.example/tasks/{state.id}?min_position=1.{tag}"
    assert (state.payload, state.tags, state.priority) == ({"x": 1, "y": 2}, ("a", "b.c"), "high")


async def test_what_is_left_out_follows_the_kind(tasks: Tasks) -> None:
    own = await tasks.state(await tasks.create())
    external = await tasks.state(await tasks.create(GREET))
    asked = await tasks.state(
        await tasks.create({**SUM, "queue": "q", "max_attempts": 7, "timeout_seconds": 0.5})
    )

    assert (own.queue, own.max_attempts, own.timeout_seconds) == ("default", 5, 30)
    assert (external.queue, external.timeout_seconds) == ("front", 300)
    assert (asked.queue, asked.max_attempts, asked.timeout_seconds) == ("q", 7, 0.5)


async def test_the_payload_is_stored_as_sent(tasks: Tasks) -> None:
    sent = {"title": "x", "delay_seconds": 1}  # its type would read 1.0
    state = await tasks.state(await tasks.create({"kind": "title_check", "payload": sent}))
    assert state.payload == sent
    assert isinstance(state.payload["delay_seconds"], int)


@pytest.mark.parametrize(
    ("when", "status"),
    [
        ({"delay_seconds": 60}, "scheduled"),
        ({"delay_seconds": 0}, "queued"),
        ({"run_at": "2020-01-01T00:00:00Z"}, "queued"),
        ({"run_at": (now() + timedelta(hours=1)).isoformat()}, "scheduled"),
        ({"run_at": (now() + timedelta(days=3650)).strftime("%Y-%m-%dT%H:%M:%S.%fz")}, "scheduled"),
    ],
)
async def test_a_schedule_is_honoured(tasks: Tasks, when: dict[str, Any], status: str) -> None:
    answer = await tasks.post("/tasks", SUM | when)
    assert (answer.status_code, answer.json()["status"]) == (201, status)


async def test_of_twenty_requests_with_one_key_one_creates(tasks: Tasks) -> None:
    body = {**SUM, "delay_seconds": 30}
    answers = await asyncio.gather(
        *(tasks.post("/tasks", body, headers={"Idempotency-Key": "k"}) for _ in range(20))
    )

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert await tasks.service.log.head() == 1


async def test_a_key_belongs_to_one_request_and_one_operation(tasks: Tasks) -> None:
    key = {"Idempotency-Key": '0f-"k"~'}
    first = await tasks.post("/tasks", SUM, headers=key)
    reordered = await tasks.client.post(
        "/tasks",
        content=b'{ "payload": {"y": 2, "x": 1}, "kind": "sum" }',
        headers={**key, "Content-Type": "application/json"},
    )
    other = await tasks.post("/tasks", {**SUM, "priority": "low"}, headers=key)
    batch = await tasks.post("/tasks/batch", {"tasks": [SUM]}, headers=key)

    assert reordered.content == first.content
    assert reordered.headers["idempotent-replayed"] == "true"
    problem(other, 422, "idempotency_key_reused")
    assert batch.status_code == 201
    assert "idempotent-replayed" not in batch.headers


async def test_the_first_answer_stays_the_same_after_the_task_has_moved_on(tasks: Tasks) -> None:
    key = {"Idempotency-Key": "k"}
    first = await tasks.post("/tasks", GREET, headers=key)
    await tasks.post(f"/tasks/{first.json()['id']}/cancel")
    assert (await tasks.post("/tasks", GREET, headers=key)).content == first.content


async def test_a_batch_is_stored_wholly(tasks: Tasks) -> None:
    answer = await tasks.post("/tasks/batch", {"tasks": [SUM, GREET, SUM]})
    body = answer.json()
    tag = await tasks.service.log.tag()

    assert answer.status_code == 201
    assert [task["position"] for task in body["tasks"]] == [f"{n}.{tag}" for n in (1, 2, 3)]
    assert all(task.keys() == {"id", "version", "status", "position"} for task in body["tasks"])
    assert body["position"] == f"3.{tag}"
    assert [(await tasks.state(task["id"])).kind for task in body["tasks"]] == ["sum", "greet", "sum"]


async def test_a_batch_with_one_bad_task_is_refused_wholly(tasks: Tasks) -> None:
    bad = [SUM, {**SUM, "payload": {"x": "1", "y": 2}}, {**SUM, "kind": "nope"}, GREET]
    shape = [SUM, {**SUM, "priority": "urgent"}]

    refused = problem(await tasks.post("/tasks/batch", {"tasks": bad}), 422, "invalid_request")
    assert locations(refused) == ["/tasks/1/payload/x", "/tasks/2/kind"]
    assert locations(
        problem(await tasks.post("/tasks/batch", {"tasks": shape}), 422, "invalid_request")
    ) == ["/tasks/1/priority"]
    assert locations(
        problem(await tasks.post("/tasks/batch", {"tasks": [{**SUM, "kind": "no"}]}), 422, "unknown_kind")
    ) == ["/tasks/0/kind"]
    assert await tasks.service.log.head() == 0


async def test_a_batch_of_a_thousand_can_be_repeated(tasks: Tasks) -> None:
    body, key = {"tasks": [SUM] * 1000}, {"Idempotency-Key": "big"}
    first = await tasks.post("/tasks/batch", body, headers=key)
    again = await tasks.post("/tasks/batch", body, headers=key)
    assert (first.status_code, first.content) == (201, again.content)
    assert (await tasks.service.log.head(), again.headers["idempotent-replayed"]) == (1000, "true")


async def test_an_external_worker_takes_a_task_from_start_to_complete(tasks: Tasks) -> None:
    task_id = await tasks.create({**GREET, "tags": ["x"]})
    started = await tasks.post(f"/tasks/{task_id}/start", {"worker": "node-1", "lease_seconds": 20})
    beat = await tasks.post(f"/tasks/{task_id}/heartbeat", {"attempt": 1, "progress": 0.5, "note": "half"})
    done = await tasks.post(f"/tasks/{task_id}/complete", {"attempt": 1, "result": {"hi": "Ada"}})
    again = await tasks.post(f"/tasks/{task_id}/complete", {"attempt": 1, "result": {"hi": "Ada"}})

    task = started.json()
    assert (task["id"], task["attempt"], task["version"], task["payload"]) == (
        task_id,
        1,
        2,
        {"name": "Ada"},
    )
    assert (task["queue"], task["kind"], task["tags"], task["timeout_seconds"]) == (
        "front",
        "greet",
        ["x"],
        300,
    )
    assert timedelta(seconds=15) < moment(task["lease_expires_at"]) - now() <= timedelta(seconds=20)
    assert timedelta(seconds=15) < moment(beat.json()["lease_expires_at"]) - now()
    assert beat.json()["cancel_requested"] is False
    assert (done.status_code, done.json()["status"], done.json()["version"]) == (200, "completed", 3)
    assert (again.status_code, again.content) == (200, done.content)
    async with tasks.service.pool.connection() as connection:
        row = await (
            await connection.execute("select holder, counter, progress, note from taskledger.leases")
        ).fetchone()
    assert row == (f"{task_id}:1", 1, 0.5, "half")


async def test_a_lease_that_vanished_is_made_anew(tasks: Tasks) -> None:
    task_id = await tasks.started()
    async with tasks.service.pool.connection() as connection:
        await connection.execute("delete from taskledger.leases")
    assert (await tasks.post(f"/tasks/{task_id}/heartbeat", {"attempt": 1})).status_code == 200


async def test_a_failure_is_retried_then_dead(tasks: Tasks) -> None:
    error = {"type": "Oops", "message": "no luck", "traceback": "line 1"}
    task_id = await tasks.started({**GREET, "max_attempts": 1})
    other = await tasks.started()

    dead = await tasks.post(f"/tasks/{task_id}/fail", {"attempt": 1, "error": error})
    again = await tasks.post(f"/tasks/{task_id}/fail", {"attempt": 1, "error": error})
    retrying = await tasks.post(f"/tasks/{other}/fail", {"attempt": 1, "error": error})

    assert (dead.status_code, dead.json()["status"], dead.json()["retry_at"]) == (200, "dead", None)
    assert again.content == dead.content
    assert (await tasks.state(task_id)).error is not None
    assert retrying.json()["status"] == "retrying"
    assert moment(retrying.json()["retry_at"]) <= now() + timedelta(seconds=2)


async def test_a_failure_that_cannot_be_retried_is_dead_at_once(tasks: Tasks) -> None:
    task_id = await tasks.started()
    body = {"attempt": 1, "error": {"type": "Bad", "message": "never"}, "retryable": False}
    assert (await tasks.post(f"/tasks/{task_id}/fail", body)).json()["status"] == "dead"


async def test_cancel_before_and_while_running(tasks: Tasks) -> None:
    waiting, running = await tasks.create(), await tasks.started()

    at_once = await tasks.client.post(f"/tasks/{waiting}/cancel")  # no body at all
    repeated = await tasks.post(f"/tasks/{waiting}/cancel", {"reason": "again"})
    requested = await tasks.post(f"/tasks/{running}/cancel", {"reason": "too slow"})
    still = await tasks.post(f"/tasks/{running}/cancel")
    beat = await tasks.post(f"/tasks/{running}/heartbeat", {"attempt": 1})
    confirmed = await tasks.post(
        f"/tasks/{running}/fail", {"attempt": 1, "error": {"type": "Cancelled", "message": ""}}
    )

    assert (at_once.status_code, at_once.json()["status"]) == (200, "cancelled")
    assert (repeated.status_code, repeated.content) == (200, at_once.content)
    assert (requested.status_code, requested.json()["cancel_requested"]) == (202, True)
    assert (still.status_code, still.content) == (202, requested.content)
    assert beat.json()["cancel_requested"] is True
    assert (confirmed.status_code, confirmed.json()["status"]) == (200, "cancelled")
    assert (await tasks.state(running)).cancel_reason == "too slow"


async def test_requeue_and_discard_follow_dead_or_cancelled(tasks: Tasks) -> None:
    task_id = await tasks.create()
    problem(await tasks.post(f"/tasks/{task_id}/requeue"), 409, "wrong_state")
    problem(await tasks.post(f"/tasks/{task_id}/discard"), 409, "wrong_state")
    await tasks.post(f"/tasks/{task_id}/cancel")

    requeued = await tasks.post(f"/tasks/{task_id}/requeue", {"reason": "after all"})
    await tasks.post(f"/tasks/{task_id}/cancel")
    discarded = await tasks.post(f"/tasks/{task_id}/discard")
    again = await tasks.post(f"/tasks/{task_id}/discard")

    assert (requeued.status_code, requeued.json()["status"]) == (200, "queued")
    assert (discarded.status_code, discarded.json()["status"]) == (200, "discarded")
    assert again.content == discarded.content
    problem(await tasks.post(f"/tasks/{task_id}/cancel"), 409, "wrong_state")


async def test_wrong_attempts_and_states_are_refused(tasks: Tasks) -> None:
    queued, running, done = await tasks.create(), await tasks.started(), await tasks.started()
    await tasks.post(f"/tasks/{done}/complete", {"attempt": 1, "result": 1})
    error = {"type": "E", "message": "m"}

    problem(await tasks.post(f"/tasks/{running}/start", {"worker": "w"}), 409, "wrong_state")
    problem(await tasks.post(f"/tasks/{done}/complete", {"attempt": 1, "result": 2}), 409, "wrong_state")
    problem(await tasks.post(f"/tasks/{done}/cancel"), 409, "wrong_state")
    problem(await tasks.post(f"/tasks/{running}/complete", {"attempt": 2, "result": 1}), 409, "wrong_state")
    problem(
        await tasks.post(f"/tasks/{done}/fail", {"attempt": 1, "error": error}), 409, "attempt_superseded"
    )
    problem(await tasks.post(f"/tasks/{done}/heartbeat", {"attempt": 1}), 409, "attempt_superseded")
    problem(await tasks.post(f"/tasks/{running}/heartbeat", {"attempt": 2}), 409, "attempt_superseded")
    problem(await tasks.post(f"/tasks/{queued}/heartbeat", {"attempt": 1}), 409, "attempt_superseded")


async def test_an_older_attempt_changes_nothing(tasks: Tasks) -> None:
    task_id = await tasks.started()
    error = {"type": "E", "message": "m"}
    await tasks.post(f"/tasks/{task_id}/fail", {"attempt": 1, "error": error, "retryable": False})
    await tasks.post(f"/tasks/{task_id}/requeue")
    second = await tasks.post(f"/tasks/{task_id}/start", {"worker": "w2"})

    assert second.json()["attempt"] == 2
    for name, body in (
        ("complete", {"attempt": 1, "result": 1}),
        ("heartbeat", {"attempt": 1}),
        ("fail", {"attempt": 1, "error": error}),
    ):
        problem(await tasks.post(f"/tasks/{task_id}/{name}", body), 409, "attempt_superseded")
    assert (await tasks.state(task_id)).version == 6


async def test_our_own_workers_renew_their_leases_themselves(tasks: Tasks) -> None:
    state = await tasks.state(await tasks.create())
    answer = await tasks.service.execute(state.id, StartTask(holder="a-worker-process", worker="w"))
    assert isinstance(answer, Applied)
    problem(await tasks.post(f"/tasks/{state.id}/heartbeat", {"attempt": 1}), 409, "wrong_state")
    done = await tasks.post(f"/tasks/{state.id}/complete", {"attempt": 1, "result": {"sum": 3}})
    assert done.json()["status"] == "completed"


async def test_a_paused_queue_starts_nothing(tasks: Tasks) -> None:
    task_id = await tasks.create(GREET)
    paused = await tasks.post("/queues/front/pause", {"reason": "maintenance"})
    again = await tasks.client.post("/queues/front/pause")
    refused = await tasks.post(f"/tasks/{task_id}/start", {"worker": "w"})
    resumed = await tasks.client.post("/queues/front/resume")
    untouched = await tasks.client.post("/queues/other/resume")

    tag = await tasks.service.log.tag()
    assert paused.json() == {"queue": "front", "paused": True, "position": f"2.{tag}"}
    assert again.content == paused.content
    problem(refused, 409, "wrong_state")
    assert resumed.json() == {"queue": "front", "paused": False, "position": f"3.{tag}"}
    assert untouched.json() == {"queue": "other", "paused": False, "position": f"0.{tag}"}
    assert (await tasks.post(f"/tasks/{task_id}/start", {"worker": "w"})).status_code == 200


async def test_a_trace_is_recorded_with_the_events_it_caused(tasks: Tasks) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    traced = await tasks.post("/tasks", GREET, headers={"traceparent": parent})
    invalid = await tasks.post("/tasks", GREET, headers={"traceparent": parent.replace("4", "g")})

    assert (await tasks.state(traced.json()["id"])).traceparent == parent
    assert (await tasks.state(invalid.json()["id"])).traceparent is None


async def test_the_openapi_document_describes_bodies_and_problems(tasks: Tasks) -> None:
    document = (await tasks.client.get("/openapi.json")).json()
    create = document["paths"]["/tasks"]["post"]
    schemas = document["components"]["schemas"]

    assert create["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/NewTask"
    }
    assert schemas["NewTask"]["required"] == ["kind", "payload"]
    assert [parameter["name"] for parameter in create["parameters"]] == ["Idempotency-Key"]
    assert "application/problem+json" in create["responses"]["422"]["content"]
    assert {"201", "400", "413", "415", "422", "429", "503"} <= create["responses"].keys()
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert referred <= schemas.keys()
    assert (await tasks.client.get("/docs")).status_code == 200


async def test_times_in_answers_are_utc(tasks: Tasks) -> None:
    task = (await tasks.post(f"/tasks/{await tasks.create()}/start", {"worker": "w"})).json()
    assert task["created_at"].endswith("Z")
    assert moment(task["created_at"]).astimezone(UTC) <= now() + timedelta(seconds=1)
