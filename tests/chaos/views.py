"""What must hold of the order that clients saw, of what they read, and of effects: I8 to I13."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tests.chaos.evidence import Row, Snapshot
from tests.chaos.facts import OUTSIDE, Facts, Operation, position_of
from tests.chaos.history import Entry
from tests.chaos.model import Shown
from tests.chaos.safety import COMMANDS


def i8_real_time_order(facts: Facts) -> Iterator[str]:
    """A task asked for after something was acknowledged comes after it in the log."""
    asked: dict[int, list[str]] = {}
    for intent in facts.intents.values():
        asked.setdefault(intent.first_invoked, []).append(intent.mark)
    by_op = {operation.invoked.op: operation for operation in facts.operations}
    known = 0
    for entry in facts.evidence.history:
        for mark in asked.get(entry.i, ()):
            for created in facts.creations.get(mark, ()):
                if created.position <= known:
                    yield (
                        f"task {created.task} (mark {mark}) is at position {created.position}; position"
                        f" {known} was acknowledged before it was asked for"
                    )
        if entry.type == "ok" and entry.op in by_op:
            known = max(known, _acknowledged_position(facts, by_op[entry.op], entry))


def _acknowledged_position(facts: Facts, operation: Operation, answer: Entry) -> int:
    """How far the log had got, as the log itself has it, when this answer was given."""
    created = [facts.tasks[task].events[0].position for task in operation.created if task in facts.tasks]
    if created:
        return max(created)
    if operation.invoked.f not in ("read", *COMMANDS):
        return 0
    shown = facts.at_version(operation.task, answer.value["version"])
    return 0 if shown is None else shown.position


def i9_reads_equal_the_fold(facts: Facts) -> Iterator[str]:
    """The read table is the fold of the log up to its checkpoint; what was read was one of its states."""
    yield from _wrong_snapshots(facts)
    for operation, answer in facts.answered("read"):
        told = answer.value
        shown = facts.at_version(operation.task, told["version"])
        if shown is None:
            if not facts.is_broken(operation.task):
                yield f"{operation}: {operation.task} has no version {told['version']}"
        elif _row_read(told) != row_of(shown, told["version"]):
            yield f"{operation}: {operation.task} was read as {told}; the log says {shown}"


def _wrong_snapshots(facts: Facts) -> Iterator[str]:
    checkpoint = 0
    for snapshot in sorted(facts.evidence.snapshots, key=lambda s: s.at_ns):
        if snapshot.checkpoint < checkpoint:
            yield f"the checkpoint fell from {checkpoint} to {snapshot.checkpoint}"
        checkpoint = snapshot.checkpoint
    expected: dict[str, Row] = {}
    remaining = iter(facts.log)
    event = next(remaining, None)
    for snapshot in sorted(facts.evidence.snapshots, key=lambda s: s.checkpoint):
        while event is not None and event.position <= snapshot.checkpoint:
            version = facts.version_at(event.task, event.position)
            shown = facts.at_version(event.task, version)
            if shown is not None:
                expected[event.task] = row_of(shown, version)
            event = next(remaining, None)
        if dict(snapshot.rows) != expected:
            yield from _differences(facts, snapshot, expected)


def _differences(facts: Facts, snapshot: Snapshot, expected: dict[str, Row]) -> Iterator[str]:
    for task in sorted(expected.keys() | snapshot.rows.keys()):
        found, folded = snapshot.rows.get(task), expected.get(task)
        if found != folded and not facts.is_broken(task):
            yield f"{task} at checkpoint {snapshot.checkpoint}: the table has {found}, the fold {folded}"


def _row_read(told: Mapping[str, Any]) -> Row:
    return {
        "status": told["status"],
        "version": told["version"],
        "attempt": told["attempt"],
        "position": position_of(told["position"]),
    }


def row_of(shown: Shown, version: int) -> Row:
    return {
        "status": shown.status,
        "version": version,
        "attempt": shown.attempt,
        "position": shown.position,
    }


def i10_tokens_are_honoured(facts: Facts) -> Iterator[str]:
    """A read that carries a position shows its task as of that position, or later."""
    for operation in facts.operations:
        if operation.invoked.f != "read" or operation.invoked.token is None:
            continue
        due = facts.version_at(operation.task, position_of(operation.invoked.token))
        if operation.outcome == "ok" and operation.value["version"] < due:
            yield (
                f"{operation}: {operation.task} was read at version {operation.value['version']};"
                f" at {operation.invoked.token} it was at {due}"
            )
        elif _is_not_found(operation.answer) and due > 0:
            yield f"{operation}: {operation.task} was not found at {operation.invoked.token}"


class _Seen(NamedTuple):
    version: int
    position: int


def i11_sessions_never_go_back(facts: Facts) -> Iterator[str]:
    """Within a session a task's version and position never fall, and a task once seen stays."""
    seen: dict[tuple[str, str], _Seen] = {}
    floors: dict[int, _Seen] = {}
    for entry in facts.evidence.history:
        if entry.f != "read" or entry.task is None:
            continue
        session = (entry.p, entry.task)
        if entry.type == "invoke":
            floors[entry.op] = seen.get(session, _Seen(0, 0))
            continue
        floor = floors.get(entry.op, _Seen(0, 0))
        if _is_not_found(entry) and floor.version > 0:
            yield f"session {entry.p}: {entry.task} was at version {floor.version}, then not found"
        if entry.type == "ok":
            now = _Seen(entry.value["version"], position_of(entry.value["position"]))
            if now.version < floor.version or now.position < floor.position:
                yield f"session {entry.p}: {entry.task} went from {floor} back to {now}"
            before = seen.get(session, now)
            seen[session] = _Seen(*map(max, before, now))


