"""`taskledger rebuild`: the read tables anew from the log, beside the live ones, then switched.

The log up to where the live generation is now is folded stream by stream (projector.filling), what came
since is followed, parity is proved, and one transaction switches.
Nothing is re-run and nothing is published: only the fold is repeated. Reads go on meanwhile, all from
one generation or the other. A rebuild that dies leaves an unread generation, which the next one drops.
"""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final, TextIO

from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from events.codec import EventMapper
from events.errors import SchemaNotReady
from events.migrate import check_schema
from events.recorder import PostgresTaskRecorder
from events.tracking import check_log
from projector import generations
from projector.filling import Access, Progress, fill
from projector.follower import BATCH_EVENTS, Follower
from projector.generations import Generation
from projector.leadership import Leadership
from projector.parity import SHOWN, Snapshot, differences
from taskledger.postgres import SESSION, connect_sync
from taskledger.settings import Settings

MAINTENANCE: Final = f"{SESSION} -c statement_timeout=0 -c idle_in_transaction_session_timeout=0"
"""Comparing a big table takes as long as it takes, and holds up nobody."""
_SESSION: Final = f"{MAINTENANCE} -c synchronous_commit=off -c enable_seqscan=off"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    generation: int
    """Live from now on."""
    replaced: int | None
    """Retired: still kept up, and there to go back to, until it is pruned."""
    checkpoint: int
    differences: tuple[str, ...]
    """Where the replaced tables were not what the log says: the first 20. The log is the truth, so
    they do not stop the switch."""


def rebuild(dsn: str, *, progress: Progress | None = None, processes: int | None = None) -> Rebuilt:
    """By so many processes; None: one a core, and this one alone for a short log.

    Raises psycopg errors, SchemaNotReady, and FoldStopped at an event that this release cannot
    fold; the live generation is then as it was."""
    recorder = PostgresTaskRecorder(lambda: connect_sync(dsn, name="rebuild-read"))
    with (
        closing(recorder),
        connect_sync(dsn, name="rebuild", options=_SESSION) as connection,
        Leadership(dsn, name="rebuild-leader", idle_seconds=0) as leadership,
    ):
        check_schema(connection)
        generation = _begin(connection, leadership)
        try:
            filled = fill(
                Access(dsn, _SESSION),
                connection,
                generation,
                upto=_target(connection, recorder),
                processes=processes,
                progress=progress,
            )
            follower = Follower(connection, EventMapper(), replace(generation, checkpoint=filled))
            _catch_up(connection, follower, recorder, progress)
            found = _prove(dsn, connection, follower)
            replaced = _switch(connection, follower, recorder)
        except BaseException:
            if not connection.broken:
                generations.drop(connection, generation)
            raise
        follower.announce()
        return Rebuilt(generation.number, replaced, follower.checkpoint, tuple(found))


def drop_retired(dsn: str) -> list[int]:
    """Drops the retired generations and says which."""
    with connect_sync(dsn, name="prune", options=MAINTENANCE) as connection:
        return [generation.number for generation in generations.prune(connection)]


def rollback(dsn: str) -> int:
    """Makes the newest retired generation of this release's schema live again, at the checkpoint of
    the one it replaces, so that no reader sees an older state. Raises SchemaNotReady if there is none,
    LogRewound if it was folded from the log before a restore."""
    recorder = PostgresTaskRecorder(lambda: connect_sync(dsn, name="rollback-read"))
    with closing(recorder), connect_sync(dsn, name="rollback", options=_SESSION) as connection:
        check_schema(connection)
        retired = [g for g in generations.generations(connection) if g.state == "retired" and g.is_ours]
        if not retired:
            raise SchemaNotReady("there is no retired generation of this release's schema to go back to")
        check_log(connection, retired[-1].name)
        follower = Follower(connection, EventMapper(), retired[-1])
        _switch(connection, follower, recorder)
        follower.announce()
        return retired[-1].number


