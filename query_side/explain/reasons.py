"""Facts -> causes: the first is what holds the task now; those after it will hold it next, or are worth
knowing. Pure."""

from collections.abc import Iterator
from typing import assert_never

from query_side.explain.attempt import running, settled
from query_side.explain.causes import Cause
from query_side.explain.facts import Facts
from query_side.explain.waiting import waiting


def explain(facts: Facts) -> list[Cause]:
    """At least one."""
    return list(_causes(facts))


def _causes(facts: Facts) -> Iterator[Cause]:
    state = facts.state
    if facts.unreadable_position is not None:
        at = facts.token(facts.unreadable_position)
        yield Cause(
            "unreadable_event",
            f"This release cannot apply the task's event at {at}: nothing more is done with the task.",
            {"position": at},
            "Start the release that wrote the event; see docs/operations.md, a poison event.",
        )
    match state.status:
        case "scheduled" | "retrying" | "queued":
            yield from waiting(facts)
        case "running":
            yield from running(facts)
        case "completed" | "cancelled" | "discarded" | "dead":
            yield settled(facts)
        case _:
            assert_never(state.status)
