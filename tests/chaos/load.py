"""What is put on a service under chaos: clients and observers; and the room it takes before and after."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import httpx

from command_side.clock import DatabaseClock
from command_side.commands import CreateTask
from command_side.service import CommandService, Origin
from events.codec import EventMapper
from events.group_commit import GroupCommit
from events.postgres_log import PostgresLog
from taskledger.postgres import connect, make_pool
from tests.chaos import collect
from tests.chaos.clients import Ground, run_clients
from tests.chaos.cluster import Cluster
from tests.chaos.history import Recorder
from tests.chaos.observers import Camera, FeedTailer, LogTailer
from tests.chaos.servers import Servers
from tests.support import wait_until

WAITING: Final = ("scheduled", "queued", "running", "retrying")
BETWEEN: Final = 15
"""Operations that are acknowledged between one fault and the next: the service is at work again."""
FOREIGN: Final = 5


class Load:
    """Clients on an event loop in a thread of its own, and the observers."""

    def __init__(
        self,
        history: Path,
        dsn: str,
        cluster: Cluster,
        *,
        seed: int,
        pace_seconds: float,
        snapshot_seconds: float,
        poison: bool,
    ) -> None:
        self.history = history
        self._recorder = Recorder(history)
        urls = cluster.command_urls, cluster.query_urls
        self.ground = Ground(self._recorder, *urls, seed, pace_seconds, poison=poison)
        self.feed = FeedTailer(cluster.query_urls, seed)
        self.tailers = (LogTailer(dsn), self.feed)
        # Photographs get rarer as the table grows: all of them are kept.
        self.camera = Camera(dsn, seed, lambda: max(snapshot_seconds, len(self.ground.acknowledged) / 500))
        self._dsn = dsn
        self._query_urls = cluster.query_urls
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="clients", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for observer in (*self.tailers, self.camera):
            observer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Ends the clients, then the observers once they have seen the log's end. Raises what one of them
        raised. Twice is once."""
        self.ground.submitting = self.ground.working = False
        self._thread.join(60)
        self._await_tailers()
        for observer in (*self.tailers, self.camera):
            observer.finish()
        errors = [self._error, *(observer.error for observer in (*self.tailers, self.camera))]
        for error in errors:
            if error is not None:
                raise RuntimeError("a client or an observer failed, the campaign proves nothing") from error

    def await_progress(self, within: float) -> None:
        """Until clients have been acknowledged again. Raises AssertionError: the service has stalled."""
        before = len(self.ground.acknowledged)

        def more() -> bool:
            if self._error is not None:
                raise RuntimeError("a client failed") from self._error
            return len(self.ground.acknowledged) > before + BETWEEN

        wait_until(more, "tasks to be acknowledged again", within=within)

    def _await_tailers(self) -> None:
        head = collect.head(self._dsn)
        for tailer in self.tailers:
            try:
                wait_until(partial(tailer.has_seen, head), "the log's end")
            except AssertionError:
                return  # the checker tells what a tailer never saw

    def settled(self) -> bool:
        stats = self._stats()
        return stats["lag"] == 0 and not any(stats["by_status"][status] for status in WAITING)

    def lag(self) -> int:
        return int(self._stats()["lag"])

    def open_tasks(self) -> list[str]:
        found: list[str] = []
        for status in WAITING:
            answer = self._get("/tasks", status=status, limit=200)
            found += [str(task["id"]) for task in answer["tasks"]]
        return found

    def _stats(self) -> Any:
        return self._get("/stats")

    def _get(self, path: str, **params: Any) -> Any:
        """From whichever query API answers first."""

        def ask() -> Any:
            for url in self._query_urls:
                try:
                    answer = httpx.get(f"{url}{path}", params=params, timeout=8, trust_env=False)
                except httpx.TransportError:
                    continue
                if answer.is_success:
                    return answer.json()
            return None

        return wait_until(ask, f"an answer to {path}", within=20)

    def _run(self) -> None:
        try:
            asyncio.run(run_clients(self.ground))
        except BaseException as error:  # noqa: BLE001 (raised by whoever waits for us)
            self._error = error
        finally:
            self._recorder.close()


@dataclass(frozen=True, slots=True)
class Footprint:
    connections: Mapping[str, int]
    fds: Mapping[str, int]

    @classmethod
    def of(cls, servers: Servers, cluster: Cluster) -> "Footprint":
        pids = {name: cluster.pid(name) for name in cluster.names}
        return cls(
            collect.count_connections(servers.direct_dsn),
            {name: collect.count_fds(pid) for name, pid in pids.items() if pid is not None},
        )


async def create_foreign_tasks(dsn: str) -> set[str]:
    """Another tenant's, past the APIs: no response may ever show them."""
    async with make_pool(dsn, name="chaos", size=1) as pool:
        log = PostgresLog(pool, lambda: connect(dsn, name="chaos-append"))
        clock = DatabaseClock()
        async with pool.connection() as connection:
            row = await (await connection.execute("select clock_timestamp()")).fetchone()
            if row is not None:
                clock.observe(row[0])
        commits = GroupCommit(log)
        service = CommandService(log, commits, EventMapper(), clock)
        commands = [
            CreateTask(kind="mark", payload={"mark": f"foreign-{n}"}, tenant="elsewhere")
            for n in range(FOREIGN)
        ]
        created = await service.create(commands, Origin(tenant="elsewhere"))
        await commits.drain()
        await log.close()
    return {str(task.id) for task in created.tasks}