def _begin(connection: Connection[TupleRow], leadership: Leadership) -> Generation:
    """A new generation that no projector touches; drops those that dead rebuilds left behind."""
    with connection.transaction():
        generations.lock_generations(connection)
        for left in generations.generations(connection):
            if left.state == "building" and leadership.leads(left.number):
                generations.drop(connection, left)
                leadership.resign(left.number)
        generation = generations.create(connection, "building")
        leadership.leads(generation.number)
        return generation


def _catch_up(
    connection: Connection[TupleRow],
    follower: Follower,
    recorder: PostgresTaskRecorder,
    progress: Progress | None,
) -> None:
    """Until the live generation is no further than one batch ahead: proof and switch do the rest."""
    while (target := _target(connection, recorder)) - follower.checkpoint > BATCH_EVENTS:
        while follower.step(upto=target):
            if progress is not None:
                progress(follower.checkpoint, target)


def _target(connection: Connection[TupleRow], recorder: PostgresTaskRecorder) -> int:
    """Where the live generation is; the head of the log if there is none, or if the log was restored to
    an older state and ends before that."""
    live = generations.live(connection)
    head = recorder.max_notification_id() or 0
    return head if live is None else min(live.checkpoint, head)


def _prove(dsn: str, connection: Connection[TupleRow], follower: Follower) -> list[str]:
    """Compares all rows at one checkpoint: the live tables frozen in a snapshot, ours, which nobody
    else moves, brought to the very checkpoint of that snapshot."""
    with connect_sync(dsn, name="rebuild-parity", options=MAINTENANCE, autocommit=False) as frozen:
        frozen.isolation_level = IsolationLevel.REPEATABLE_READ
        frozen.read_only = True
        live = generations.live(frozen)
        if live is None:
            return []
        while follower.step(upto=live.checkpoint):
            continue
        if follower.checkpoint != live.checkpoint:
            return [f"the live generation was at position {live.checkpoint}, beyond the log"]
        old = Snapshot(frozen, live.number)
        with connection.transaction():
            connection.execute("set local enable_seqscan = on")
            return differences(old, Snapshot(connection, follower.generation.number), shown=SHOWN)


def _switch(
    connection: Connection[TupleRow], follower: Follower, recorder: PostgresTaskRecorder
) -> int | None:
    """One transaction: hold the live generation where it is, come level with it, take its place."""
    with connection.transaction():
        connection.execute("set local synchronous_commit = on")
        generations.lock_generations(connection)
        live = generations.live(connection)
        if live is None:
            follower.follow_within(recorder.max_notification_id() or 0)
        else:
            level = generations.lock_checkpoint(connection, live)
            follower.checkpoint = generations.lock_checkpoint(connection, follower.generation)
            follower.follow_within(level)
            generations.set_state(connection, live, "retired")
        follower.generation = replace(follower.generation, state="live")
        generations.set_state(connection, follower.generation, "live")
        return None if live is None else live.number


def run(settings: Settings, *, prune: bool = False, go_back: bool = False) -> int:
    """`taskledger rebuild [--prune|--rollback]`. Returns the exit code."""
    dsn = settings.require_postgres()
    out = sys.stdout
    if go_back:
        out.write(f"generation {rollback(dsn)} is live again\n")
        return 0
    done = rebuild(dsn, progress=Meter(sys.stderr) if sys.stderr.isatty() else None)
    if done.differences:
        out.write("the old tables were not what the log says; now they are:\n")
        out.writelines(f"  {line}\n" for line in done.differences)
    else:
        out.write("the old tables and the new ones were equal\n")
    out.write(f"generation {done.generation} is live, at position {done.checkpoint}\n")
    if prune:
        out.writelines(f"generation {number} dropped\n" for number in drop_retired(dsn))
    return 0


class Meter:
    """Progress for people, on one line of `out`."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._began = clock()

    def __call__(self, done: int, total: int) -> None:
        rate = done / max(self._clock() - self._began, 0.001)
        left = (total - done) / max(rate, 1)
        end = "\n" if done >= total else ""
        self._out.write(f"\rfolded {done:,} of {total:,} events, {rate:,.0f}/s, {left:,.0f} s left  {end}")
        self._out.flush()
