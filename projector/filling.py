"""A new generation from the log, up to one position, by several processes: each folds ranges of streams.

Nothing is read of the tables meanwhile, so that indexes can wait until the rows are there. Counters come
back from every range and are stored, merged, in the transaction that sets the checkpoint.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from typing import Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from events.errors import CheckpointConflict
from events.tracking import advance
from projector import indexes
from projector.bulk import Folded, KeyRange, Work, fold_range
from projector.fold import Changes, FoldStopped
from projector.follower import NOT_APPLICABLE
from projector.generations import Generation
from projector.parking import Parked, parked
from projector.view import TasksView, schema_name
from taskledger.lifecycle import die_with_parent
from taskledger.postgres import connect_sync

RANGE_EVENTS: Final = 100_000
"""About as many events has a range: a second's work, and less log than that needs no other process."""
MOST_PROCESSES: Final = 8
_SAMPLED: Final = 50
"""Streams looked at for each range, to find where to cut."""

_LAST: Final = """
select notification_id, recorded_at from taskledger.task_events
where notification_id <= %s order by notification_id desc limit 1
"""
_SAMPLE: Final = """
select originator_id from taskledger.task_events where notification_id = any(%s) order by originator_id
"""
_FIRST_KEY: Final = 0
_LAST_KEY: Final = 2**128 - 1

Progress = Callable[[int, int], None]
"""Called with how many events are folded, and how many are to be."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a process reaches the database: it has connections of its own."""

    dsn: str
    options: str

    @contextmanager
    def connections(self) -> Generator[tuple[Connection[TupleRow], Connection[TupleRow]]]:
        """One to read the log, one to write rows."""
        with (
            connect_sync(self.dsn, name="rebuild-fold", options=self.options) as reader,
            connect_sync(self.dsn, name="rebuild-rows", options=self.options) as writer,
        ):
            yield reader, writer


def fill(
    access: Access,
    connection: Connection[TupleRow],
    generation: Generation,
    *,
    upto: int,
    processes: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Folds the log up to `upto` into the empty generation and returns the checkpoint it has then.

    0: a column cannot hold what an event says; the generation is as empty as before, and following from
    there names the event. Raises FoldStopped, CheckpointConflict where an event was parked meanwhile, and
    psycopg errors; the generation is then good for nothing but to be dropped.
    """
    last = connection.execute(_LAST, (upto,)).fetchone()
    if last is None:
        return 0
    position, at = int(last[0]), last[1]
    work = Work(generation.number, position, _parked_upto(connection, position))
    later = indexes.take_away(connection, generation.number)
    try:
        folded = _fold_all(access, connection, work, processes, progress)
    except NOT_APPLICABLE:
        connection.execute(f"truncate {schema_name(generation.number)}.tasks".encode())
        indexes.build([connection], later)
        return 0
    if folded.stopped is not None:
        raise FoldStopped(*folded.stopped)
    with access.connections() as two:
        indexes.build(two, later)
    connection.execute(f"analyze {schema_name(generation.number)}.tasks".encode())
    with connection.transaction():
        advance(connection, generation.name, 0, position, at=at)
        if _parked_upto(connection, position) != work.passed_over:
            # Whoever parks holds the checkpoint meanwhile: from here on, nobody can.
            raise CheckpointConflict("an event was parked, or is no longer")
        TasksView(generation.number).write(connection, folded.totals)
    return position


def _parked_upto(connection: Connection[TupleRow], position: int) -> Parked:
    return Parked(event for event in parked(connection).events if event.position <= position)


def _fold_all(
    access: Access,
    connection: Connection[TupleRow],
    work: Work,
    processes: int | None,
    progress: Progress | None,
) -> Folded:
    """Every range in its own transaction, in any order."""
    wanted = max(1, min(processes or _cores(), MOST_PROCESSES, work.upto // RANGE_EVENTS + 1))
    rounds = -(-work.upto // (RANGE_EVENTS * wanted))
    ranges = cut(connection, work.upto, wanted * rounds)
    total = Folded(Changes(work.upto))
    for folded in (
        _one_by_one(access, work, ranges) if wanted == 1 else _at_once(access, work, ranges, wanted)
    ):
        total.add(folded)
        if progress is not None:
            progress(total.events, work.upto)
    return total


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cut(connection: Connection[TupleRow], upto: int, parts: int) -> list[KeyRange]:
    """All keys there can be in `parts` ranges, or fewer, with about as many events each."""
    step = max(1, upto // (parts * _SAMPLED))
    sampled = connection.execute(_SAMPLE, (list(range(step, upto + 1, step)),)).fetchall()
    every = -(-len(sampled) // parts) or 1
    inner = {row[0].int for row in sampled[every::every]} - {_FIRST_KEY}
    bounds = [_FIRST_KEY, *sorted(inner), _LAST_KEY + 1]
    return [KeyRange(UUID(int=first), UUID(int=after - 1)) for first, after in pairwise(bounds)]


def _one_by_one(access: Access, work: Work, ranges: Sequence[KeyRange]) -> Generator[Folded]:
    with access.connections() as (reader, writer):
        for keys in ranges:
            yield fold_range(reader, writer, work, keys)


def _at_once(access: Access, work: Work, ranges: Sequence[KeyRange], processes: int) -> Generator[Folded]:
    executor = ProcessPoolExecutor(
        processes, mp_context=get_context(_how()), initializer=_begin, initargs=(os.getpid(),)
    )
    with executor:
        try:
            for future in as_completed([executor.submit(_fold_one, access, work, keys) for keys in ranges]):
                yield future.result()
        finally:
            executor.shutdown(cancel_futures=True)


def _how() -> str:
    """A fork need not import everything again, which takes a tenth of the time of a million events. It
    would hold for ever the locks of threads that it does not have: with threads, processes start afresh.
    psycopg knows a connection that another process has opened, and leaves it alone."""
    return "fork" if sys.platform == "linux" and threading.active_count() == 1 else "spawn"


def _begin(parent: int) -> None:
    """Ctrl-C reaches the whole group of the terminal: the parent ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)


def _fold_one(access: Access, work: Work, keys: KeyRange) -> Folded:
    with access.connections() as (reader, writer):
        return fold_range(reader, writer, work, keys)