def _is_not_found(answer: Entry | None) -> bool:
    return answer is not None and answer.type == "fail" and str(answer.value) in ("404", "task_not_found")


def i12_effects_are_fenced(facts: Facts) -> Iterator[str]:
    """Accepted fencing tokens never fall; an attempt runs once, only if the log started it, and has run
    if the log says that it completed."""
    accepted: dict[str, int] = {}
    for effect in sorted(facts.evidence.effects, key=lambda e: e.seq):
        if effect.accepted:
            highest = accepted.get(effect.task, 0)
            if effect.attempt < highest:
                yield f"attempt {effect.attempt} of {effect.task} was accepted after attempt {highest}"
            accepted[effect.task] = max(effect.attempt, highest)
    yield from _executions_unlike_the_log(facts)


def _executions_unlike_the_log(facts: Facts) -> Iterator[str]:
    started = {(event.task, event.data["attempt"]) for event in facts.log if event.type == "TaskStarted"}
    ran = Counter((effect.task, effect.attempt) for effect in facts.evidence.effects)
    for (task, attempt), times in ran.items():
        if times > 1:
            yield f"attempt {attempt} of {task} ran {times} times"
        if (task, attempt) not in started:
            yield f"attempt {attempt} of {task} ran, the log never started it"
    for event in facts.log:
        if event.type == "TaskCompleted" and _has_handler(facts.mark_of(event.task)):
            attempt = event.data["attempt"]
            if (event.task, attempt) not in ran:
                yield f"attempt {attempt} of {event.task} completed without having run"


def _has_handler(mark: str | None) -> bool:
    return mark is not None and not mark.startswith(OUTSIDE)


def i13_tenants_are_apart(facts: Facts) -> Iterator[str]:
    """No response shows a task of another tenant."""
    foreign = facts.evidence.foreign_ids
    for task in sorted(foreign & facts.evidence.seen_ids):
        yield f"task {task} of another tenant was shown"
    for operation, answer in facts.answered():
        for task in sorted(foreign & _shown_ids(operation, answer)):
            yield f"{operation}: showed task {task} of another tenant"


def _shown_ids(operation: Operation, answer: Entry) -> set[str]:
    match operation.invoked.f:
        case "submit" | "batch":
            return set(operation.created)
        case "claim":
            return {claimed["id"] for claimed in answer.value["tasks"]}
        case "list":
            return set(answer.value["ids"])
        case _:
            return {operation.task or ""}
