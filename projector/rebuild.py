"""`taskledger rebuild`: the read tables anew from the log, beside the live ones, then switched.

The log up to where the live generation is now is folded stream by stream (projector.filling), what came
since is followed, parity is proved, and one transaction switches.
Nothing is re-run and nothing is published: only the fold is repeated. Reads go on meanwhile, all from
one generation or the other. A rebuild that dies leaves an unread generation, which the next one resumes.
"""

from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Final

import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.rows import TupleRow

from events.codec import EventMapper
from events.errors import SchemaNotReady
from events.migrate import check_schema
from events.recorder import PostgresTaskRecorder
from events.tracking import check_log
from projector import generations, plan
from projector.definition import Definition
from projector.filling import Access, Progress, RebuildInterrupted, fill, processes_for
from projector.follower import BATCH_EVENTS
from projector.generations import Generation
from projector.kept import READ_TABLES, Following, Kept
from projector.leadership import Leadership
from projector.parity import Parity, Snapshot, compare
from projector.resume import Begun, Say, begin
from taskledger.postgres import SESSION, connect_sync

MAINTENANCE: Final = f"{SESSION} -c statement_timeout=0 -c idle_in_transaction_session_timeout=0"
"""Comparing a big table takes as long as it takes, and holds up nobody."""
_SESSION: Final = f"{MAINTENANCE} -c synchronous_commit=off -c enable_seqscan=off"


def _silent(_line: str) -> None:
    """Nobody looks on."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    generation: int
    """Live from now on."""
    replaced: int | None
    """Retired: still kept up, and there to go back to, until it is pruned."""
    checkpoint: int
    parity: Parity | None
    """How the replaced tables compare at one checkpoint. The log is the truth, so that differences do not
    stop the switch. None: there was nothing to compare with."""
    compared_at: int = 0

    @property
    def differences(self) -> tuple[str, ...]:
        """The first 20 places where the replaced tables were not what the log says."""
        return () if self.parity is None else tuple(self.parity.differences)


def rebuild(
    dsn: str,
    kept: Kept = READ_TABLES,
    *,
    progress: Progress | None = None,
    processes: int | None = None,
    say: Say = _silent,
) -> Rebuilt:
    """By so many processes; None: one a core, and this one alone for a short log.

    Raises psycopg errors, SchemaNotReady, and FoldStopped at an event that this release cannot
    fold; the live generation is then as it was. What is interrupted (KeyboardInterrupt, RebuildInterrupted,
    a lost connection, SIGKILL) stays for the next one to resume."""
    recorder = PostgresTaskRecorder(lambda: connect_sync(dsn, name="rebuild-read"))
    with (
        closing(recorder),
        connect_sync(dsn, name="rebuild", options=_SESSION) as connection,
        Leadership(dsn, name="rebuild-leader", idle_seconds=0) as leadership,
    ):
        check_schema(connection)
        begun = begin(connection, leadership, kept.definition, say)
        generation = begun.generation
        try:
            target = _target(connection, recorder, kept.definition)
            filled = _fill(
                dsn, connection, begun, kept, target, processes=processes, progress=progress, say=say
            )
            follower = kept.follow(connection, EventMapper(), replace(generation, checkpoint=filled))
            _catch_up(connection, follower, recorder, progress)
            parity = _prove(dsn, connection, follower, kept)
            compared_at = follower.checkpoint
            replaced = _switch(connection, follower, recorder)
        except (KeyboardInterrupt, RebuildInterrupted, psycopg.errors.LockNotAvailable):
            say(f"generation {generation.number} is kept: the next `taskledger rebuild` resumes it")
            raise
        except BaseException:
            _give_up(connection, leadership, generation)
            raise
        follower.announce()
        return Rebuilt(generation.number, replaced, follower.checkpoint, parity, compared_at)


def _fill(
    dsn: str,
    connection: Connection[TupleRow],
    begun: Begun,
    kept: Kept,
    target: int,
    *,
    processes: int | None,
    progress: Progress | None,
    say: Say,
) -> int:
    """By ranges of streams, as far as that is not done. Returns the generation's checkpoint."""
    generation, work = begun.generation, begun.plan
    if generation.checkpoint:
        say(_resuming(generation.number, generation.checkpoint, max(target, generation.checkpoint)))
        return generation.checkpoint
    if not kept.by_streams:
        return 0
    if work is None:
        wanted = processes_for(target, processes)
        work = plan.make(connection, generation.number, upto=target, processes=wanted)
    else:
        say(_resuming(generation.number, plan.done(connection, generation.number), work.upto))
    if work is None:
        return 0
    access = Access(dsn, _SESSION)
    return fill(
        access, connection, work, checkpoint_name=generation.name, processes=processes, progress=progress
    )


