"""Rebuilds that are killed, and the readers who must not notice: what they saw is held against the log."""

import asyncio
import random
import re
import signal
import subprocess
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import httpx
import psycopg

from projector.view import schema_name
from tests.chaos.clients import place
from tests.e2e.running import clean
from tests.integration.projection import present
from tests.support import eventually, wait_until

_SMALL: Final = """
from projector import plan
plan.RANGE_EVENTS = {}
from taskledger import cli
cli.main()
"""
_numbers: Final = count()
_RESUMING: Final = re.compile(r"resuming generation \d+: ([\d,]+) of [\d,]+ events are folded\n")


class Rebuild(subprocess.Popen[bytes]):
    """`taskledger rebuild`, the process. With `range_events` its ranges are smaller than they are."""

    def __init__(self, dsn: str, folder: Path, *options: str, range_events: int | None = None) -> None:
        small = ["-c", _SMALL.format(range_events)]
        run = ["-m", "taskledger"] if range_events is None else small
        self._said = folder / f"rebuild-{next(_numbers)}.out"
        with self._said.open("wb") as out:
            super().__init__(
                [sys.executable, "-P", *run, "rebuild", *options],
                cwd=folder,
                env=clean({"TASKLEDGER__POSTGRES__DSN": dsn}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self._said.read_text()

    def resumed(self) -> int | None:
        """How many events it found folded, once it has said so."""
        match = _RESUMING.search(self.said())
        return None if match is None else int(match[1].replace(",", ""))

    def killed(self) -> None:
        self.send_signal(signal.SIGKILL)
        assert self.wait(10) == -signal.SIGKILL, self.said()

    def finished(self, within: float) -> str:
        try:
            assert self.wait(within) == 0, self.said()
        finally:
            self.kill()
            self.wait(10)
        return self.said()


def folded(dsn: str) -> int:
    """Events in the ranges that the generation under way has; 0 where there is none with a plan."""
    for generation in present(dsn):
        if generation.state == "building":
            query = f"select coalesce(sum(events), 0) from {schema_name(generation.number)}.plan_ranges"
            try:
                with psycopg.connect(dsn, autocommit=True) as connection:
                    row = connection.execute(query.encode()).fetchone()
                    return 0 if row is None else int(row[0])
            except psycopg.errors.UndefinedTable:
                return generation.checkpoint
    return 0


@contextmanager
def held_back(dsn: str, ranges: int) -> Generator[None]:
    """A rebuild under way gets no further than so many ranges: the others are somebody else's for the
    length of the block. Ended within, it is ended in its middle."""
    with psycopg.connect(dsn) as connection:

        def hold() -> bool:
            building = [g.number for g in present(dsn) if g.state == "building"]
            if not building:
                return False
            try:
                table = f"{schema_name(building[0])}.plan_ranges"
                connection.execute(  # what OFFSET passes over would be locked as well
                    f"select from {table} where first in (select first from {table}"
                    " where events is null order by first offset %s) for update".encode(),
                    [ranges],
                )
            except psycopg.errors.UndefinedTable:
                connection.rollback()
                return False
            return True

        wait_until(hold, "the plan of a rebuild")
        yield
        connection.rollback()


def blocked(dsn: str) -> bool:
    """Whether every process of a rebuild waits for a range that is held back."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "select wait_event_type is not distinct from 'Lock' from pg_stat_activity"
            " where application_name = 'taskledger-rebuild-rows' and datname = current_database()"
        ).fetchall()
    return bool(rows) and all(row[0] for row in rows)


@dataclass
class Audience:
    """Readers of several query APIs, each of whom never wants to see an older state than before."""

    clients: Sequence[httpx.AsyncClient]
    ids: list[str]
    """Tasks to look at."""
    failures: list[str] = field(default_factory=list[str])
    """Answers that were none, or older than one before."""
    tasks: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])
    """Id, checkpoint of the answer, version."""
    totals: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """Checkpoint of the answer, tasks in all, completed ones."""

    @asynccontextmanager
    async def reading(self, readers: int) -> AsyncGenerator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(readers):
                group.create_task(self._read(stop, random.Random(number)))
            try:
                yield
            finally:
                stop.set()

    async def hear_of(self, task: str, token: str) -> None:
        """A task that is there from this position on, and is looked at from now on."""
        if await self._get(random.Random(token), f"/tasks/{task}", {"min_position": token}) is not None:
            self.ids.append(task)

    async def seen_more(self, answers: int) -> None:
        """Returns when so many further answers have come."""
        wanted = len(self.tasks) + answers

        async def enough() -> bool:
            return len(self.tasks) >= wanted

        await eventually(enough, "readers to go on", within=120)

    async def _read(self, stop: asyncio.Event, choice: random.Random) -> None:
        token, seen = "", 0
        while not stop.is_set():
            task = choice.choice(self.ids)
            answer = await self._get(choice, f"/tasks/{task}", {"min_position": token} if token else {})
            if answer is not None:
                token = answer.headers["X-Position"]
                seen = self._not_older(seen, token)
                self.tasks.append((task, seen, answer.json()["version"]))
            answer = await self._get(choice, "/stats", {})
            if answer is not None:
                seen = self._not_older(seen, answer.headers["X-Position"])
                stats = answer.json()
                self.totals.append((seen, stats["total"], stats["by_status"]["completed"]))
            await asyncio.sleep(0.01)

    async def _get(self, choice: random.Random, path: str, params: dict[str, str]) -> httpx.Response | None:
        try:
            answer = await choice.choice(self.clients).get(path, params=params)
        except httpx.HTTPError as error:
            self.failures.append(f"{path}: {type(error).__name__}")
            return None
        if answer.status_code != 200:
            self.failures.append(f"{path}: {answer.status_code} {answer.text}")
            return None
        return answer

    def _not_older(self, seen: int, token: str) -> int:
        now = place(token)
        if now < seen:
            self.failures.append(f"an answer as of {now} after one as of {seen}")
        return now

    def mixed(self, dsn: str) -> list[str]:
        """Answers that are not what the log says at their checkpoint: of two generations, or of a table
        that was being filled. None if readers and log agree."""
        log = _Log(dsn, {task for task, _, _ in self.tasks})
        wrong = [
            f"task {task} had version {version} at {at}"
            for task, at, version in self.tasks
            if version != log.version(task, at)
        ]
        return wrong + [
            f"{total} tasks, {completed} of them completed, at {at}"
            for at, total, completed in self.totals
            if (total, completed) != (log.created(at), log.completed(at))
        ]


class _Log:
    """What there was at each position; tasks are neither requeued nor discarded here."""

    def __init__(self, dsn: str, tasks: set[str]) -> None:
        self._streams: defaultdict[str, list[int]] = defaultdict(list)
        with psycopg.connect(dsn, autocommit=True) as connection:
            for task, position in connection.execute(
                "select originator_id::text, notification_id from taskledger.task_events"
                " where originator_id = any(%s::uuid[]) order by notification_id",
                [list(tasks)],
            ):
                self._streams[task].append(position)
            self.created = self._counted(connection, "TaskCreated")
            self.completed = self._counted(connection, "TaskCompleted")

    def version(self, task: str, at: int) -> int:
        return bisect_right(self._streams[task], at)

    @staticmethod
    def _counted(connection: psycopg.Connection, topic: str) -> Callable[[int], int]:
        found = connection.execute(
            "select notification_id from taskledger.task_events where topic = %s order by notification_id",
            [topic],
        ).fetchall()
        positions = [row[0] for row in found]
        return lambda at: bisect_right(positions, at)
