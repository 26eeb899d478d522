"""What every subject is asked to do. A figure is returned only after every task was seen to be right."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol

import uvloop

from benchmarks.servers import DATABASE
from benchmarks.subject import Running, WrongError
from benchmarks.wire import Answer, Connection, request

CONNECTIONS: Final = 64
WARM_UP_TASKS: Final = 500
RATE: Final = 50
"""Tasks a second of the half-loaded system."""
DRAIN_SECONDS: Final = 20.0
FIRST_SECONDS: Final = 60.0
"""A worker may take to complete its first task."""
POLL_SECONDS: Final = 0.001
POLL_SHARE: Final = 0.05
"""Of the time waited so far: what a poll's pause grows with."""

Figures = dict[str, float]


class Launch(Protocol):
    """Starts a subject for a number of workers; the workers wait for `work`."""

    def __call__(self, workers: int, *, database: str = DATABASE, fresh: bool = True) -> Running:
        """A database that is not fresh is taken as an earlier launch left it."""
        ...


def body(n: int) -> bytes:
    return json.dumps({"kind": "sum", "payload": {"x": n, "y": n}}).encode()


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Submitted:
    began: float
    """When the first request left, as time.perf_counter() tells it; what the client did before and after
    is no part of it."""
    accepted: float
    """When the last answer was there."""
    created: list[tuple[int, dict[str, Any]]]
    """What each task was made with, and what its creation answered."""
    seconds: list[float]
    """Per answer."""


