"""A small campaign without a flaw, written by hand: every kind of operation, every way a task can go."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.chaos.evidence import (
    Drained,
    Effect,
    Evidence,
    FaultRecord,
    KeyRow,
    LoggedEvent,
    Row,
    Snapshot,
)
from tests.chaos.history import Entry, Kind
from tests.chaos.model import fold

SECOND = 1_000_000_000
LATER = "2026-11-23T12:00:05Z"
FOREIGN = "task-of-another-tenant"


class Clients:
    """Writes the history."""

    def __init__(self) -> None:
        self.history: list[Entry] = []
        self._ops = 0

    def ask(self, p: str, f: str, **asked: Any) -> int:
        self._ops += 1
        self._note(p, "invoke", f, self._ops, **asked)
        return self._ops

    def answer(self, op: int, kind: Kind, **told: Any) -> None:
        (asked,) = (entry for entry in self.history if (entry.op, entry.type) == (op, "invoke"))
        told.setdefault("task", asked.task)
        self._note(asked.p, kind, asked.f, op, key=asked.key, **told)

    def entries(self) -> list[Entry]:
        return [replace(entry, i=n) for n, entry in enumerate(self.history)]

    def _note(self, p: str, kind: Kind, f: str, op: int, **given: Any) -> None:
        values: dict[str, Any] = {"task": None, "key": None, "value": None, "token": None, **given}
        self.history.append(Entry(0, p, kind, f, op, mono_ns=len(self.history) * SECOND, **values))


class Story(Clients):
    """Clients, a log and handlers, told step by step. What else evidence holds is derived from the log in
    the end, so that a flaw put into the story is a flaw in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[LoggedEvent] = []
        self.keys: list[KeyRow] = []
        self.effects: list[Effect] = []
        self.other_positions: list[int] = []
        self.head = 0

    def submit(self, task: str, mark: str, *, key: str | None = None, **created: Any) -> None:
        """Asked for, stored and acknowledged."""
        op = self.ask(
            "client", "submit", key=key, value={"mark": mark, "kind": created.get("kind", "mark")}
        )
        self.create(task, mark, key=key, **created)
        self.answer(op, "ok", task=task, token=self.token, value={"replayed": False})

    def command(self, task: str, f: str, happens: Callable[[], None], **asked: Any) -> None:
        op = self.ask("client", f, task=task, value=asked or None)
        happens()
        self.answer(op, "ok", token=self.token, value=self.told(task))

    def read(self, session: str, task: str, *, token: str | None = None) -> None:
        op = self.ask(session, "read", task=task, token=token)
        shown = fold(self.log)[task].versions[-1]
        self.answer(op, "ok", value={**self.told(task), "position": f"{shown.position}.abcdefgh"})

    def told(self, task: str) -> dict[str, Any]:
        versions = fold(self.log)[task].versions
        return {"status": versions[-1].status, "version": len(versions), "attempt": versions[-1].attempt}

    @property
    def token(self) -> str:
        return f"{self.head}.abcdefgh"

    def event(self, task: str, name: str, *, mark: str | None = None, **data: Any) -> None:
        self.head += 1
        version = 1 + sum(event.task == task for event in self.log)
        tenant = "other" if task == FOREIGN else "default"
        self.log.append(LoggedEvent(self.head, task, version, name, data, tenant, mark))

    def create(self, task: str, mark: str, *, key: str | None = None, **data: Any) -> None:
        self.event(task, "TaskCreated", mark=mark, **{"kind": "mark", **data})
        if key is not None:
            self.keys.append(KeyRow("default", "create", key, [task]))

    def start(self, task: str, attempt: int = 1, *, runs: bool = True) -> None:
        self.event(task, "TaskStarted", attempt=attempt, holder="h", worker="w")
        if runs:
            self.run(task, attempt)

    def run(self, task: str, attempt: int, *, accepted: bool = True) -> None:
        self.effects.append(Effect(len(self.effects) + 1, task, attempt, accepted))

    def complete(self, task: str, attempt: int = 1) -> None:
        self.event(task, "TaskCompleted", attempt=attempt)

    def work(self, task: str, attempt: int = 1) -> None:
        self.start(task, attempt)
        self.complete(task, attempt)

    def die(self, task: str, attempt: int = 1) -> None:
        self.event(task, "TaskFailed", attempt=attempt, cause="error")
        self.event(task, "TaskDeadLettered", reason="attempts_exhausted", attempts=attempt)

    def lose(self, task: str, attempt: int = 1) -> None:
        self.event(task, "TaskFailed", attempt=attempt, cause="lost", counted=False)
        self.event(task, "TaskQueued", reason="lost")

    def amend(self, f: str, kind: Kind, of: str, **changes: Any) -> None:
        """Changes the one such entry of the task."""
        (index,) = (
            n for n, entry in enumerate(self.history) if (entry.f, entry.type, entry.task) == (f, kind, of)
        )
        self.history[index] = replace(self.history[index], **changes)

    def amend_event(self, task: str, name: str, **changes: Any) -> None:
        """Changes the last such event of the task; `data` is merged."""
        index = max(n for n, e in enumerate(self.log) if (e.task, e.type) == (task, name))
        data = {**self.log[index].data, **changes.pop("data", {})}
        self.log[index] = replace(self.log[index], data=data, **changes)

    def forget(self, task: str, beyond_version: int = 0) -> None:
        """The log, and what ran, without the task's later events."""
        kept = [e for e in self.log if e.task != task or e.version <= beyond_version]
        started = {(e.task, e.data["attempt"]) for e in kept if e.type == "TaskStarted"}
        self.log = kept
        self.effects = [e for e in self.effects if (e.task, e.attempt) in started]

    def evidence(self, **changes: Any) -> Evidence:
        log = sorted(self.log, key=lambda event: event.position)
        positions = sorted([event.position for event in log] + self.other_positions)
        values: dict[str, Any] = {
            "history": self.entries(),
            "log": log,
            "positions": positions,
            "keys": self.keys,
            "tailers": {name: list(positions) for name in ("feed", "projector")},
            "snapshots": [snapshot(log, self.head * n // 4, at_ns=n) for n in range(5)],
            "effects": self.effects,
            "faults": [FaultRecord("worker killed", planned=True, fired=True, at_ns=1, detail="")],
            "drained": DRAINED,
            "foreign_ids": {FOREIGN},
            "seen_ids": {event.task for event in log} - {FOREIGN},
        }
        return Evidence(**{**values, **changes})


DRAINED = Drained(
    open_tasks=[],
    lag=0,
    pending=[{"stream": "tl:{default}:mark", "entry": "9-1", "idle_ms": 100}],
    stream_lengths={"tl:{default}:mark": 0},
    connections={"worker": (4, 5), "dispatcher-append": (1, 1)},
    fds={"worker-0": (30, 30)},
    last_heal_ns=100 * SECOND,
    settled_ns=103 * SECOND,
    allowed_seconds=10.0,
    lease_seconds=1.5,
)


def snapshot(log: list[LoggedEvent], checkpoint: int, *, at_ns: int) -> Snapshot:
    rows: dict[str, Row] = {}
    for task, history in fold(event for event in log if event.position <= checkpoint).items():
        if history.versions:
            last = history.versions[-1]
            rows[task] = {
                "status": last.status,
                "version": len(history.versions),
                "attempt": last.attempt,
                "position": last.position,
            }
    return Snapshot(at_ns, checkpoint, rows)


def good_story() -> Story:
    story = Story()
    _submissions(story)
    _ends(story)
    _unknown_outcomes(story)
    _batches(story)
    _outside(story)
    for n in range(30):  # sessions that read, with and without a token
        story.read(f"session{n % 2}", "plain", token=story.token if n % 3 else None)
    return story


def _submissions(story: Story) -> None:
    story.submit("plain", "mark-plain", key="key-plain")
    story.read("session0", "plain")
    story.work("plain")
    story.submit("unkeyed", "mark-unkeyed")
    story.work("unkeyed")
    story.submit("later", "mark-later", key="key-later", scheduled=True, run_at=LATER)
    story.event("later", "TaskQueued", reason="due")
    story.work("later")
    story.event(FOREIGN, "TaskCreated", mark="mark-foreign", kind="mark")
    story.event(FOREIGN, "TaskCancelled")
    story.head += 1  # a queue was paused
    story.other_positions.append(story.head)
    op = story.ask("client", "submit", key="key-refused", value={"mark": "mark-refused", "kind": "mark"})
    story.answer(op, "fail", value="invalid_request")


def _ends(story: Story) -> None:
    story.submit("flaky", "mark-flaky", key="key-flaky", max_attempts=3)
    story.start("flaky")
    story.event("flaky", "TaskFailed", attempt=1, cause="error", retry_at=LATER)
    story.event("flaky", "TaskQueued", reason="retry")
    story.start("flaky", 2)
    story.lose("flaky", 2)
    story.work("flaky", 3)
    story.submit("dead", "mark-dead", key="key-dead", max_attempts=1)
    story.start("dead")
    story.die("dead")
    story.submit("revived", "mark-revived", key="key-revived", max_attempts=1)
    story.start("revived")
    story.die("revived")
    story.command("revived", "requeue", lambda: story.event("revived", "TaskRequeued"))
    story.work("revived", 2)
    story.submit("cancelled", "mark-cancelled", key="key-cancelled")
    story.command("cancelled", "cancel", lambda: story.event("cancelled", "TaskCancelled"))
    story.submit("stopped", "mark-stopped", key="key-stopped")
    story.start("stopped")
    story.command("stopped", "cancel", lambda: story.event("stopped", "TaskCancelRequested"))
    story.event("stopped", "TaskCancelled")
    story.command("stopped", "discard", lambda: story.event("stopped", "TaskDiscarded"))


def _unknown_outcomes(story: Story) -> None:
    story.ask("client", "submit", key="key-vanished", value={"mark": "mark-vanished", "kind": "mark"})
    first = story.ask("client", "submit", key="key-retried", value={"mark": "mark-retried", "kind": "mark"})
    story.create("retried", "mark-retried", key="key-retried")
    token = story.token
    story.answer(first, "info", value="reset")
    again = story.ask("client", "submit", key="key-retried", value={"mark": "mark-retried", "kind": "mark"})
    story.answer(again, "ok", task="retried", token=token, value={"replayed": True})
    story.work("retried")
    op = story.ask("client", "submit", value={"mark": "mark-recovered", "kind": "mark"})
    story.create("recovered", "mark-recovered")
    story.answer(op, "info", value="timeout")
    story.work("recovered")


def _batches(story: Story) -> None:
    op = story.ask("client", "batch", key="key-batch", value={"marks": ["mark-a", "mark-b", "mark-c"]})
    for name in ("a", "b", "c"):
        story.create(name, f"mark-{name}")
    story.keys.append(KeyRow("default", "batch", "key-batch", ["a", "b", "c"]))
    story.answer(op, "ok", token=story.token, value={"tasks": ["a", "b", "c"]})
    op = story.ask("client", "batch", value={"marks": ["mark-d", "mark-e"]})
    story.create("d", "mark-d")
    story.create("e", "mark-e")
    story.answer(op, "info", value="503")
    for name in ("a", "b", "c", "d", "e"):
        story.work(name)


def _outside(story: Story) -> None:
    story.submit("outside", "outside-1", key="key-outside", kind="outside")
    op = story.ask("other", "claim", value={"worker": "other"})
    story.start("outside", runs=False)
    story.answer(op, "ok", value={"tasks": [{"id": "outside", "attempt": 1}]})

    def fails() -> None:
        story.event("outside", "TaskFailed", attempt=1, cause="error", retry_at=LATER)

    story.command("outside", "fail", fails, attempt=1)
    story.event("outside", "TaskQueued", reason="retry")
    op = story.ask("other", "claim", value={"worker": "other"})
    story.start("outside", 2, runs=False)
    story.answer(op, "ok", value={"tasks": [{"id": "outside", "attempt": 2}]})
    op = story.ask("other", "complete", task="outside", value={"attempt": 1})
    story.answer(op, "fail", value="attempt_superseded")
    story.command("outside", "complete", lambda: story.complete("outside", 2), attempt=2)
    op = story.ask("session0", "list")
    story.answer(op, "ok", value={"ids": ["outside", "plain"]})
    op = story.ask("session0", "read", task="unknown")
    story.answer(op, "fail", value="404")
