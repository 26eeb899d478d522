"""The clock's row of the fault matrix: processes whose wall clocks are an hour off, and jump.

A real library (Debian's libfaketime) lies to each process about CLOCK_REALTIME; monotonic time goes on as
it does, as it would for a clock that somebody sets.
"""

import asyncio
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from events.append import RecordedEvent
from projector.verify import inspect
from taskledger.children import Child
from taskledger.health import ask
from tests.chaos.ports import Ports
from tests.integration.projection import project
from tests.support import Service, eventually, wait_until

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
LEASE_SECONDS = 2.0
SLOTS = 6
HOUR, MINUTES = 3600, 300
SLACK_SECONDS = 10.0
"""For a start that is due: the sweeper's second, and a loaded machine. The clocks are off by minutes."""
EARLY_SECONDS = 1.0
"""A process's idea of the database's clock lags by the time an answer takes, and a delay with it."""

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(LIBRARY is None, reason="needs Debian's libfaketime"),
]


class Skewed:
    """A process of ours whose clock can be set."""

    def __init__(self, name: str, command: str, folder: Path, port: int, env: Mapping[str, str]) -> None:
        self._clock = folder / f"{name}.clock"
        self._lines: list[str] = []
        self.url = f"http://127.0.0.1:{port}"
        section = "COMMAND_API" if command == "command-api" else "HEALTH"
        ours = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DISABLE_SHM": "1",
            "DONT_FAKE_MONOTONIC": "1",
            f"TASKLEDGER__{section}__PORT": str(port),
            "TASKLEDGER__WORKER__NAME": name,
        }
        self._child = Child(name, [command], env={**env, **ours}, on_line=self._hear, on_end=self._ended)
        self.ends: list[str] = []

    def set(self, seconds: int) -> None:
        """From now on its clock is this far off."""
        prepared = self._clock.with_suffix(".prepared")
        prepared.write_text(f"{seconds:+d}\n")
        prepared.rename(self._clock)

    def start(self, seconds: int) -> None:
        self.set(seconds)
        self._child.start()

    def await_ready(self) -> None:
        try:
            wait_until(lambda: ask(f"{self.url}/health/ready") is None, "it to be ready", within=30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._lines}\n{self.ends}") from None

    def kill(self) -> None:
        """For good."""
        self._child.kill()
        assert self._child.join(10)

    def first_said(self) -> datetime:
        """By its own clock."""
        wait_until(lambda: self._lines, "it to say something")  # its output comes on another thread
        return datetime.fromisoformat(json.loads(self._lines[0])["timestamp"])

    def _hear(self, _label: str, line: str) -> None:
        self._lines.append(line)

    def _ended(self, ended: object) -> None:
        self.ends.append(f"{ended}; {self._lines[-3:]}")


SKEWS = {
    "command-api": ("command-api", HOUR),
    "dispatcher": ("dispatcher", -HOUR),
    "early": ("worker", HOUR),
    "late": ("worker", -HOUR),
}


