"""A relay one turn at a time, and what it leaves in Redis and in `outstanding`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from psycopg.rows import dict_row
from redis.asyncio import Redis

from command_side.dispatcher.relay import Relay, take_up
from command_side.dispatcher.status import DispatcherStatus
from command_side.dispatcher.store import OutstandingStore
from command_side.dispatcher.told import Told
from events.append import AppendCommand, Appended, StreamAppend
from events.codec import EventMapper
from events.task_state import SETTLED, TaskState
from taskledger.redis import position_key, stream_key
from tests.support import Service, eventually

Entries = list[tuple[str, str]]


class CountingTold(Told):
    """Knows how often it was said that the log has to be read."""

    looks = 0

    def look(self) -> None:
        self.looks += 1
        super().look()


@dataclass
class Bench:
    """What a dispatcher's process would build."""

    service: Service
    redis: Redis
    status: DispatcherStatus = field(default_factory=DispatcherStatus)
    told: list["CountingTold"] = field(default_factory=list["CountingTold"])
    """What each relay is told by."""

    @property
    def store(self) -> OutstandingStore:
        return OutstandingStore(self.service.pool)

    async def relay(self, store: OutstandingStore | None = None) -> Relay:
        """A new term. Nothing has been read yet."""
        self.told.append(CountingTold())
        return Relay(
            log=self.service.log,
            store=store or self.store,
            redis=self.redis,
            mapper=EventMapper(),
            identity=await take_up(self.store),
            status=self.status,
            told=self.told[-1],
        )

    async def caught_up(self, relay: Relay) -> Relay:
        """Turns until there is nothing more to do; then the table is brought up to date."""
        for _ in range(1_000):
            if not await relay.turn():
                await relay.commit()
                return relay
        raise AssertionError("the relay finds no end")

    async def started(self) -> Relay:
        return await self.caught_up(await self.relay())

    async def entries(self, queue: str = "default", kind: str = "sum", priority: str = "normal") -> Entries:
        found: Any = await self.redis.xrange(stream_key(queue, kind, priority))
        return [
            (entry, fields["task"]) for entry, fields in cast("list[tuple[str, dict[str, str]]]", found)
        ]

    async def position(self, queue: str = "default") -> str | None:
        value: Any = await self.redis.get(position_key(queue))
        return cast("str | None", value)

    async def eventually_entries(self, relay: Relay, expected: Entries, **lane: str) -> None:
        """Turns until the stream holds exactly these."""

        async def equal() -> bool:
            await relay.turn()
            found = await self.entries(**lane)
            assert found == expected, found
            return True

        await eventually(equal, "the stream's content")

    async def sql(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        async with self.service.pool.connection() as connection:
            await connection.execute(statement.encode(), parameters)

    async def table(self) -> dict[UUID, dict[str, Any]]:
        async with self.service.pool.connection() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            await cursor.execute("select * from taskledger.outstanding")
            return {row["task_id"]: row for row in await cursor.fetchall()}

    async def checkpoint(self) -> int:
        return (await self.store.identity()).checkpoint

    async def append_raw(self, task: TaskState, topic: str, state: bytes = b"{}") -> int:
        """An event that this release would not write. Returns its position."""
        from eventsourcing.persistence import StoredEvent

        event = StoredEvent(task.id, task.version + 1, topic, state)
        stream = StreamAppend(task.id, [event], task.tenant, task.kind, task.queue)
        (outcome,) = await self.service.commits.append_many([AppendCommand([stream])])
        assert isinstance(outcome, Appended)
        return outcome.last_position

    async def expected_table(self, tasks: Sequence[UUID]) -> dict[UUID, tuple[Any, ...]]:
        """What the log, read task by task, says that the table should hold."""
        states = await self.service.commands.load(tasks)
        return {task: as_tuple(state) for task, state in states.items() if state.status not in SETTLED}


def as_tuple(s: TaskState) -> tuple[Any, ...]:
    return (
        s.version,
        s.status,
        s.queue,
        s.kind,
        s.priority,
        s.queued_position,
        s.due_at,
        s.holder,
        s.attempt,
    )


def row_as_tuple(row: dict[str, Any]) -> tuple[Any, ...]:
    names = "version state queue kind priority queued_position due_at holder attempt"
    return tuple(row[name] for name in names.split())


def entry(task: TaskState) -> tuple[str, str]:
    return (f"{task.queued_position}-1", str(task.id))
