"""A new generation from the log, up to one position, by several processes: each folds ranges of streams.

Nothing is read of the tables meanwhile, so that indexes can wait until the rows are there. A range's rows
and counters are stored in the one transaction that notes it as done (projector.plan): of a rebuild that is
killed, what was done stays done.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

from psycopg import Connection, Rollback
from psycopg.rows import TupleRow

from events.errors import CheckpointConflict, TaskledgerError
from events.tracking import advance
from projector import indexes, plan
from projector.bulk import fold_range
from projector.fold import Changes, FoldStopped
from projector.follower import NOT_APPLICABLE
from projector.plan import KeyRange, Plan
from projector.view import TasksView, schema_name
from taskledger.lifecycle import die_with_parent
from taskledger.postgres import connect_sync

MOST_PROCESSES: Final = 8

Progress = Callable[[int, int], None]
"""Called with how many events are folded, and how many are to be; first with what there is at the start."""


class RebuildInterrupted(TaskledgerError):  # noqa: N818  like its siblings, it says what happened
    """A process of the rebuild was ended from outside. What is done stays done."""

    code = "rebuild_interrupted"


@dataclass(frozen=True, slots=True)
class Access:
    """How a process reaches the database: it has connections of its own."""

    dsn: str
    options: str

    @contextmanager
    def connections(self) -> Generator[tuple[Connection[TupleRow], Connection[TupleRow]]]:
        """One to read the log, one to write rows. Neither is in anybody's way: they wait for locks as
        long as it takes."""
        options = f"{self.options} -c lock_timeout=0"
        with (
            connect_sync(self.dsn, name="rebuild-fold", options=options) as reader,
            connect_sync(self.dsn, name="rebuild-rows", options=options) as writer,
        ):
            yield reader, writer


@dataclass(frozen=True, slots=True)
class Done:
    """Of one range."""

    events: int
    stopped: tuple[int, str] | None = None
    """Position and reason of the first event that cannot be folded, if there is one: nothing is stored."""


def fill(
    access: Access,
    connection: Connection[TupleRow],
    work: Plan,
    *,
    checkpoint_name: str,
    processes: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Folds what is left of the plan and returns the checkpoint that the generation has then.

    0: a column cannot hold what an event says; the generation is as empty as in the beginning, and
    following from there names the event. Raises FoldStopped, RebuildInterrupted, CheckpointConflict where
    an event was parked meanwhile, and psycopg errors.
    """
    schema = schema_name(work.generation)
    try:
        stopped = _fold_all(access, connection, work, processes, progress)
    except NOT_APPLICABLE:
        with connection.transaction():
            connection.execute(
                f"truncate {schema}.tasks, {schema}.counts, {schema}.activity, {schema}.queues".encode()
            )
            plan.discard(connection, work.generation)
        indexes.build([connection], work.generation, work.later)
        return 0
    if stopped is not None:
        raise FoldStopped(*stopped)
    with access.connections() as two:
        indexes.build(two, work.generation, work.later)
    connection.execute(f"analyze {schema}.tasks".encode())
    with connection.transaction():
        advance(connection, checkpoint_name, 0, work.upto, at=work.at)
        if plan.parked_upto(connection, work.upto) != work.passed_over:
            # Whoever parks holds the checkpoint meanwhile: from here on, nobody can.
            raise CheckpointConflict("an event was parked, or is no longer")
        plan.discard(connection, work.generation)
    return work.upto


def _fold_all(
    access: Access,
    connection: Connection[TupleRow],
    work: Plan,
    processes: int | None,
    progress: Progress | None,
) -> tuple[int, str] | None:
    """Every range in its own transaction, in any order. The first event that cannot be folded, if any."""
    ranges = plan.left(connection, work.generation)
    events = plan.done(connection, work.generation)
    stopped: tuple[int, str] | None = None
    if progress is not None:
        progress(events, work.upto)
    wanted = min(processes_for(work.upto, processes), max(1, len(ranges)))
    each = _one_by_one(access, work, ranges) if wanted == 1 else _at_once(access, work, ranges, wanted)
    for done in each:
        events += done.events
        if done.stopped is not None and (stopped is None or done.stopped < stopped):
            stopped = done.stopped
        if progress is not None:
            progress(events, work.upto)
    return stopped


def processes_for(upto: int, asked: int | None) -> int:
    """One a core, if not asked for otherwise, and none without a range to fold."""
    return max(1, min(asked or _cores(), MOST_PROCESSES, upto // plan.RANGE_EVENTS + 1))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_by_one(access: Access, work: Plan, ranges: Sequence[KeyRange]) -> Generator[Done]:
    with access.connections() as (reader, writer):
        for keys in ranges:
            yield fold_one(reader, writer, work, keys)


def _at_once(access: Access, work: Plan, ranges: Sequence[KeyRange], processes: int) -> Generator[Done]:
    executor = ProcessPoolExecutor(
        processes, mp_context=get_context(_how()), initializer=_begin, initargs=(os.getpid(),)
    )
    with executor:
        try:
            futures = [executor.submit(_fold_one_apart, access, work, keys) for keys in ranges]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RebuildInterrupted(
                "a process of the rebuild was ended: what is folded is kept, run `taskledger rebuild` again"
            ) from error
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


def _fold_one_apart(access: Access, work: Plan, keys: KeyRange) -> Done:
    with access.connections() as (reader, writer):
        return fold_one(reader, writer, work, keys)


def fold_one(
    reader: Connection[TupleRow], writer: Connection[TupleRow], work: Plan, keys: KeyRange
) -> Done:
    """One transaction of `writer`: the range's rows, what it adds to the counters, and that it is done.
    Not folded again where it is done already. Raises as fold_range()."""
    with writer.transaction() as whole:
        events = plan.claim(writer, work.generation, keys)
        if events is not None:
            return Done(events)
        folded = fold_range(reader, writer, work, keys)
        if folded.stopped is not None:
            raise Rollback(whole)
        add_counters(writer, work.generation, folded.totals)
        plan.note(writer, work.generation, keys, folded.events)
    return Done(folded.events, folded.stopped)


def add_counters(writer: Connection[TupleRow], generation: int, totals: Changes) -> None:
    """Ranges add to the same counters: one at a time, as the last thing that each of them does."""
    writer.execute(f"lock table {schema_name(generation)}.counts in exclusive mode".encode())
    TasksView(generation).write(writer, totals)
