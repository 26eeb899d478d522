"""Who watches while the clients work: tailers that follow the log, and a camera on the read table."""

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

import httpx
import psycopg
from psycopg import IsolationLevel, sql

from tests.chaos.clients import place
from tests.chaos.evidence import Row, Snapshot

_LIVE: Final = """
select g.generation, coalesce(c.position, 0) from taskledger.projection_generations g
left join taskledger.checkpoints c on c.name = 'tasks/' || g.generation
where g.projection = 'tasks' and g.state = 'live'
"""
_PAGE: Final = 500
_IDLE_SECONDS: Final = 0.05


class Observer(ABC, threading.Thread):
    """Goes on after a lost connection where it was. What else it meets it keeps as `error`, and ends."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._done = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        while not self._done.is_set():
            try:
                self.watch()
            except (psycopg.OperationalError, httpx.TransportError):
                self._done.wait(0.2)
            except Exception as error:  # noqa: BLE001 (told by the campaign, whose evidence it spoils)
                self.error = error
                return

    def finish(self) -> None:
        self._done.set()
        self.join(30)

    @abstractmethod
    def watch(self) -> None:
        """Until `_done`. Raises what it cannot cope with."""


class Tailer(Observer):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.positions: list[int] = []

    def has_seen(self, position: int) -> bool:
        return self.error is not None or (bool(self.positions) and self.positions[-1] >= position)


class LogTailer(Tailer):
    """Reads the log table as any program with SELECT might: whatever lies above what it has seen."""

    def __init__(self, dsn: str) -> None:
        super().__init__("log")
        self._dsn = dsn

    def watch(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._done.is_set():
                rows = connection.execute(
                    "select notification_id from taskledger.task_events where notification_id > %s"
                    " order by notification_id limit %s",
                    [self.positions[-1] if self.positions else 0, _PAGE],
                ).fetchall()
                self.positions.extend(position for (position,) in rows)
                if len(rows) < _PAGE:
                    self._done.wait(_IDLE_SECONDS)


class FeedTailer(Tailer):
    """Follows `GET /events`, on whichever query API answers."""

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        super().__init__("feed")
        self._urls = urls
        self._random = random.Random(seed)
        self._next = "start"
        self.seen_ids: set[str] = set()

    def watch(self) -> None:
        with httpx.Client(trust_env=False, timeout=8) as http:
            while not self._done.is_set():
                url = self._random.choice(self._urls)
                answer = http.get(f"{url}/events", params={"after": self._next, "limit": 200})
                if not answer.is_success:
                    self._done.wait(0.2)
                    continue
                feed = answer.json()
                self.positions.extend(place(event["position"]) for event in feed["events"])
                self.seen_ids.update(str(event["task_id"]) for event in feed["events"])
                self._next = feed["next"]
                if not feed["events"]:
                    self._done.wait(4 * _IDLE_SECONDS)


class Camera(Observer):
    """Photographs the read table with its checkpoint, each time in one database snapshot."""

    def __init__(self, dsn: str, seed: int, every_seconds: Callable[[], float]) -> None:
        super().__init__("camera")
        self._dsn = dsn
        self._random = random.Random(seed)
        self._every_seconds = every_seconds
        self.snapshots: list[Snapshot] = []

    def watch(self) -> None:
        while not self._done.wait(self._random.uniform(0, 2 * self._every_seconds())):
            if (snapshot := photograph(self._dsn)) is not None:
                self.snapshots.append(snapshot)


def photograph(dsn: str) -> Snapshot | None:
    """None while there is no live generation."""
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        live = connection.execute(_LIVE).fetchone()
        if live is None:
            return None
        generation, checkpoint = live
        query = sql.SQL("select id::text, status, version, attempt, position from {}.tasks")
        schema = sql.Identifier(f"taskledger_read_g{generation}")
        found = connection.execute(query.format(schema)).fetchall()
        rows = {
            task: Row(status=status, version=version, attempt=attempt, position=position)
            for task, status, version, attempt, position in found
        }
        return Snapshot(time.monotonic_ns(), checkpoint, rows)