@pytest.fixture
def processes(service: Service, redis_url: str, tmp_path: Path) -> Iterator[dict[str, Skewed]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TASKLEDGER")}
    env |= {
        "TASKLEDGER__POSTGRES__DSN": service.dsn,
        "TASKLEDGER__POSTGRES__POOL_SIZE": "4",
        "TASKLEDGER__REDIS__URL": redis_url,
        "TASKLEDGER__LEASE_SECONDS": str(LEASE_SECONDS),
        "TASKLEDGER__HANDLERS": '["tests.chaos.handlers"]',
        "TASKLEDGER__LOG_FORMAT": "json",
        "TASKLEDGER__WORKER__CONCURRENCY": str(SLOTS),
    }
    ports = Ports()
    found = {
        name: Skewed(name, command, tmp_path, ports.take(), env) for name, (command, _) in SKEWS.items()
    }
    try:
        for name, process in found.items():
            process.start(SKEWS[name][1])
        for process in found.values():
            process.await_ready()
        yield found
    finally:
        for process in found.values():
            process.kill()
        ports.release()


class Jumping(threading.Thread):
    """Sets every process's clock to something else, again and again, until told to stop."""

    def __init__(self, processes: Mapping[str, Skewed]) -> None:
        super().__init__(name="jumping", daemon=True)
        self.stop = threading.Event()
        self.jumps = 0
        self._processes = processes

    def run(self) -> None:
        choice = random.Random(60)
        while not self.stop.wait(0.1):
            for process in self._processes.values():
                process.set(choice.choice((-HOUR, -MINUTES, 0, MINUTES, HOUR)))
                self.jumps += 1


async def test_clock_an_hour_off_and_jumping_starts_nothing_early_and_loses_nothing(
    service: Service, processes: dict[str, Skewed]
) -> None:
    """Clocks of the API, the dispatcher and the workers are an hour ahead or behind, then jump by minutes
    and hours -> nothing due starts early or an hour late, no live worker is robbed, a dead one's work is
    taken over in its lease, and the log's order and times are the database's."""
    for name, process in processes.items():
        off = (process.first_said() - datetime.now(UTC)).total_seconds()
        assert off == pytest.approx(SKEWS[name][1], abs=60)

    jumping = Jumping(processes)
    jumping.start()
    due = await _submit_all(processes["command-api"].url)
    histories = await _finished(service, due)
    jumping.stop.set()
    jumping.join()
    assert jumping.jumps > 20
    for task, (kind, earliest) in due.items():
        history = histories[task]
        topics = [event.topic for event in history]
        assert topics.count("TaskStarted") == (2 if kind == "flaky" else 1), (kind, topics)
        late = (_started(history).recorded_at - earliest).total_seconds()
        assert -EARLY_SECONDS <= late < SLACK_SECONDS, (kind, late)

    await _a_dead_worker_is_replaced(service, processes)
    assert {name: process.ends for name, process in processes.items()} == {name: [] for name in SKEWS}
    project(service.dsn)
    assert inspect(service.dsn).differences == []


async def _submit_all(url: str) -> dict[UUID, tuple[str, datetime]]:
    """Kind of each task, and when it is due by the clock of the database, which is this machine's."""
    due: dict[UUID, tuple[str, datetime]] = {}
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:

        async def submit(kind: str, seconds: float, payload: dict[str, Any], **more: Any) -> None:
            earliest = datetime.now(UTC) + timedelta(seconds=seconds)
            if "run_at" in more:
                more["run_at"] = earliest.isoformat()
            answer = await client.post("/tasks", json={"kind": kind, "payload": payload, **more})
            assert answer.status_code == 201, answer.text
            due[UUID(answer.json()["id"])] = kind, earliest

        for n in range(12):
            await asyncio.sleep(0.15)
            await submit("mark", 2.0, {"mark": f"delayed {n}"}, delay_seconds=2.0)
            await submit("mark", 2.5, {"mark": f"at {n}"}, run_at=None)
            await submit("mark", 0.0, {"mark": f"now {n}"})
            await submit("flaky", 0.0, {"mark": f"flaky {n}", "failures": 1})
        for n in range(4):
            await submit("slow", 0.0, {"mark": f"slow {n}", "seconds": 2.5 * LEASE_SECONDS})
    return due


async def _finished(service: Service, due: Mapping[UUID, object]) -> dict[UUID, list[RecordedEvent]]:
    async def finished() -> dict[UUID, list[RecordedEvent]]:
        found = {task: list(await service.log.read_stream(task)) for task in due}
        missing = [task for task, events in found.items() if events[-1].topic != "TaskCompleted"]
        assert not missing
        return found

    histories: dict[UUID, list[RecordedEvent]] = await eventually(finished, "all to finish", within=25)
    return histories


def _started(history: list[RecordedEvent]) -> RecordedEvent:
    return next(event for event in history if event.topic == "TaskStarted")


async def _a_dead_worker_is_replaced(service: Service, processes: dict[str, Skewed]) -> None:
    """Its clock was an hour ahead: what it held is neither stolen before nor left for an hour after."""
    processes["early"].set(HOUR)
    processes["late"].set(-HOUR)
    payload = {"mark": "dies", "seconds": 2 * LEASE_SECONDS}
    tasks = [(await service.create(kind="slow", payload=payload)).id for _ in range(SLOTS + 2)]

    async def all_started() -> bool:
        states = await service.commands.load(tasks)
        return all(state.attempt == 1 for state in states.values())

    await eventually(all_started, "all to run")
    killed = time.monotonic()
    processes["early"].kill()
    histories = await _finished(service, dict.fromkeys(tasks))
    taken = time.monotonic() - killed
    lost = [task for task, history in histories.items() if len(history) > 3]
    assert lost, "the worker that was killed held none of them"
    assert taken < 4 * LEASE_SECONDS + SLACK_SECONDS, taken
