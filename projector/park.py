"""`taskledger park` and `taskledger unpark`: an operator's answer to an event that stops the projector.

Both hold the checkpoints of all generations while they work, so that a projector at work sees the one
state or the other, and everything they do is one transaction.
"""

import getpass
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from psycopg import Connection
from psycopg.rows import TupleRow

from events.append import RecordedEvent
from events.codec import EventMapper, is_task_topic
from events.errors import LogError, TaskledgerError
from events.migrate import check_schema
from events.recorder import PostgresTaskRecorder
from events.statements import READ_STREAM
from events.tracking import READ_CHANNEL
from projector import generations, parking
from projector.fold import FoldStopped, fold, needed
from projector.follower import NOT_APPLICABLE, decode
from projector.generations import Generation
from projector.keeping import forget_from
from projector.parking import Parked, ParkedEvent, parked
from projector.view import TasksView
from taskledger.postgres import SESSION, connect_sync
from taskledger.settings import Settings

_SESSION: Final = f"{SESSION} -c enable_seqscan=off"


class ParkRefused(TaskledgerError):  # noqa: N818  like its siblings, it says what happened
    """Nothing was changed: the event is not one to park, or not one that can be taken back."""

    code = "park_refused"


def park(dsn: str, position: int, *, reason: str, by: str) -> ParkedEvent:
    """Raises ParkRefused unless it is the very event at which the live generation stands, and one that
    cannot be applied; psycopg errors and SchemaNotReady."""
    recorder = PostgresTaskRecorder(lambda: connect_sync(dsn, name="park-read"))
    with closing(recorder), connect_sync(dsn, name="park", options=_SESSION) as connection:
        check_schema(connection)
        with connection.transaction():
            generation, checkpoint = _hold(connection)
            already = parked(connection)
            _refuse_unless_next(recorder, already, position, checkpoint)
            (event,) = recorder.select_recorded(position - 1, 1)
            if _applies(connection, generation, [event], already):
                raise ParkRefused(
                    f"the event at position {position} can be applied: there is nothing to park"
                )
            parking.add(connection, event, reason=reason, by=by)
            return next(e for e in parked(connection).events if e.position == position)


def unpark(dsn: str, position: int) -> ParkedEvent:
    """Applies the event, and what was passed over because of it, to every generation of this release's
    schema. Raises ParkRefused where they still cannot be applied; else as park()."""
    with connect_sync(dsn, name="unpark", options=_SESSION) as connection:
        check_schema(connection)
        with connection.transaction():
            _hold(connection)
            before = parked(connection)
            event = next((e for e in before.events if e.position == position), None)
            if event is None:
                raise ParkRefused(f"the event at position {position} is not parked")
            parking.remove(connection, position)
            forget_from(connection, position)
            for generation in generations.generations(connection):
                if generation.is_ours:
                    _catch_up(connection, generation, event, before.without(position))
            connection.execute("select pg_notify(%s, %s)", (READ_CHANNEL, str(position)))
        return event


def _hold(connection: Connection[TupleRow]) -> tuple[Generation, int]:
    """The live generation and its checkpoint. Until the end of the transaction no generation moves."""
    generations.lock_generations(connection)
    for generation in generations.generations(connection):
        generations.touch_checkpoint(connection, generation)
    live = generations.live(connection)  # with its checkpoint as it is now that it is held
    if live is None:
        raise ParkRefused("there are no read tables yet: the projector makes them")
    if not live.is_ours:
        raise ParkRefused("the read tables are another release's: run `taskledger rebuild`")
    return live, live.checkpoint


def _refuse_unless_next(
    recorder: PostgresTaskRecorder, already: Parked, position: int, checkpoint: int
) -> None:
    if any(event.position == position for event in already.events):
        raise ParkRefused(f"the event at position {position} is parked already")
    if position <= checkpoint:
        raise ParkRefused(f"the read tables stand at position {checkpoint}: that event has been applied")
    following = recorder.select_recorded(checkpoint, 1)
    if not following or following[0].id != position:
        raise ParkRefused(
            f"the read tables stand at position {checkpoint}: only the event that follows can be parked"
        )


def _applies(
    connection: Connection[TupleRow],
    generation: Generation,
    events: Sequence[RecordedEvent],
    passed_over: Parked,
) -> bool:
    """Whether it would go in, tried and rolled back."""
    try:
        with connection.transaction(force_rollback=True):
            _apply(connection, generation, events, passed_over)
    except (LogError, *NOT_APPLICABLE):
        return False
    return True


def _catch_up(
    connection: Connection[TupleRow], generation: Generation, event: ParkedEvent, passed_over: Parked
) -> None:
    cursor = connection.cursor(binary=True)
    rows = cursor.execute(READ_STREAM.encode(), (event.originator_id,)).fetchall()
    missed = [RecordedEvent(*row) for row in rows]
    missed = [e for e in missed if event.position <= e.id <= generation.checkpoint]
    try:
        _apply(connection, generation, missed, passed_over)
    except (LogError, *NOT_APPLICABLE) as error:
        what = str(error) if isinstance(error, FoldStopped) else f"{event}: {type(error).__name__}"
        raise ParkRefused(f"it cannot be applied yet, and stays parked: {what}") from error


def _apply(
    connection: Connection[TupleRow],
    generation: Generation,
    events: Sequence[RecordedEvent],
    passed_over: Parked,
) -> None:
    decoded = decode(events, EventMapper(), passed_over)
    if decoded.stopped is not None:
        raise decoded.stopped
    if decoded.entries:
        view = TasksView(generation.number)
        view.write(connection, fold(decoded.entries, view.load(connection, needed(decoded.entries))))


def run(settings: Settings, *, position: int, reason: str = "", by: str | None = None) -> int:
    """`taskledger park`, and without a reason `taskledger unpark`. Returns the exit code."""
    dsn = settings.require_postgres()
    if reason:
        event = park(dsn, position, reason=reason, by=by or _login())
        what = "its task stays in the read tables as it was before" if _is_task(event) else "passed over"
        line = f"parked: {event}; {what}. `taskledger unpark {position}` takes it back"
    else:
        line = f"applied, with what came after it: {unpark(dsn, position)}"
        if settings.projections:
            line += ". Now run `taskledger rebuild --projection …` for each tally that had passed it over"
    sys.stdout.write(f"{line}\n")
    return 0


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an id without a name, as containers have
        return str(os.getuid())


def _is_task(event: ParkedEvent) -> bool:
    return is_task_topic(event.topic)