def _resuming(generation: int, done: int, total: int) -> str:
    return f"resuming generation {generation}: {done:,} of {total:,} events are folded"


def _give_up(connection: Connection[TupleRow], leadership: Leadership, generation: Generation) -> None:
    """Drops it, unless the database is gone, or another rebuild has it by now, as it may where the
    connection that leads was lost."""
    with suppress(psycopg.OperationalError, psycopg.InterfaceError):
        leadership.check()
        generations.drop(connection, generation)


def drop_retired(dsn: str, kept: Kept = READ_TABLES) -> list[int]:
    """Drops the retired generations, and those that dead rebuilds have left, and says which."""
    with (
        connect_sync(dsn, name="prune", options=MAINTENANCE) as connection,
        Leadership(dsn, name="prune-leader", idle_seconds=0) as leadership,
    ):
        dropped = generations.prune(connection, kept.definition)
        for left in generations.generations(connection, kept.definition):
            if left.state == "building" and leadership.leads(left.number):
                generations.drop(connection, left)
                dropped.append(left)
        return [generation.number for generation in dropped]


def rollback(dsn: str, kept: Kept = READ_TABLES) -> int:
    """Makes the newest retired generation of this release's schema live again, at the checkpoint of
    the one it replaces, so that no reader sees an older state. Raises SchemaNotReady if there is none,
    LogRewound if it was folded from the log before a restore."""
    recorder = PostgresTaskRecorder(lambda: connect_sync(dsn, name="rollback-read"))
    with closing(recorder), connect_sync(dsn, name="rollback", options=_SESSION) as connection:
        check_schema(connection)
        there = generations.generations(connection, kept.definition)
        retired = [g for g in there if g.state == "retired" and g.is_ours]
        if not retired:
            raise SchemaNotReady("there is no retired generation of this release's schema to go back to")
        check_log(connection, retired[-1].name)
        follower = kept.follow(connection, EventMapper(), retired[-1])
        _switch(connection, follower, recorder)
        follower.announce()
        return retired[-1].number


def _catch_up(
    connection: Connection[TupleRow],
    follower: Following,
    recorder: PostgresTaskRecorder,
    progress: Progress | None,
) -> None:
    """Until the live generation is no further than one batch ahead: proof and switch do the rest."""
    while (
        target := _target(connection, recorder, follower.generation.definition)
    ) - follower.checkpoint > BATCH_EVENTS:
        while follower.step(upto=target):
            if progress is not None:
                progress(follower.checkpoint, target)


def _target(
    connection: Connection[TupleRow], recorder: PostgresTaskRecorder, definition: Definition
) -> int:
    """Where the live generation is; the head of the log if there is none, or if the log was restored to
    an older state and ends before that."""
    live = generations.live(connection, definition)
    head = recorder.max_notification_id() or 0
    return head if live is None else min(live.checkpoint, head)


def _prove(dsn: str, connection: Connection[TupleRow], follower: Following, kept: Kept) -> Parity | None:
    """Compares all rows at one checkpoint: the live tables frozen in a snapshot, ours, which nobody
    else moves, brought to the very checkpoint of that snapshot."""
    with connect_sync(dsn, name="rebuild-parity", options=MAINTENANCE, autocommit=False) as frozen:
        frozen.isolation_level = IsolationLevel.REPEATABLE_READ
        frozen.read_only = True
        live = generations.live(frozen, kept.definition)
        if live is None:
            return None
        while follower.step(upto=live.checkpoint):
            continue
        if follower.checkpoint != live.checkpoint:
            beyond = f"the live generation was at position {live.checkpoint}, beyond the log"
            return Parity(count=1, differences=[beyond])
        old = Snapshot(frozen, live)
        with connection.transaction():
            connection.execute("set local enable_seqscan = on")
            return compare(old, Snapshot(connection, follower.generation), kept.tables)


def _switch(
    connection: Connection[TupleRow], follower: Following, recorder: PostgresTaskRecorder
) -> int | None:
    """One transaction: hold the live generation where it is, come level with it, take its place."""
    with connection.transaction():
        connection.execute("set local synchronous_commit = on")
        generations.lock_generations(connection)
        live = generations.live(connection, follower.generation.definition)
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