async def submit(url: str, numbers: range) -> Submitted:
    """One request a task over CONNECTIONS connections."""
    requests = iter([(n, request("POST", url, body(n))) for n in numbers])
    answers: list[tuple[int, Answer]] = []
    seconds: list[float] = []

    async def client(connection: Connection) -> None:
        for n, data in requests:
            began = time.perf_counter()
            answers.append((n, await connection.ask(data)))
            seconds.append(time.perf_counter() - began)

    connections = [await Connection.open(url) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    accepted = time.perf_counter()
    for connection in connections:
        connection.close()
    for _, answer in answers:
        _accepted(answer)
    return Submitted(began, accepted, [(n, answer.document) for n, answer in answers], seconds)


def _accepted(answer: Answer) -> None:
    if answer.status != HTTPStatus.CREATED:
        raise WrongError(f"a task was not accepted: {answer.status} {answer.body[:300]!r}")


def single(launch: Launch, tasks: int) -> Figures:
    """One task a request at 64 connections, everything running; until all can be read as completed."""
    with launch(1) as running:
        running.work()
        warm_up(running)
        before = running.bytes_kept()
        figures = burst(running, WARM_UP_TASKS, tasks)
        kept = {name: after - before[name] for name, after in running.bytes_kept().items()}
    return {**figures, **{f"{name} bytes/task": grown / tasks for name, grown in kept.items()}}


def warm_up(running: Running, completed: int = 0) -> None:
    """Beyond what had been completed before."""
    uvloop.run(submit(running.submit_url, range(WARM_UP_TASKS)))
    running.await_completed(completed + WARM_UP_TASKS)


def burst(running: Running, completed: int, tasks: int) -> Figures:
    """Beyond what had been completed before."""
    before = running.cpu()
    done = uvloop.run(submit(running.submit_url, range(tasks)))
    running.await_completed(completed + tasks)
    ended = time.perf_counter()
    spent = {name: after - before.get(name, 0.0) for name, after in running.cpu().items()}
    running.check_results(done.created)
    return {
        "accepted/s": tasks / (done.accepted - done.began),
        "completed/s": tasks / (ended - done.began),
        "accept p50 ms": 1_000 * statistics.median(done.seconds),
        "accept p99 ms": 1_000 * percentile(done.seconds, 0.99),
        "CPU ms/task": 1_000 * sum(spent.values()) / tasks,
        **{f"CPU ms/task: {name}": 1_000 * used / tasks for name, used in spent.items()},
    }


def accept(launch: Launch, tasks: int) -> Figures:
    """One task a request at 64 connections; nothing runs beside what they are submitted to."""
    with launch(0).alone() as running:
        uvloop.run(submit(running.submit_url, range(WARM_UP_TASKS)))
        done = uvloop.run(submit(running.submit_url, range(tasks)))
        return {"accepted/s": tasks / (done.accepted - done.began)}


def bulk(launch: Launch, tasks: int, workers: int) -> Figures:
    """Enqueued at once without a worker, then drained. The drain's rate leaves out its first tenth, in
    which workers start; a slow one is cut, and its rate is that of what was done."""
    with launch(workers) as running:
        enqueued = running.enqueue(tasks)
        rate, done = drain(running, tasks)
    return {
        "enqueued/s": tasks / enqueued,
        "drained/s": rate,
        "end to end/s": tasks / (enqueued + tasks / rate),
        "drained share": done / tasks,
    }


def drain(running: Running, tasks: int) -> tuple[float, int]:
    """By workers that start now: tasks a second, and how many were done."""
    running.work()
    seen: list[tuple[float, int]] = []
    while not seen or seen[-1][1] < tasks:
        seen.append((time.perf_counter(), running.completed()))
        started = [at for at, done in seen if done > 0]
        if started and seen[-1][0] - started[0] > DRAIN_SECONDS:
            break
        if not started and seen[-1][0] - seen[0][0] > FIRST_SECONDS:
            raise WrongError("the workers did nothing for a minute")
        time.sleep(0.05)
    window = [(at, done) for at, done in seen if done > seen[-1][1] / 10]
    (since, first), (until, last) = window[0], window[-1]
    return (last - first) / (until - since), last


async def _until_read(running: Running, connection: Connection, reader: Connection, n: int) -> float:
    """Seconds from the request to the answer that says "completed"."""
    began = time.perf_counter()
    answer = await connection.ask(request("POST", running.submit_url, body(n)))
    _accepted(answer)
    read = request("GET", running.read_url(answer.document))
    while (found := (await reader.ask(read)).document)["status"] != "completed":  # noqa: ASYNC110  HTTP
        await asyncio.sleep(max(POLL_SECONDS, POLL_SHARE * (time.perf_counter() - began)))
    if found["result"] != {"sum": 2 * n}:
        raise WrongError(f"{found['result']} for {n} + {n}")
    return time.perf_counter() - began


class Clients:
    """Pairs of connections, one to write and one to read, taken and given back."""

    def __init__(self, running: Running, read_at: str) -> None:
        self._running = running
        self._read_at = read_at
        self._idle: list[tuple[Connection, Connection]] = []

    async def one(self, n: int) -> float:
        pair = self._kept() or await self._open()
        seconds = await _until_read(self._running, *pair, n)
        self._idle.append(pair)
        return seconds

    def _kept(self) -> tuple[Connection, Connection] | None:
        """Servers close connections that are idle for some seconds."""
        while self._idle:
            pair = self._idle.pop()
            if all(connection.is_open for connection in pair):
                return pair
        return None

    async def _open(self) -> tuple[Connection, Connection]:
        return await Connection.open(self._running.submit_url), await Connection.open(self._read_at)


def latency(launch: Launch, tasks: int) -> Figures:
    """From the request to the answer that reads "completed": one at a time, and at 50 a second."""
    with launch(1) as running:
        running.work()
        warm_up(running)
        idle, busy = uvloop.run(_latencies(running, tasks))
    return {
        "idle p50 ms": 1_000 * statistics.median(idle),
        "idle p99 ms": 1_000 * percentile(idle, 0.99),
        "50/s p50 ms": 1_000 * statistics.median(busy),
        "50/s p99 ms": 1_000 * percentile(busy, 0.99),
    }


async def _latencies(running: Running, tasks: int) -> tuple[list[float], list[float]]:
    clients = Clients(running, running.read_url({"id": "0", "position": "0"}))
    for n in range(20):
        await clients.one(n)
    idle = [await clients.one(n) for n in range(tasks)]
    began = time.perf_counter()

    async def at_its_time(n: int) -> float:
        await asyncio.sleep(began + n / RATE - time.perf_counter())
        late = max(0.0, time.perf_counter() - began - n / RATE)
        return late + await clients.one(n)

    busy = await asyncio.gather(*map(at_its_time, range(10 * RATE)))
    return idle, busy
