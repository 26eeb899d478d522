"""What a campaign leaves behind for the checker: the clients' history and what every store holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from tests.chaos.history import Entry


class Row(TypedDict):
    """A row of the read table, as far as it is checked."""

    status: str
    version: int
    attempt: int
    position: int


class PendingEntry(TypedDict):
    """An entry that a consumer was given and has not acknowledged."""

    stream: str
    entry: str
    idle_ms: int


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event of a task as stored. `type` is its topic; `mark`, of TaskCreated, is that in the payload."""

    position: int
    task: str
    version: int
    type: str
    data: dict[str, Any]
    tenant: str
    mark: str | None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """What the log remembers of one idempotency key."""

    tenant: str
    operation: str
    key: str
    task_ids: list[str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The read table and its checkpoint as of one database snapshot, taken during the run."""

    at_ns: int
    checkpoint: int
    rows: Mapping[str, Row]


@dataclass(frozen=True, slots=True)
class Effect:
    """One execution of a handler, in the order they reached the fenced resource, which accepts an attempt
    that is not lower than the highest it has accepted of the task."""

    seq: int
    task: str
    attempt: int
    accepted: bool


@dataclass(frozen=True, slots=True)
class FaultRecord:
    name: str
    planned: bool
    fired: bool
    at_ns: int
    detail: str


@dataclass(frozen=True, slots=True)
class Drained:
    """What was left once the faults were healed and the service had come to rest, or its time was up.

    Pairs are (before, after) the campaign. Times are monotonic; `settled_ns` is None if tasks stayed open.
    `stream_lengths` counts the entries of each stream in the end.
    """

    open_tasks: list[str]
    lag: int
    pending: list[PendingEntry]
    stream_lengths: Mapping[str, int]
    connections: Mapping[str, tuple[int, int]]
    fds: Mapping[str, tuple[int, int]]
    last_heal_ns: int
    settled_ns: int | None
    allowed_seconds: float
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """`log` holds the events of tasks, `positions` the position of every event, queues' too. The
    `tenant_tailers` see one tenant's events only. `foreign_ids` are tasks of another tenant, which no
    response may show, `seen_ids` the tasks that responses did show."""

    history: list[Entry]
    log: list[LoggedEvent]
    positions: list[int]
    keys: list[KeyRow]
    tailers: Mapping[str, list[int]]
    snapshots: list[Snapshot]
    effects: list[Effect]
    faults: list[FaultRecord]
    drained: Drained
    tenant_tailers: frozenset[str] = frozenset()
    foreign_ids: set[str] = field(default_factory=set[str])
    seen_ids: set[str] = field(default_factory=set[str])
