"""What must come true once the last fault is healed: L1 to L4."""

from collections.abc import Iterator
from typing import Final

from tests.chaos.facts import Facts

LEASES_PENDING: Final = 3
"""For how many lease times an entry may be one consumer's before somebody else has to have it."""
POOLED: Final = frozenset({"command-api", "query-api", "dispatcher", "worker"})
"""Connections of pools. A pool that grew under load shrinks after ten minutes only."""
POOL_SLACK: Final = 12
"""How many more of each may be open than at the start: two processes, whose pools grow from 2 to 8."""
OWN_SLACK: Final = 2
"""The same for connections that a process opens for itself: some only when they are needed."""
FILES_SLACK: Final = 16
"""How many more files one process may have open: the sockets of its pools."""
OPEN: Final = frozenset({"queued", "running", "cancelling", "retrying"})
"""States of the model that may not last. A schedule may lie ahead."""


def l1_everything_ends(facts: Facts) -> Iterator[str]:
    """Every task that is due has settled within the time allowed after the last heal."""
    drained = facts.evidence.drained
    listed = set(drained.open_tasks)
    for task in sorted(listed):
        yield f"{task} did not settle"
    for task, history in facts.tasks.items():
        status = history.state["status"] if history.state and history.flaw is None else None
        if status in OPEN and task not in listed:
            yield f"{task} is {status} at the end of the log"
    if drained.settled_ns is None:
        yield f"the tasks had not settled after {drained.allowed_seconds:g} s"
    elif drained.settled_ns - drained.last_heal_ns > drained.allowed_seconds * 1e9:
        took = (drained.settled_ns - drained.last_heal_ns) / 1e9
        yield f"the tasks took {took:.1f} s to settle, {drained.allowed_seconds:g} s are allowed"


def l2_projection_caught_up(facts: Facts) -> Iterator[str]:
    """The projection has reached the log's head."""
    if facts.evidence.drained.lag != 0:
        yield f"the projection is {facts.evidence.drained.lag} events behind"


def l3_nothing_is_stuck(facts: Facts) -> Iterator[str]:
    """No entry stays with a consumer that neither starts nor gives it up."""
    drained = facts.evidence.drained
    for entry in drained.pending:
        if entry["idle_ms"] > LEASES_PENDING * drained.lease_seconds * 1000:
            yield f"entry {entry['entry']} of {entry['stream']} is pending for {entry['idle_ms']} ms"


def l4_nothing_leaks(facts: Facts) -> Iterator[str]:
    """Connections, descriptors and streams are back to where they were."""
    drained = facts.evidence.drained
    for name, (before, after) in sorted(drained.connections.items()):
        if after > before + (POOL_SLACK if name in POOLED else OWN_SLACK):
            yield f"{after} connections of {name} are open, {before} were at the start"
    for process, (opened, open_now) in sorted(drained.fds.items()):
        if open_now > opened + FILES_SLACK:
            yield f"{process} has {open_now} files open, {opened} at the start"
    for stream, length in sorted(drained.stream_lengths.items()):
        if length > 0:
            yield f"{length} entries are left in {stream}"
