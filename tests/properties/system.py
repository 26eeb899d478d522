"""The whole service in one process and one thread: its own decisions and folds, over a log, streams and
clocks that lie in memory. Whatever a process, a network or a clock can do between two of its steps is done
by leaving a step out, repeating it, or taking it on what was seen long ago."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from command_side.clock import DatabaseClock
from command_side.commands import FailTask, QueueDue, ReplaceEntry, TaskCommand
from command_side.dispatcher import outstanding
from command_side.dispatcher.outstanding import Row, recall, tasks_before, tasks_to_recall
from command_side.service import CommandService
from command_side.worker.starter import judge
from command_side.worker.streams import Entry, Stream
from events.group_commit import GroupCommit
from events.memory_log import MemoryLog
from events.task_state import TaskState
from projector import fold as projection
from projector.fold import TaskRow
from taskledger.redis import stream_key
from tests.chaos import evidence
from tests.chaos.evidence import Effect, LoggedEvent, Snapshot
from tests.chaos.model import TaskHistory
from tests.properties.steps import MAPPER, START, logged


@dataclass(slots=True)
class Clock:
    now: datetime = START

    def monotonic(self) -> float:
        return (self.now - START).total_seconds()

    def read(self) -> datetime:
        return self.now


@dataclass(slots=True)
class Streams:
    """Redis: entries by position until they are deleted, and the position published last. Delivers what is
    there as often as it is asked: acknowledgements are what workers fail to send."""

    entries: dict[int, Row] = field(default_factory=dict[int, Row])
    position: int = 0

    def publish(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.queued_position > self.position:
                self.entries[row.queued_position] = row
                self.position = row.queued_position

    def lose_everything(self) -> None:
        self.entries.clear()
        self.position = 0

    def read(self, kind: str) -> Entry | None:
        """The oldest."""
        for position, row in self.entries.items():
            if row.kind == kind:
                stream = Stream(
                    stream_key(row.queue, row.kind, row.priority), row.queue, row.kind, row.priority
                )
                return Entry(stream, f"{position}-1", row.task_id)
        return None

    def delete(self, entry: Entry) -> None:
        self.entries.pop(int(entry.id.partition("-")[0]), None)


class Dispatcher:
    """Relay, table `outstanding` and sweeper."""

    def __init__(self, log: MemoryLog, commands: CommandService, clock: Clock) -> None:
        self.streams = Streams()
        self.table: dict[UUID, Row] = {}
        self.checkpoint = 0
        self.believed: int | None = None
        """The position in Redis as this leader last saw or set it."""
        self._log = log
        self._commands = commands
        self._clock = clock

    async def relay(self, limit: int, *, dies_before_commit: bool = False) -> bool:
        """One batch: published, then committed. False: there was none."""
        if self.believed is None or self.streams.position < self.believed:
            # A new leader, or a Redis that lost its data: what is queued, in order.
            self.streams.publish(sorted(self._queued(), key=lambda row: row.queued_position))
            self.believed = self.streams.position
        events = await self._log.read_after(self.checkpoint, limit=limit)
        if not events:
            return False
        known = tasks_before(events)
        rows = {task: self.table[task] for task in known if task in self.table}
        recalled: dict[UUID, Row] = {}
        for task in tasks_to_recall(events, known - rows.keys()):
            row = recall(await self._log.read_stream(task), self.checkpoint, MAPPER.decode)
            if row is not None:
                recalled[task] = row
        changes = outstanding.fold(rows, events, MAPPER.decode, recalled)
        assert not changes.poison
        self.streams.publish(changes.queued_after(self.checkpoint))
        self.believed = None if dies_before_commit else self.streams.position
        if dies_before_commit:
            return True
        self.table.update((row.task_id, row) for row in changes.put)
        for task in changes.gone:
            del self.table[task]
        self.checkpoint = events[-1].id
        return True

    async def sweep(self, dead: set[str]) -> None:
        """Due tasks, the attempts of these holders, and holes; as far as the table knows of them."""
        now = self._clock.now
        targets: list[tuple[UUID, TaskCommand]] = []
        for row in self.table.values():
            if row.state in ("scheduled", "retrying") and row.due_at is not None and row.due_at <= now:
                targets.append((row.task_id, QueueDue()))
            elif row.state == "running" and row.holder in dead:
                targets.append((row.task_id, FailTask(row.attempt, cause="lost")))
            elif row.timeout_at is not None and row.timeout_at + timedelta(seconds=10) < now:
                targets.append((row.task_id, FailTask(row.attempt, cause="timeout")))
        holes = [
            row
            for row in self._queued()
            if row.queued_position <= self.streams.position
            and row.queued_position not in self.streams.entries
        ]
        targets.extend((row.task_id, ReplaceEntry(row.queued_position)) for row in holes)
        states = await self._commands.load([task for task, _ in targets])
        await self._commands.execute_each([(states[task], command) for task, command in targets])

    def _queued(self) -> list[Row]:
        return [row for row in self.table.values() if row.state == "queued"]


class Projector:
    def __init__(self, log: MemoryLog) -> None:
        self.rows: dict[UUID, TaskRow] = {}
        self.checkpoint = 0
        self._log = log

    async def project(self, limit: int) -> bool:
        recorded = await self._log.read_after(self.checkpoint, limit=limit)
        if not recorded:
            return False
        entries = [projection.Entry(e.id, e.recorded_at, MAPPER.decode(e)) for e in recorded]
        changes = projection.fold(
            entries, {task: self.rows[task] for task in projection.needed(entries) if task in self.rows}
        )
        self.rows.update(changes.inserted)
        self.rows.update(changes.updated)
        self.checkpoint = changes.position
        return True

    def row(self, task: UUID) -> evidence.Row | None:
        found = self.rows.get(task)
        return None if found is None else _row_of(found.state)

    def snapshot(self, at_ns: int) -> Snapshot:
        rows = {str(task): _row_of(row.state) for task, row in self.rows.items()}
        return Snapshot(at_ns, self.checkpoint, rows)


def _row_of(state: TaskState) -> evidence.Row:
    return {
        "status": state.status,
        "version": state.version,
        "attempt": state.attempt,
        "position": state.position,
    }


@dataclass(slots=True)
class Effects:
    """A resource outside that takes a fencing token with each effect."""

    seen: list[Effect] = field(default_factory=list[Effect])
    highest: dict[UUID, int] = field(default_factory=dict[UUID, int])

    def apply(self, attempt: TaskState) -> None:
        accepted = attempt.attempt >= self.highest.get(attempt.id, 0)
        if accepted:
            self.highest[attempt.id] = attempt.attempt
        self.seen.append(Effect(len(self.seen) + 1, str(attempt.id), attempt.attempt, accepted))


class System:
    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.clock = Clock()
        self.log = MemoryLog(clock=self.clock.read)
        clock = DatabaseClock(self.clock.monotonic)
        clock.observe(self.clock.now)
        self.commands = CommandService(self.log, GroupCommit(self.log), MAPPER, clock)
        self.dispatcher = Dispatcher(self.log, self.commands, self.clock)
        self.projector = Projector(self.log)
        self.effects = Effects()
        self.positions: list[int] = []
        self.logged: list[LoggedEvent] = []
        self.histories: dict[str, TaskHistory] = {}
        self.run = self._runner.run
        self.close = self._runner.close

    def look(self) -> None:
        """Takes in what was appended since the last look."""
        for event in self.run(self.log.read_after(len(self.positions), limit=1_000)):
            self.positions.append(event.id)
            if event.topic.startswith("Task"):
                self.logged.append(logged(MAPPER.decode(event), event.id))
                self.histories.setdefault(self.logged[-1].task, TaskHistory()).add(self.logged[-1])

    def worth_starting(self, entry: Entry, holder: str) -> TaskState | None:
        """As a worker judges it; what is not is deleted."""
        assert entry.task_id is not None
        state = self.run(self.commands.load([entry.task_id])).get(entry.task_id)
        if judge(entry, state, holder) == "start":
            return state
        self.dispatcher.streams.delete(entry)
        return None
