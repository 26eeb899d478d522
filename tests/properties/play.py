"""Steps that clients, workers and processes can take, and the evidence that they leave behind."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final, NamedTuple

from command_side.commands import (
    CancelTask,
    CompleteTask,
    CreateTask,
    DiscardTask,
    FailTask,
    RequeueTask,
    StartTask,
    TaskCommand,
)
from command_side.service import Applied, Origin
from events.append import IdempotencyKey
from events.errors import CommandRejected
from events.task_state import SETTLED, TaskState
from tests.chaos.evidence import Evidence, KeyRow, Snapshot
from tests.chaos.good_history import DRAINED, Clients
from tests.properties.steps import has_effect
from tests.properties.system import System

COMMANDS: Final[dict[str, TaskCommand]] = {
    "cancel": CancelTask(),
    "requeue": RequeueTask(),
    "discard": DiscardTask(),
}
KINDS: Final = ("mark", "outside")
WORKERS: Final = 2
MAX_TASKS: Final = 3
"""Few, so that much happens to each."""
DRAIN_ROUNDS: Final = 200

Ending = Callable[[int], TaskCommand]
"""Attempt -> what its worker says of it."""


class Running(NamedTuple):
    """An attempt as the worker knows it that runs it."""

    worker: int
    state: TaskState


class Play:
    """A `reply` that is lost leaves its asker unsure; the step is taken all the same."""

    def __init__(self) -> None:
        self.system = System()
        self.clients = Clients()
        self.wanted: list[CreateTask] = []
        self.tasks: list[TaskState] = []
        self.batches = 0
        self.incarnation = [0] * WORKERS
        self.dead: set[str] = set()
        self.running: list[Running] = []
        self.unsure: list[tuple[Running, TaskCommand]] = []
        self.stored_keys: dict[tuple[str, str], list[str]] = {}
        self.tailed: list[int] = []
        self.snapshots: list[Snapshot] = []

    def submit(self, command: CreateTask, reply: str) -> None:
        if len(self.wanted) < MAX_TASKS:
            self.wanted.append(replace(command, payload={"mark": f"{command.kind}-{len(self.wanted)}"}))
            self._submit(self.wanted[-1], reply)

    def submit_again(self, pick: int, reply: str) -> None:
        """With the same key, whether the first answer came or not."""
        self._submit(self.wanted[pick % len(self.wanted)], reply)

    def _submit(self, command: CreateTask, reply: str) -> None:
        mark = command.payload["mark"]
        op = self.clients.ask("client", "submit", key=mark, value={"mark": mark, "kind": command.kind})
        key = IdempotencyKey("default", "create", mark, b"")
        created = self.system.run(self.system.commands.create([command], Origin(), key))
        self.tasks.append(created.tasks[0])
        task = str(created.tasks[0].id)
        self.stored_keys.setdefault(("create", mark), [task])
        if reply == "lost":
            self.clients.answer(op, "info", value="reset")
        else:
            told = {"replayed": created.replayed}
            self.clients.answer(op, "ok", task=task, token=f"{created.position}.t", value=told)

    def submit_batch(self, count: int, reply: str) -> None:
        if len(self.wanted) + count > MAX_TASKS:
            return
        self.batches += 1
        marks = [f"mark-batch{self.batches}-{n}" for n in range(count)]
        commands = [CreateTask("mark", {"mark": mark}) for mark in marks]
        op = self.clients.ask("client", "batch", value={"marks": marks})
        if reply == "lost":
            self.clients.answer(op, "info", value="never arrived")
            return
        self.wanted.extend(commands)
        created = self.system.run(self.system.commands.create(commands, Origin()))
        self.tasks.extend(created.tasks)
        ids = [str(state.id) for state in created.tasks]
        self.clients.answer(op, "ok", token=f"{created.position}.t", value={"tasks": ids})

    def client_commands(self, pick: int, f: str, reply: str) -> None:
        """As a server that saw the task when it was created, or has just loaded it."""
        state = self.tasks[pick % len(self.tasks)]
        if pick % 2:
            state = self.system.run(self.system.commands.load([state.id]))[state.id]
        self._command("client", f, state, COMMANDS[f], reply)

    def _command(self, p: str, f: str, state: TaskState, command: TaskCommand, reply: str) -> None:
        attempt = {"attempt": command.attempt} if isinstance(command, CompleteTask | FailTask) else None
        op = self.clients.ask(p, f, task=str(state.id), value=attempt)
        applied = self._execute(state, command)
        if reply == "lost":
            self.clients.answer(op, "info", value="timeout")
        elif applied is None:
            self.clients.answer(op, "fail", value="wrong_state")
        else:
            now = applied.state
            told = {"status": now.status, "version": now.version, "attempt": now.attempt}
            self.clients.answer(op, "ok", token=f"{applied.position}.t", value=told)

    def _execute(self, state: TaskState, command: TaskCommand) -> Applied | None:
        """On the state given, however stale: what comes of it is as the present state has it. None if it is
        refused."""
        self.system.look()
        now = self.system.histories[str(state.id)].state
        assert now is not None
        expected = has_effect(now, command)
        try:
            applied = self.system.run(self.system.commands.execute_on(state, command))
        except CommandRejected:
            applied = None
        assert (applied is not None and applied.changed) == expected, f"{command} of a task that is {now}"
        return applied

    def read(self, pick: int, session: str, waits: bool) -> None:
        """With a token that the projector may not have reached: then the answer is 503."""
        task = self.tasks[pick % len(self.tasks)].id
        head = self.system.run(self.system.log.head())
        op = self.clients.ask(session, "read", task=str(task), token=f"{head}.t" if waits else None)
        row = self.system.projector.row(task)
        if waits and self.system.projector.checkpoint < head:
            self.clients.answer(op, "fail", value="503")
        elif row is None:
            self.clients.answer(op, "fail", value="404")
        else:
            self.clients.answer(op, "ok", value=dict(row))

    def start(self, worker: int, kind: str, *, acknowledges: bool = True, rival: bool = False) -> None:
        """`rival`: another worker was given the same entry and looked at the task at the same time."""
        streams = self.system.dispatcher.streams
        entry = streams.read(kind)
        if entry is None:
            return
        state = self.system.worth_starting(entry, self._holder(worker))
        if state is None:
            return
        self._start(worker, state)
        if rival:
            self._start((worker + 1) % WORKERS, state)
        if acknowledges:
            streams.delete(entry)

    def _start(self, worker: int, state: TaskState) -> None:
        outside = state.kind == "outside"
        op = self.clients.ask(f"worker{worker}", "claim", value={}) if outside else None
        applied = self._execute(state, StartTask(None if outside else self._holder(worker), f"w{worker}"))
        if op is not None:
            begun = [] if applied is None else [{"id": str(state.id), "attempt": applied.state.attempt}]
            self.clients.answer(op, "ok", value={"tasks": begun})
        if applied is not None:
            self.running.append(Running(worker, applied.state))

    def end(self, pick: int, ending: Ending, reply: str) -> None:
        """Any attempt that somebody still runs: also one that was given to somebody else long ago."""
        if attempt := self._someone_at_work(pick):
            self.running.remove(attempt)
            self.finish(attempt, ending(attempt.state.attempt), reply)

    def _someone_at_work(self, pick: int) -> Running | None:
        """If need be, somebody starts what can be started."""
        for kind in KINDS:
            if not self.running:
                self.time_passes(20)
                self.relay(50)
                self.start(pick % WORKERS, kind)
        return self.running[pick % len(self.running)] if self.running else None

    def finish(self, attempt: Running, command: TaskCommand, reply: str) -> None:
        if attempt.state.kind == "mark":
            self.system.effects.apply(attempt.state)
        self._tell(attempt, command, reply)
        if reply == "lost":
            self.unsure.append((attempt, command))

    def tell_again(self) -> None:
        """The reply was lost, so the worker says it once more."""
        if self.unsure:
            self._tell(*self.unsure.pop(0), "arrives")

    def _tell(self, attempt: Running, command: TaskCommand, reply: str) -> None:
        if attempt.state.kind == "outside":
            f = "complete" if isinstance(command, CompleteTask) else "fail"
            self._command(f"worker{attempt.worker}", f, attempt.state, command, reply)
        else:
            self._execute(attempt.state, command)

    def kill_a_worker(self, worker: int) -> None:
        self._bury(worker)
        self.running = [attempt for attempt in self.running if attempt.worker != worker]

    def take_for_dead(self, pick: int) -> None:
        """A worker that has work, and goes on with it while another one is given the same task."""
        if attempt := self._someone_at_work(pick):
            self._bury(attempt.worker)
            self.relay(50)
            self.start((attempt.worker + 1) % WORKERS, attempt.state.kind)

    def _bury(self, worker: int) -> None:
        self.dead.add(self._holder(worker))
        self.dead |= {a.state.holder for a in self.running if a.worker == worker and a.state.holder}
        self.incarnation[worker] += 1
        self.relay(50)
        self.sweep()

    def kill_the_relay_before_its_commit(self, limit: int) -> None:
        self.system.run(self.system.dispatcher.relay(limit, dies_before_commit=True))

    def lose_redis(self) -> None:
        self.system.dispatcher.streams.lose_everything()

    def _holder(self, worker: int) -> str:
        return f"worker-{worker}.{self.incarnation[worker]}"

    def relay(self, limit: int) -> None:
        self.system.run(self.system.dispatcher.relay(limit))

    def time_passes(self, seconds: int) -> None:
        self.system.clock.now += timedelta(seconds=seconds)
        self.sweep()

    def sweep(self) -> None:
        """On what the table knows, however far behind it is."""
        self.system.run(self.system.dispatcher.sweep(self.dead))

    def project(self, limit: int) -> None:
        self.system.run(self.system.projector.project(limit))
        self.snapshots.append(self.system.projector.snapshot(len(self.snapshots)))

    def tail(self, limit: int) -> None:
        after = self.tailed[-1] if self.tailed else 0
        events = self.system.run(self.system.log.read_after(after, limit=limit))
        self.tailed.extend(event.id for event in events)

    def pause_a_queue(self, paused: bool) -> None:
        self.system.run(self.system.commands.set_paused("elsewhere", paused=paused))

    def drain(self) -> None:
        """No worker of before is left. Goes on until every task has settled, or for long enough."""
        for worker in range(WORKERS):
            self.kill_a_worker(worker)
        for _ in range(DRAIN_ROUNDS):
            self.time_passes(100_000)
            while self.system.run(self.system.dispatcher.relay(50)):
                pass
            for kind in KINDS:
                while self.system.dispatcher.streams.read(kind) is not None:
                    self.start(0, kind)
            for attempt in self.running:
                self.finish(attempt, CompleteTask(attempt.state.attempt, "drained"), "arrives")
            self.running = []
            while self.system.run(self.system.projector.project(50)):
                pass
            if all(row.state.status in SETTLED for row in self.system.projector.rows.values()):
                break
        self.tail(1_000_000)
        self.project(1_000_000)

    def evidence(self) -> Evidence:
        self.system.look()
        keys = [
            KeyRow("default", operation, key, ids) for (operation, key), ids in self.stored_keys.items()
        ]
        return Evidence(
            history=self.clients.entries(),
            log=self.system.logged,
            positions=self.system.positions,
            keys=keys,
            tailers={"tailer": self.tailed},
            snapshots=self.snapshots,
            effects=self.system.effects.seen,
            faults=[],
            drained=DRAINED,
        )
