"""Clients under chaos: each is one loop that asks, writes down what it asked and what it was told.

What a client does not learn it asks again with the same key; what it cannot ask again is `info`. A refused
connection and a 4xx are `fail`: nothing happened. A read is `fail` whenever it is not answered.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from uuid import uuid4

import httpx

from tests.chaos.history import Recorder

PATIENCE_SECONDS: Final = 8.0
"""Longer than the 5 s in which the APIs promise an answer."""
PAUSE_SECONDS: Final = 0.5
"""After an answer that was none: a client that hammers is no evidence."""
KINDS: Final = ("mark",) * 12 + ("slow",) * 3 + ("flaky",) * 3 + ("blocking", "cpu") + ("outside",) * 3
FINAL: Final = ("completed", "dead", "cancelled", "discarded")


class Acknowledged(NamedTuple):
    task: str
    token: str


@dataclass(slots=True)
class Ground:
    """What the clients of one campaign share. Touched by their loop alone, but for the counters."""

    recorder: Recorder
    command_urls: Sequence[str]
    query_urls: Sequence[str]
    seed: int
    pace_seconds: float
    """Mean pause of a client between two operations."""
    acknowledged: list[Acknowledged] = field(default_factory=list[Acknowledged])
    seen_ids: set[str] = field(default_factory=set[str])
    submitting: bool = True
    working: bool = True
    poison: bool = True
    """Whether some tasks kill their worker."""


class Asked(NamedTuple):
    """An operation and what came back: `answer` is None where nothing, or nothing to rely on, did."""

    op: int
    answer: httpx.Response | None


class Client(ABC):
    def __init__(self, ground: Ground, name: str, http: httpx.AsyncClient) -> None:
        self.ground = ground
        self.name = name
        self._http = http
        self.random = random.Random(f"{ground.seed}/{name}")

    @abstractmethod
    async def run(self) -> None:
        """Until the ground says that there is nothing left to do."""

    async def pause(self, seconds: float | None = None) -> None:
        mean = self.ground.pace_seconds if seconds is None else seconds
        await asyncio.sleep(self.random.uniform(0, 2 * mean))

    async def ask(
        self,
        f: str,
        path: str,
        body: object,
        *,
        task: str | None = None,
        key: str | None = None,
        value: object = None,
        within: float = PATIENCE_SECONDS,
    ) -> Asked:
        """One command, written down before it is sent. A response means `ok` is still to be recorded."""
        recorder = self.ground.recorder
        op = recorder.invoke(self.name, f, task=task, key=key, value=value)
        headers = {} if key is None else {"Idempotency-Key": key}
        url = self.random.choice(self.ground.command_urls)
        try:
            answer = await self._http.post(f"{url}{path}", json=body, headers=headers, timeout=within)
        except httpx.ConnectError:
            recorder.fail(op, "refused")
        except httpx.TransportError as error:
            recorder.info(op, type(error).__name__)
        else:
            if answer.is_success:
                return Asked(op, answer)
            if answer.is_client_error:
                recorder.fail(op, str(answer.json()["code"]))
                return Asked(op, answer)
            recorder.info(op, str(answer.status_code))
        await asyncio.sleep(PAUSE_SECONDS)
        return Asked(op, None)

    async def get(
        self, path: str, params: dict[str, Any], within: float = PATIENCE_SECONDS
    ) -> httpx.Response:
        url = self.random.choice(self.ground.query_urls)
        return await self._http.get(f"{url}{path}", params=params, timeout=within)


def body_of(kind: str, mark: str, chance: random.Random) -> dict[str, Any]:
    payload: dict[str, Any] = {"mark": mark}
    body: dict[str, Any] = {"kind": kind, "payload": payload}
    match kind:
        case "slow" | "blocking":
            payload["seconds"] = round(chance.uniform(0.1, 1.5), 2)
        case "flaky":
            payload["failures"] = chance.choice((1, 1, 2))
        case "poison":
            body["max_attempts"] = 2
        case "outside":
            body["queue"] = "outside"
        case _:
            if chance.random() < 0.1:
                body["delay_seconds"] = round(chance.uniform(0.2, 2), 2)
    if chance.random() < 0.2:
        body["priority"] = chance.choice(("high", "low"))
    return body


class Submitter(Client):
    """Creates one task after the other; most with a key, each of those until it is acknowledged."""

    async def run(self) -> None:
        number = 0
        while self.ground.submitting:
            number += 1
            poison = self.ground.poison and self.random.random() < 0.004
            kind = "poison" if poison else self.random.choice(KINDS)
            mark = f"{kind}-{self.name}-{number}"
            key = uuid4().hex if self.random.random() < 0.9 else None
            body = body_of(kind, mark, self.random)
            while await self._submit(body, mark, kind, key) is None and key is not None:
                if not self.ground.working:
                    return
            await self.pause()

    async def _submit(self, body: object, mark: str, kind: str, key: str | None) -> str | None:
        asked = await self.ask("submit", "/tasks", body, key=key, value={"mark": mark, "kind": kind})
        if asked.answer is None or not asked.answer.is_success:
            return None
        told = asked.answer.json()
        task, token = str(told["id"]), str(told["position"])
        replayed = asked.answer.headers.get("Idempotent-Replayed") == "true"
        self.ground.recorder.ok(asked.op, task=task, token=token, value={"replayed": replayed})
        self.ground.acknowledged.append(Acknowledged(task, token))
        return task


class Batcher(Client):
    """As a Submitter, many at once."""

    async def run(self) -> None:
        number = 0
        while self.ground.submitting:
            number += 1
            kinds = [self.random.choice(KINDS) for _ in range(self.random.randint(2, 20))]
            marks = [f"{kind}-{self.name}-{number}.{n}" for n, kind in enumerate(kinds)]
            key = uuid4().hex
            bodies = [body_of(kind, mark, self.random) for kind, mark in zip(kinds, marks, strict=True)]
            while not await self._submit({"tasks": bodies}, marks, key):
                if not self.ground.working:
                    return
            await self.pause(10 * self.ground.pace_seconds)

    async def _submit(self, body: object, marks: list[str], key: str) -> bool:
        asked = await self.ask("batch", "/tasks/batch", body, key=key, value={"marks": marks})
        if asked.answer is None or not asked.answer.is_success:
            return False
        told = asked.answer.json()
        tasks = [Acknowledged(str(one["id"]), str(one["position"])) for one in told["tasks"]]
        self.ground.recorder.ok(
            asked.op, token=str(told["position"]), value={"tasks": [one.task for one in tasks]}
        )
        self.ground.acknowledged.extend(tasks)
        return True


class OutsideWorker(Client):
    """A worker in any language: claims over HTTP, completes or fails; now and then it forgets."""

    async def run(self) -> None:
        while self.ground.working:
            for task, attempt in await self._claim():
                await self._work(task, attempt)

    async def _claim(self) -> list[tuple[str, int]]:
        body = {"worker": self.name, "limit": 5, "wait_seconds": 1, "lease_seconds": 2}
        asked = await self.ask("claim", "/queues/outside/claim", body, value={"worker": self.name})
        if asked.answer is None or not asked.answer.is_success:
            return []
        tasks = [(str(one["id"]), int(one["attempt"])) for one in asked.answer.json()["tasks"]]
        self.ground.recorder.ok(asked.op, value={"tasks": [{"id": t, "attempt": a} for t, a in tasks]})
        self.ground.seen_ids.update(task for task, _ in tasks)
        return tasks

    async def _work(self, task: str, attempt: int) -> None:
        chance = self.random.random()
        if chance < 0.03:
            return  # its lease runs out
        await self.pause()
        if chance < 0.1:
            error = {"type": "Outside", "message": "this attempt failed"}
            f, body = "fail", {"attempt": attempt, "error": error}
        else:
            f, body = "complete", {"attempt": attempt, "result": {"attempt": attempt}}
        for _ in range(20):
            if await self._tell(f, task, attempt, body):
                return

    async def _tell(self, f: str, task: str, attempt: int, body: object) -> bool:
        asked = await self.ask(f, f"/tasks/{task}/{f}", body, task=task, value={"attempt": attempt})
        if asked.answer is None:
            return False
        if asked.answer.is_success:
            told = asked.answer.json()
            value = {name: told[name] for name in ("status", "version", "attempt")}
            self.ground.recorder.ok(asked.op, token=str(told["position"]), value=value)
        return asked.answer.status_code != HTTPStatus.TOO_MANY_REQUESTS


class Steward(Client):
    """Cancels what is new; requeues and discards what is dead or cancelled."""

    async def run(self) -> None:
        while self.ground.submitting:
            await self.pause(6 * self.ground.pace_seconds)
            if not self.ground.acknowledged:
                continue
            if self.random.random() < 0.5:
                recent = self.ground.acknowledged[-20:]
                await self._command("cancel", self.random.choice(recent).task)
            else:
                await self._revive()

    async def _revive(self) -> None:
        status = self.random.choice(("dead", "cancelled"))
        try:
            answer = await self.get("/tasks", {"status": status, "limit": 20})
        except httpx.TransportError:
            return
        if answer.is_success and (tasks := answer.json()["tasks"]):
            self.ground.seen_ids.update(str(task["id"]) for task in tasks)
            f = "discard" if self.random.random() < 0.3 else "requeue"
            await self._command(f, str(self.random.choice(tasks)["id"]))

    async def _command(self, f: str, task: str) -> None:
        asked = await self.ask(f, f"/tasks/{task}/{f}", {"reason": "chaos"}, task=task)
        if asked.answer is not None and asked.answer.is_success:
            told = asked.answer.json()
            value = {name: told[name] for name in ("status", "version", "attempt")}
            self.ground.recorder.ok(asked.op, token=str(told["position"]), value=value)


class Reader(Client):
    """A session: what it was told, and what it has read, it never sees undone, whoever answers."""

    async def run(self) -> None:
        latest: str | None = None
        while self.ground.working:
            await self.pause()
            if not self.ground.acknowledged:
                continue
            if self.random.random() < 0.1:
                await self._list()
                continue
            recent = self.ground.acknowledged[-200:]
            task, token = self.random.choice(recent)
            wanted = token if latest is None else max(token, latest, key=place)
            latest = await self._read(task, wanted) or latest

    async def _read(self, task: str, token: str) -> str | None:
        recorder = self.ground.recorder
        op = recorder.invoke(self.name, "read", task=task, token=token)
        try:
            answer = await self.get(f"/tasks/{task}", {"min_position": token})
        except httpx.TransportError as error:
            recorder.fail(op, type(error).__name__)
        else:
            if answer.is_success:
                told = answer.json()
                self.ground.seen_ids.add(str(told["id"]))
                value = {name: told[name] for name in ("status", "version", "attempt")}
                recorder.ok(op, token=token, value={**value, "position": place(told["position"])})
                return str(max(token, told["position"], key=place))
            recorder.fail(op, str(answer.status_code))
        await asyncio.sleep(PAUSE_SECONDS)
        return None

    async def _list(self) -> None:
        recorder = self.ground.recorder
        op = recorder.invoke(self.name, "list")
        try:
            answer = await self.get("/tasks", {"limit": 100})
        except httpx.TransportError as error:
            recorder.fail(op, type(error).__name__)
            await asyncio.sleep(PAUSE_SECONDS)
            return
        if answer.is_success:
            ids = [str(task["id"]) for task in answer.json()["tasks"]]
            self.ground.seen_ids.update(ids)
            recorder.ok(op, value={"ids": ids})
        else:
            recorder.fail(op, str(answer.status_code))
            await asyncio.sleep(PAUSE_SECONDS)


def place(token: str) -> int:
    """The position in a token."""
    return int(token.partition(".")[0])


CREW: Final[tuple[tuple[type[Client], int], ...]] = (
    (Submitter, 5),
    (Batcher, 1),
    (OutsideWorker, 2),
    (Steward, 1),
    (Reader, 3),
)


async def run_clients(ground: Ground) -> None:
    """Until `ground` says that there is nothing left to do. Raises what clients raise."""
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=50)
    async with (
        httpx.AsyncClient(trust_env=False, limits=limits) as http,
        asyncio.TaskGroup() as group,
    ):
        for kind, count in CREW:
            for number in range(count):
                client = kind(ground, f"{kind.__name__.lower()}{number}", http)
                group.create_task(client.run())
