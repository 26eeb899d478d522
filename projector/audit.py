"""Whether the history of one aggregate is one that the rules of events.task_state allow. Pure."""

from collections.abc import Iterator, Sequence

from events.errors import UndecodableEvent
from events.records import EventRecord
from events.task_events import TaskDeadLettered, TaskEvent, TaskStarted
from events.task_state import TRANSITIONS, TaskState, evolve
from projector.fold import Entry


def audit(entries: Sequence[Entry]) -> Iterator[str]:
    """What is wrong with the events of one aggregate, given by rising version; ends at a gap, since
    nothing can be said about what comes after it."""
    state: TaskState | None = None
    version = position = 0
    for entry in entries:
        event = entry.event
        if event is None:
            continue
        if event.originator_version != version + 1:
            yield f"version {event.originator_version} follows {version}"
            return
        if entry.position <= position:
            yield f"version {event.originator_version} lies before the version it follows"
        version, position = event.originator_version, entry.position
        if not isinstance(event, TaskEvent):
            continue
        try:
            after = evolve(state, event, at=entry.at, position=entry.position)
        except UndecodableEvent as error:
            yield str(error)
            return
        yield from _step(state, event, after)
        state = after


def _step(before: TaskState | None, event: TaskEvent, after: TaskState) -> Iterator[str]:
    status = "new" if before is None else before.status
    allowed_from, allowed_to = TRANSITIONS[event.TOPIC]
    if status not in allowed_from or after.status not in allowed_to:
        yield f"{event.TOPIC} at version {event.originator_version} cannot follow {status}"
    attempts = 0 if before is None else before.attempt
    expected = attempts + 1 if isinstance(event, TaskStarted) else attempts
    found = _attempt(event)
    if found is not None and found != expected:
        yield f"{event.TOPIC} at version {event.originator_version} has attempt {found}, not {expected}"


def _attempt(event: EventRecord) -> int | None:
    if isinstance(event, TaskDeadLettered):
        return event.attempts
    attempt: int | None = getattr(event, "attempt", None)
    return attempt
