"""Encrypted tasks through the APIs, a worker and the projector; and what is left of them once erased."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis.asyncio import Redis

from command_side.commands import FailTask, StartTask
from command_side.service import CommandService
from command_side.worker.main import Worker
from events import erasure
from events.ciphers import MasterKey, MasterKeys, new_master_text
from events.envelopes import packed, unpack
from events.task_events import ERASED_ERROR, TaskError
from projector.verify import inspect
from projector.view import schema_name
from taskledger.encryption import Encryption
from taskledger.postgres import connect, connect_sync
from taskledger.redis import stream_key
from taskledger.settings import EncryptionSettings
from tests.integration import query
from tests.integration.command_api import Tasks, in_process, locations, problem, settings_for
from tests.integration.projection import execute, live_number, project, table
from tests.integration.workers import Running, worker_settings
from tests.support import Service, eventually

CANARY = "canary-7f3a"
ERASED = ("payload", "result", "error")


@dataclass(frozen=True, slots=True)
class World:
    service: Service
    redis: Redis
    redis_url: str
    encryption: EncryptionSettings
    api: Tasks
    query: httpx.AsyncClient

    async def create(self, kind: str, payload: Any, subject: str | None = "Ann", **more: Any) -> str:
        body = {"kind": kind, "payload": payload, "subject": subject, **more}
        return await self.api.create({name: value for name, value in body.items() if value is not None})

    async def read(self, task_id: str) -> dict[str, Any]:
        await asyncio.to_thread(project, self.service.dsn)
        task: dict[str, Any] = (await self.query.get(f"/tasks/{task_id}")).raise_for_status().json()
        return task

    async def stored(self) -> str:
        """Everything that the database holds, as text."""
        async with self.service.pool.connection() as connection:
            rows = await connection.execute(
                "select convert_from(state, 'UTF8') from taskledger.task_events order by notification_id"
            )
            log = [row[0] for row in await rows.fetchall()]
            leases = await connection.execute("select to_json(l)::text from taskledger.leases l")
            keys = await connection.execute("select to_json(k)::text from taskledger.idempotency_keys k")
            more = [row[0] for row in (*await leases.fetchall(), *await keys.fetchall())]
        await asyncio.to_thread(project, self.service.dsn)
        rows_ = [str(row) for row in await asyncio.to_thread(table, self.service.dsn)]
        return "\n".join([*log, *more, *rows_])

    async def erase(self, subject: str | None = "Ann") -> None:
        def work() -> None:
            assert self.encryption.master_key_file is not None
            masters = MasterKeys(MasterKey.parse(self.encryption.master_key_file.read_text()))
            with connect_sync(self.service.dsn, name="test") as connection:
                done = erasure.erase(
                    connection, masters, tenant="default", subject=subject, by="ops", reason="asked to"
                )
            assert done is not None

        await asyncio.to_thread(work)

    @asynccontextmanager
    async def worker(self, *, keys: bool = True) -> AsyncGenerator[Running]:
        settings = worker_settings(self.service.dsn, self.redis_url)
        encryption = self.encryption if keys else EncryptionSettings()
        running = await Running(Worker(settings.model_copy(update={"encryption": encryption}))).ready()
        try:
            yield running
        finally:
            await running.stopped()

    async def until(self, task_id: str, status: str) -> dict[str, Any]:
        async def condition() -> dict[str, Any] | None:
            task = await self.read(task_id)
            return task if task["status"] == status else None

        task: dict[str, Any] = await eventually(condition, f"status {status}")
        return task


@pytest.fixture
def encryption(tmp_path: Path) -> EncryptionSettings:
    file = tmp_path / "master.key"
    file.write_text(new_master_text())
    return EncryptionSettings(master_key_file=file)


@pytest.fixture
async def world(
    service: Service, redis: Redis, redis_url: str, encryption: EncryptionSettings
) -> AsyncIterator[World]:
    held = Encryption(encryption, service.log.rows, lambda: connect(service.dsn, name="test-keys"))
    service = replace(
        service,
        commands=CommandService(service.log, service.commits, service.mapper, service.clock, held.vault),
    )
    project(service.dsn)
    settings = settings_for(service.dsn, redis_url, encryption=encryption)
    settings = settings.model_copy(update={"handlers": ("tests.integration.worker_handlers",)})
    watching = asyncio.create_task(held.watch())
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(in_process(settings))
        asked = await stack.enter_async_context(query.query_api(service.dsn, encryption=encryption))
        yield World(service, redis, redis_url, encryption, Tasks(client, service, redis), asked)
    watching.cancel()


async def test_text_is_read_in_clear_everywhere_and_stored_nowhere(world: World) -> None:
    payload = {"name": CANARY}
    task_id = await world.create("greet", payload)
    plain = await world.create("greet", payload, subject=None)
    for id_ in (task_id, plain):
        assert (await world.api.post(f"/tasks/{id_}/start", {"worker": "w"})).json()["payload"] == payload
        beat = {"attempt": 1, "progress": 0.5, "note": f"half of {CANARY}"}
        assert (await world.api.post(f"/tasks/{id_}/heartbeat", beat)).status_code == 200
        assert (await world.read(id_))["progress"] == {"progress": 0.5, "note": f"half of {CANARY}"}
        assert CANARY not in await world.stored()
    answer = await world.api.post(f"/tasks/{task_id}/complete", {"attempt": 1, "result": [CANARY]})
    assert answer.status_code == 200
    error = {"type": "ValueError", "message": CANARY, "traceback": f"at {CANARY}"}
    body = {"attempt": 1, "error": error, "retryable": False}
    assert (await world.api.post(f"/tasks/{plain}/fail", body)).json()["status"] == "dead"
    done, dead = await world.read(task_id), await world.read(plain)
    assert (done["payload"], done["result"], done["erased_at"]) == (payload, [CANARY], None)
    assert (dead["payload"], dead["error"], dead["erased_at"]) == (payload, error, None)
    listed = (await world.query.get("/tasks")).json()["tasks"]
    assert [task["id"] for task in listed] == [plain, task_id]
    assert listed == [dead, done]
    events = (await world.query.get(f"/tasks/{task_id}/events")).json()["events"]
    assert events[0]["data"]["payload"] == payload
    assert events[-1]["data"]["result"] == [CANARY]
    assert "sealed" not in str(events)
    feed = (await world.query.get("/events")).json()["events"]
    assert sum(CANARY in json.dumps(event) for event in feed) == 4
    then = (await world.query.get(f"/tasks/{plain}", params={"as_of": dead["position"]})).json()
    assert (then["payload"], then["error"]) == (payload, error)
    assert CANARY not in await world.stored()
    assert not (await asyncio.to_thread(inspect, world.service.dsn)).differences


async def test_once_erased_a_subject_is_unreadable_and_nobody_else_is(world: World) -> None:
    ann = await world.create("greet", {"name": CANARY})
    bob = await world.create("greet", {"name": "b"}, subject="Bob")
    ours = await world.create("greet", {"name": "t"}, subject=None)
    for id_ in (ann, bob, ours):
        await world.api.post(f"/tasks/{id_}/start", {"worker": "w"})
        await world.api.post(f"/tasks/{id_}/complete", {"attempt": 1, "result": CANARY})
    before = {id_: await world.read(id_) for id_ in (ann, bob, ours)}
    stats = (await world.query.get("/stats")).json()["by_kind"]
    await world.erase()

    async def forgotten() -> bool:
        return (await world.read(ann))["erased_at"] is not None

    await eventually(forgotten)
    after = {id_: await world.read(id_) for id_ in (ann, bob, ours)}
    assert after[bob] == before[bob]
    assert after[ours] == before[ours]
    gone = dict.fromkeys(ERASED) | {"erased_at": after[ann]["erased_at"]}
    assert after[ann] == before[ann] | gone
    answers = [await world.query.get(path) for path in ("/tasks", f"/tasks/{ann}/events", "/events")]
    texts = [answer.raise_for_status().text for answer in answers]
    assert [text.count(CANARY) for text in texts] == [2, 0, 2]
    assert texts[1].count('"erased_at"') == 2
    then = (await world.query.get(f"/tasks/{ann}", params={"as_of": after[ann]["position"]})).json()
    assert then == after[ann]
    assert (await world.query.get("/stats")).json()["by_kind"] == stats
    assert not (await asyncio.to_thread(inspect, world.service.dsn)).differences


async def test_a_subject_is_refused_while_it_could_not_be_erased(service: Service, redis_url: str) -> None:
    async with in_process(settings_for(service.dsn, redis_url)) as client:
        one: dict[str, Any] = {"kind": "greet", "payload": {}, "subject": "Ann"}
        answer = await client.post("/tasks", json=one)
        document = problem(answer, 422, "invalid_request")
        assert locations(document) == ["/subject"]
        assert "TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE" in answer.text
        answer = await client.post("/tasks/batch", json={"tasks": [{**one, "subject": None}, one]})
        assert locations(problem(answer, 422, "invalid_request")) == ["/tasks/1/subject"]


@pytest.mark.parametrize("subject", ["", "x" * 256, 5, ["Ann"]])
async def test_a_subject_is_a_name_of_1_to_255_characters(world: World, subject: Any) -> None:
    answer = await world.api.post("/tasks", {"kind": "greet", "payload": {}, "subject": subject})
    assert locations(problem(answer, 422, "invalid_request")) == ["/subject"]


async def test_a_batch_is_sealed_with_the_key_of_each_subject(world: World) -> None:
    subjects = ["Ann", "Bob", None, "Ann", *(f"s{n}" for n in range(300))]
    tasks = [
        {"kind": "greet", "payload": {"n": n}} | ({} if name is None else {"subject": name})
        for n, name in enumerate(subjects)
    ]
    answer = await world.api.post("/tasks/batch", {"tasks": tasks})
    assert answer.status_code == 201
    ids = [task["id"] for task in answer.json()["tasks"]]
    events = [(await world.service.log.read_stream(UUID(id_)))[0] for id_ in ids[:6]]
    keys = [unpack(packed(json.loads(event.state)["sealed"])).key for event in events]
    assert [keys.index(key) for key in keys] == [0, 1, 2, 0, 4, 5]
    assert [(await world.read(id_))["payload"]["n"] for id_ in ids[:6]] == [0, 1, 2, 3, 4, 5]


async def test_a_task_of_an_erased_subject_ends_dead_and_holds_up_nobody(world: World) -> None:
    ann = await world.create("echo", CANARY)
    isolated = await world.create("pid", {})
    bob = await world.create("echo", "b", subject="Bob")
    await world.erase()
    for id_ in (ann, isolated, bob):
        await world.api.publish(id_)
    async with world.worker() as running:
        assert (await world.until(bob, "completed"))["result"] == "b"
        for id_ in (ann, isolated):
            task = await world.until(id_, "dead")
            assert task["error"] == ERASED_ERROR.model_dump()
            assert (task["payload"], task["attempt"]) == (None, 1)
            assert task["erased_at"] is not None
        assert running.worker.status()["outcomes"] == {"completed": 1, "discarded": 2}


async def test_of_a_task_that_runs_while_its_subject_is_erased_no_result_can_be_read(world: World) -> None:
    ann = await world.create("greet", {"name": CANARY})
    await world.api.post(f"/tasks/{ann}/start", {"worker": "w"})
    await world.erase()

    async def finished() -> bool:
        # Before the key is forgotten it is sealed with, and that is as good as nothing, too.
        answer = await world.api.post(f"/tasks/{ann}/complete", {"attempt": 1, "result": [CANARY]})
        return answer.status_code == 200

    await eventually(finished)
    stored = await world.stored()
    assert CANARY not in stored
    assert base64.b64encode(CANARY.encode()).decode()[:8] not in stored

    async def unreadable() -> bool:
        task = await world.read(ann)
        assert task["status"] == "completed"
        return bool(task["result"] is None and task["erased_at"] is not None)

    await eventually(unreadable)


async def test_what_is_sealed_for_an_erased_subject_is_not_even_stored(world: World) -> None:
    ann = await world.create("greet", {"name": CANARY})
    await world.api.post(f"/tasks/{ann}/start", {"worker": "w"})
    await world.erase()

    async def heard() -> bool:
        return bool((await world.service.state(UUID(ann))).payload != {"name": CANARY})

    await eventually(heard)
    state = await world.service.state(UUID(ann))
    await world.service.commands.execute_on(
        state, FailTask(1, "error", TaskError(type="E", message=CANARY))
    )
    failed = (await world.service.log.read_stream(UUID(ann)))[-1]
    assert unpack(packed(json.loads(failed.state)["sealed"])).ciphertext == b""
    assert (await world.read(ann))["error"] is None


async def test_a_claim_passes_over_erased_tasks_and_they_are_dead_then(world: World) -> None:
    ann, other = (
        await world.create("resize", {"url": "a", "width": 1}),
        await world.create("resize", {"url": "a", "width": 2}),
    )
    bob = await world.create("resize", {"url": "b", "width": 3}, subject="Bob")
    await world.erase()
    started = await world.api.post(f"/tasks/{other}/start", {"worker": "w"})
    problem(started, 409, "wrong_state")
    for id_ in (ann, bob):
        await world.api.publish(id_)
    claim = {"worker": "w", "limit": 5, "wait_seconds": 5}
    answer = await world.api.post("/queues/images/claim", claim)
    assert [task["payload"]["url"] for task in answer.json()["tasks"]] == ["b"]
    for id_ in (ann, other):
        task = await world.read(id_)
        assert (task["status"], task["error"]["type"]) == ("dead", "Erased")


async def test_a_key_of_a_request_says_nothing_of_it_once_its_subject_is_erased(world: World) -> None:
    body = {"kind": "greet", "payload": {"name": CANARY}, "subject": "Ann"}
    headers = {"Idempotency-Key": "k"}
    first = await world.api.post("/tasks", body, headers=headers)
    again = await world.api.post("/tasks", body, headers=headers)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    assert again.json() == first.json()
    other = await world.api.post("/tasks", {**body, "payload": {"name": "x"}}, headers=headers)
    problem(other, 422, "idempotency_key_reused")
    await world.erase()

    async def refused() -> bool:
        answer = await world.api.post("/tasks", body, headers=headers)
        return answer.status_code == 422 and answer.json()["code"] == "idempotency_key_reused"

    await eventually(refused)
    assert len((await world.query.get("/events")).json()["events"]) == 2


async def test_a_result_reported_twice_is_known_again(world: World) -> None:
    task_id = await world.create("greet", {"name": CANARY})
    await world.api.post(f"/tasks/{task_id}/start", {"worker": "w"})
    done = {"attempt": 1, "result": {"a": [CANARY]}}
    answers = [await world.api.post(f"/tasks/{task_id}/complete", done) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    other = await world.api.post(f"/tasks/{task_id}/complete", {**done, "result": None})
    problem(other, 409, "wrong_state")


async def test_a_reason_is_text_too_and_goes_along(world: World) -> None:
    task_id = await world.create("greet", {})
    await world.api.post(f"/tasks/{task_id}/start", {"worker": "w"})
    asked = await world.api.post(f"/tasks/{task_id}/cancel", {"reason": CANARY})
    assert asked.status_code == 202
    failed = {"attempt": 1, "error": {"type": "E", "message": "m"}}
    assert (await world.api.post(f"/tasks/{task_id}/fail", failed)).json()["status"] == "cancelled"
    await world.api.post(f"/tasks/{task_id}/requeue", {"reason": CANARY})
    events = (await world.query.get(f"/tasks/{task_id}/events")).json()["events"]
    said = [event["type"] for event in events if event["data"].get("reason") == CANARY]
    assert said == ["TaskCancelRequested", "TaskCancelled", "TaskRequeued"]
    assert CANARY not in await world.stored()


async def test_a_workers_notes_are_sealed_and_shown(world: World, tmp_path: Path) -> None:
    task_id = await world.create("noted", {"note": CANARY, "until": str(tmp_path / "go")})
    await world.api.publish(task_id)
    async with world.worker():

        async def shown() -> bool:
            task = await world.read(task_id)
            return bool(task["progress"] and task["progress"]["note"] == CANARY)

        await eventually(shown)
        assert CANARY not in await world.stored()
        await world.erase()

        async def unreadable() -> bool:
            task = await world.read(task_id)
            return bool(task["progress"] == {"progress": 0.5, "note": None})

        await eventually(unreadable)
        (tmp_path / "go").touch()
        await world.until(task_id, "completed")


async def test_a_process_without_the_master_key_leaves_sealed_tasks_alone(world: World) -> None:
    sealed = await world.create("echo", CANARY)
    async with in_process(settings_for(world.service.dsn, world.redis_url)) as client:
        clear = Tasks(client, world.service, world.redis)
        body = {"attempt": 1, "result": 1}
        problem(await clear.post(f"/tasks/{sealed}/complete", body), 503, "key_unavailable")
        problem(await clear.post(f"/tasks/{sealed}/start", {"worker": "w"}), 503, "key_unavailable")
        plain = await clear.create({"kind": "sum", "payload": {"x": 1, "y": 2}})
    async with query.query_api(world.service.dsn) as blind:
        await asyncio.to_thread(project, world.service.dsn)
        problem(await blind.get(f"/tasks/{sealed}"), 503, "key_unavailable")
        problem(await blind.get(f"/tasks/{sealed}/events"), 503, "key_unavailable")
        assert (await blind.get(f"/tasks/{plain}")).json()["payload"] == {"x": 1, "y": 2}
    for id_ in (sealed, plain):
        await world.api.publish(id_)
    async with world.worker(keys=False) as running:
        await world.until(plain, "completed")

        async def left_alone() -> bool:
            return bool(running.worker.status()["entries"].get("unknown"))

        await eventually(left_alone)
    async with world.worker():
        assert (await world.until(sealed, "completed"))["result"] == CANARY


async def test_who_holds_no_key_can_still_say_that_an_attempt_is_lost(world: World) -> None:
    """As the sweeper does."""
    task_id = UUID(await world.create("greet", {"name": CANARY}))
    service = world.service
    sweeping = CommandService(service.log, service.commits, service.mapper, service.clock, vault=None)
    await service.execute(task_id, StartTask("holder", "w"))
    lost = FailTask(1, "lost", TaskError(type="Lost", message="its worker is silent"))
    assert (await sweeping.execute(task_id, lost)).state.status == "queued"
    task = await world.read(str(task_id))
    assert task["error"]["message"] == "its worker is silent"
    assert task["payload"] == {"name": CANARY}


async def test_text_that_was_moved_is_refused_and_holds_up_no_other(world: World) -> None:
    moved, other = await world.create("echo", CANARY), await world.create("echo", "b")
    third = await world.create("echo", "c")
    await world.read(moved)
    schema = schema_name(live_number(world.service.dsn))
    for name, column, key in (
        (f"{schema}.tasks", "payload", "id"),
        ("taskledger.task_events", "state", "originator_id"),
    ):
        move = (
            f"update {name} set {column} = (select {column} from {name} where {key} = %s) where {key} = %s"
        )
        await asyncio.to_thread(execute, world.service.dsn, move, UUID(other), UUID(moved))
    problem(await world.query.get(f"/tasks/{moved}"), 500, "seal_broken")
    assert (await world.query.get(f"/tasks/{other}")).json()["payload"] == "b"
    for id_ in (moved, third):
        await world.api.redis.xadd(stream_key("default", "echo", "normal"), {"task": id_})
    async with world.worker() as running:
        await world.until(third, "completed")
        assert running.worker.status()["entries"]["unknown"] == 1


async def test_with_another_master_key_an_api_is_not_ready(world: World, tmp_path: Path) -> None:
    await world.create("greet", {})
    wrong = tmp_path / "other.key"
    wrong.write_text(new_master_text())
    encryption = EncryptionSettings(master_key_file=wrong)
    assert (await world.query.get("/health/ready")).status_code == 200
    assert (await world.api.client.get("/health/ready")).status_code == 200
    async with query.query_api(world.service.dsn, encryption=encryption) as client:
        assert "MASTER_KEY_FILE" in problem(await client.get("/health/ready"), 503, "not_ready")["detail"]
    async with in_process(
        settings_for(world.service.dsn, world.redis_url, encryption=encryption)
    ) as client:
        assert "MASTER_KEY_FILE" in problem(await client.get("/health/ready"), 503, "not_ready")["detail"]
        body: dict[str, Any] = {"kind": "greet", "payload": {}}
        problem(await client.post("/tasks", json=body), 503, "key_unavailable")
