"""What must hold of the log, I1 to I7. Each function yields what contradicts its docstring."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from tests.chaos.evidence import LoggedEvent
from tests.chaos.facts import OUTSIDE, Facts, Operation, position_of
from tests.chaos.history import Entry
from tests.chaos.model import Shown, TaskHistory

COMMANDS: Final = ("complete", "fail", "cancel", "requeue", "discard")
KEYED: Final = {"submit": "create", "batch": "batch"}
"""Operations that take a key, with the name under which the log keeps it."""


def i1_acknowledged_is_logged(facts: Facts) -> Iterator[str]:
    """Whatever was acknowledged is in the log, as and where it was acknowledged."""
    for operation, answer in facts.answered("submit", "batch"):
        yield from _missing_creations(facts, operation, answer)
    for operation, answer in facts.answered("claim"):
        for claimed in answer.value["tasks"]:
            if not _has_started(facts, claimed["id"], claimed["attempt"]):
                yield f"{operation}: {claimed['id']} did not start attempt {claimed['attempt']} in the log"
    for operation, answer in facts.answered(*COMMANDS):
        if not facts.is_broken(operation.task):
            yield from _missing_effect(facts, operation, answer)


def _missing_creations(facts: Facts, operation: Operation, answer: Entry) -> Iterator[str]:
    if len(operation.created) != len(operation.marks):
        yield f"{operation}: {len(operation.marks)} asked for, {len(operation.created)} acknowledged"
        return
    last = 0
    for mark, task in zip(operation.marks, operation.created, strict=True):
        history = facts.tasks.get(task)
        first = history.events[0] if history is not None else None
        if first is None or (first.type, first.mark) != ("TaskCreated", mark):
            yield f"{operation}: task {task} with mark {mark} is not in the log"
            return
        last = first.position
    if answer.token is not None and position_of(answer.token) != last:
        yield f"{operation}: acknowledged at {answer.token}, the log has it at {last}"


def _has_started(facts: Facts, task: str, attempt: int) -> bool:
    history = facts.tasks.get(task)
    return history is not None and any(
        event.type == "TaskStarted" and event.data["attempt"] == attempt for event in history.events
    )


def _missing_effect(facts: Facts, operation: Operation, answer: Entry) -> Iterator[str]:
    told = answer.value
    shown = facts.at_version(operation.task, told["version"])
    if shown is None:
        yield f"{operation}: version {told['version']} of {operation.task} is not in the log"
    elif (shown.status, shown.attempt) != (told["status"], told["attempt"]):
        yield (
            f"{operation}: version {told['version']} of {operation.task} was acknowledged as"
            f" {told['status']}, attempt {told['attempt']}; it is {shown.status}, attempt {shown.attempt}"
        )
    elif answer.token is not None and position_of(answer.token) != shown.position:
        yield f"{operation}: acknowledged at {answer.token}, the log has it at {shown.position}"
    elif not _took_effect(operation, facts.tasks[operation.task or ""], shown, told["version"]):
        yield f"{operation}: version {told['version']} of {operation.task} does not show its effect"


def _took_effect(operation: Operation, history: TaskHistory, shown: Shown, version: int) -> bool:
    match operation.invoked.f:
        case "complete":
            return shown.event == "TaskCompleted" and shown.attempt == operation.invoked.value["attempt"]
        case "fail":
            return any(
                past.event in ("TaskFailed", "TaskCancelled")
                and past.attempt == operation.invoked.value["attempt"]
                for past in history.versions[:version]
            )
        case "cancel":
            return shown.cancelling or shown.status == "cancelled"
        case "requeue":
            return shown.event == "TaskRequeued"
        case _:
            return shown.status == "discarded"


def i2_logged_was_attempted(facts: Facts) -> Iterator[str]:
    """Whatever clients alone can cause was asked for and not refused."""
    for mark, creations in facts.creations.items():
        intent = facts.intents.get(mark)
        if intent is None:
            yield f"task {creations[0].task} with mark {mark!r} was never asked for"
        elif intent.is_refused:
            yield f"task {creations[0].task} with mark {mark} was refused, and is in the log"
        else:
            yield from _other_kind(intent.operations[0], creations[0])
    asked = Counter(
        (operation.invoked.f, operation.task)
        for operation in facts.operations
        if operation.outcome != "fail"
    )
    for task, history in facts.tasks.items():
        if task in facts.evidence.foreign_ids:
            continue
        for f, count in _caused_by_clients(history).items():
            if count > asked[f, task]:
                yield f"{task} has the effect of {f} {count} times, {asked[f, task]} were asked for"


def _other_kind(operation: Operation, created: LoggedEvent) -> Iterator[str]:
    if operation.invoked.f == "submit":
        asked, logged = operation.invoked.value.get("kind"), created.data.get("kind")
        if None not in (asked, logged) and asked != logged:
            yield f"task {created.task} is of kind {logged}, {operation} asked for {asked}"


def _caused_by_clients(history: TaskHistory) -> Counter[str]:
    """Operations that must have been asked for, with how often they took effect."""
    found: Counter[str] = Counter()
    outside = (history.events[0].mark or "").startswith(OUTSIDE)
    cancelling = False
    for event, shown in zip(history.events, history.versions, strict=False):
        match event.type:
            case "TaskCancelRequested":
                found["cancel"] += 1
            case "TaskCancelled":
                found["cancel"] += not cancelling
            case "TaskRequeued":
                found["requeue"] += 1
            case "TaskDiscarded":
                found["discard"] += 1
            case "TaskCompleted":
                found["complete"] += outside
            case "TaskFailed":
                found["fail"] += outside and event.data["cause"] == "error"
            case _:
                pass
        cancelling = shown.cancelling
    return found


def i3_wholly_in_or_out(facts: Facts) -> Iterator[str]:
    """A batch is in the log as a whole, in its order and in one piece, or not at all."""
    for operation in facts.operations:
        if operation.invoked.f != "batch":
            continue
        stored = [mark for mark in operation.marks if mark in facts.creations]
        if not stored:
            continue
        if len(stored) < len(operation.marks):
            missing = sorted(set(operation.marks) - set(stored))
            yield f"{operation}: {len(stored)} of {len(operation.marks)} are in the log, not {missing[0]}"
            continue
        positions = [facts.creations[mark][0].position for mark in operation.marks]
        if positions != list(range(positions[0], positions[0] + len(positions))):
            yield f"{operation}: its tasks are at positions {positions}"


def i4_one_task_a_key(facts: Facts) -> Iterator[str]:
    """An idempotency key, and an intended task, became one task at most; a repeat is told of the same."""
    for mark, creations in facts.creations.items():
        intent = facts.intents.get(mark)
        if intent is not None and len(creations) > intent.at_most:
            yield f"mark {mark} became {len(creations)} tasks: {[event.task for event in creations]}"
    remembered: dict[tuple[str, str], list[str]] = {}
    for row in facts.evidence.keys:
        if not facts.evidence.foreign_ids.isdisjoint(row.task_ids):
            continue
        if (row.operation, row.key) in remembered:
            yield f"key {row.key} of {row.operation} is stored twice"
        remembered[row.operation, row.key] = row.task_ids
        for task in row.task_ids:
            if task not in facts.tasks:
                yield f"key {row.key} stands for task {task}, which is not in the log"
    yield from _contradictory_answers(facts, remembered)


def _contradictory_answers(facts: Facts, remembered: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    fresh: set[tuple[str, str]] = set()
    for operation, answer in facts.answered(*KEYED):
        if operation.invoked.key is None:
            continue
        key = (KEYED[operation.invoked.f], operation.invoked.key)
        if sorted(remembered.get(key, ())) != sorted(operation.created):
            yield f"{operation}: key {key[1]} stands for {remembered.get(key)}, told {operation.created}"
        if answer.value.get("replayed") is False:
            if key in fresh:
                yield f"{operation}: key {key[1]} was answered twice as if it were new"
            fresh.add(key)


def i5_one_end(facts: Facts) -> Iterator[str]:
    """A task ends once, and again only after a requeue; nothing follows an end but requeue and discard."""
    for task, history in facts.tasks.items():
        if history.flaw is not None and history.flaw.after_end:
            yield f"{task} at position {history.flaw.position}: {history.flaw.text}"


def i6_legal_history(facts: Facts) -> Iterator[str]:
    """Versions run from 1 without gaps, transitions are legal, attempts rise by one and only the running
    one ends, failures lead where the retry rules say, and no command is torn apart."""
    for task, history in facts.tasks.items():
        if history.flaw is not None and not history.flaw.after_end:
            yield f"{task} at position {history.flaw.position}: {history.flaw.text}"
        elif history.flaw is None and history.state is not None and history.state["status"] == "failed":
            yield f"{task} at position {history.state['position']}: nothing follows its failure"


def i7_one_order(facts: Facts) -> Iterator[str]:
    """Positions are unique, and every follower is given all of them, each once, by rising position."""
    positions = set(facts.evidence.positions)
    if len(positions) < len(facts.evidence.positions):
        yield f"position {_repeated(facts.evidence.positions)} was given to two events"
    logged = [event.position for event in facts.log]
    if len(set(logged)) < len(logged):
        yield f"position {_repeated(logged)} holds two events of tasks"
    if not positions.issuperset(logged):
        yield f"position {min(set(logged) - positions)} is a task's and not the log's"
    foreign = {event.position for event in facts.log if event.task in facts.evidence.foreign_ids}
    for name, seen in facts.evidence.tailers.items():
        due = positions - foreign if name in facts.evidence.tenant_tailers else positions
        fall = next((b for a, b in pairwise(seen) if b <= a), None)
        if fall is not None:
            yield f"follower {name} was given position {fall} after a higher one, or twice"
        if missed := due - set(seen):
            yield f"follower {name} never saw position {min(missed)} ({len(missed)} missed)"
        if invented := set(seen) - due:
            yield f"follower {name} saw position {min(invented)}, which the log does not hold for it"


def _repeated(positions: list[int]) -> int:
    return Counter(positions).most_common(1)[0][0]
