"""One attempt -> an outcome value -> a command. No server, and children that are not processes."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from command_side.commands import CompleteTask, FailTask
from command_side.worker import executor
from command_side.worker.attempts import Attempt, Attempts
from command_side.worker.executor import Executor
from command_side.worker.outcomes import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    HandedBack,
    Lost,
    Outcome,
    Postponed,
    Superseded,
    TimedOut,
    command_of,
    error_of,
)
from command_side.worker.results import InvalidResult, checked_result
from command_side.worker.wire import outcome_in, outcome_message
from events.task_events import TaskError
from events.task_state import TaskState
from taskledger import Discard, RetryLater, TaskContext, task
from taskledger.registry import Kind
from tests.support import eventually

ERROR = TaskError(type="X", message="x")


class Unused:
    def run(self, attempt: Attempt) -> Awaitable[Outcome]:
        raise AssertionError(f"no child process is wanted for {attempt.key}")


class Child:
    """Answers at once, or never."""

    def __init__(self, answer: Outcome | None = None) -> None:
        self.answer = answer
        self.killed = False

    async def run(self, attempt: Attempt) -> Outcome:
        assert attempt.state.status == "running"
        try:
            return self.answer or await asyncio.Future[Outcome]()
        except asyncio.CancelledError:
            self.killed = True
            raise


def kind_of(function: Callable[..., Any], **options: Any) -> Kind:
    kind: Kind = vars(task("kind", **options)(function))["__taskledger_kind__"]
    return kind


def attempt_of(
    function: Callable[..., Any],
    payload: Any = None,
    *,
    timeout_seconds: float = 30.0,
    isolated: bool = False,
    **options: Any,
) -> Attempt:
    state = TaskState(
        id=uuid4(),
        version=2,
        position=2,
        status="running",
        kind="kind",
        payload=payload,
        queue="default",
        priority="normal",
        max_attempts=5,
        timeout_seconds=timeout_seconds,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        queued_position=1,
        attempt=1,
        isolated=isolated,
    )
    return Attempt(state, kind_of(function, **options))


async def run(attempt: Attempt, children: Any = None) -> Outcome:
    answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    executor = Executor(children or Unused(), cleanup_seconds=0.05)
    executor.start(attempt, lambda _, outcome: answer.set_result(outcome))
    return await answer


@pytest.mark.parametrize(
    ("outcome", "command"),
    [
        (Completed({"a": 1}, 0.5), CompleteTask(3, {"a": 1}, 0.5)),
        (Failed(ERROR), FailTask(3, "error", ERROR, jitter=0.25)),
        (Failed(ERROR, retryable=False), FailTask(3, "error", ERROR, retryable=False, jitter=0.25)),
        (Postponed(7.0, ERROR), FailTask(3, "retry_later", ERROR, retry_in_seconds=7.0)),
        (Discarded(ERROR), FailTask(3, "discarded", ERROR)),
        (
            TimedOut(30.0),
            FailTask(
                3,
                "timeout",
                TaskError(type="Timeout", message="the handler ran longer than its 30 s"),
                jitter=0.25,
            ),
        ),
        (
            Cancelled(),
            FailTask(
                3, "error", TaskError(type="Cancelled", message="the handler was cancelled"), jitter=0.25
            ),
        ),
        (
            HandedBack(),
            FailTask(
                3,
                "handed_back",
                TaskError(type="HandedBack", message="the worker stopped before the handler was done"),
            ),
        ),
        (
            Lost("how", beside_others=True),
            FailTask(3, "lost", TaskError(type="Lost", message="how"), beside_others=True, jitter=0.25),
        ),
        (Lost("how"), FailTask(3, "lost", TaskError(type="Lost", message="how"), jitter=0.25)),
        (Superseded(), None),
    ],
)
def test_each_outcome_is_one_command(outcome: Outcome, command: CompleteTask | FailTask | None) -> None:
    assert command_of(outcome, 3, 0.25) == command
    assert outcome_in(outcome_message(outcome)) == outcome


async def test_the_three_ways_to_return() -> None:
    async def coroutine(payload: int) -> int:
        return payload + 1

    def thread(payload: int, ctx: TaskContext) -> list[int]:
        return [payload, ctx.attempt, threading.current_thread() is threading.main_thread()]

    answer = Completed("from the child", 0.1)
    outcomes = [
        await run(attempt_of(coroutine, 1)),
        await run(attempt_of(thread, 1)),
        await run(attempt_of(coroutine, 1, execution="process"), Child(answer)),
        await run(attempt_of(thread, 1, isolated=True), Child(answer)),
    ]
    results = [outcome.result for outcome in outcomes if isinstance(outcome, Completed)]
    assert results == [2, [1, 1, 0], "from the child", "from the child"]


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    ("error", "type_", "name"),
    [
        (ValueError("no"), Failed, "ValueError"),
        (KeyboardInterrupt(), Failed, "KeyboardInterrupt"),
        (SystemExit(1), Failed, "SystemExit"),
        (asyncio.CancelledError(), Failed, "CancelledError"),
        (RetryLater(5, "busy"), Postponed, "RetryLater"),
        (Discard("no use"), Discarded, "Discard"),
    ],
)
async def test_whatever_a_handler_raises(
    error: BaseException,
    type_: type[Failed | Postponed | Discarded],
    name: str,
    *,
    blocking: bool,
) -> None:
    def thread(payload: None) -> None:
        raise error

    async def coroutine(payload: None) -> None:
        raise error

    outcome = await run(attempt_of(thread if blocking else coroutine))
    assert isinstance(outcome, type_)
    assert outcome.error.type == name
    assert (outcome.error.traceback is None) == (type_ is not Failed)


async def test_a_payload_of_the_wrong_type_is_not_retried() -> None:
    async def coroutine(payload: int) -> int:
        return payload

    outcome = await run(attempt_of(coroutine, "1"))
    assert outcome == Failed(
        TaskError(type="InvalidPayload", message="the payload: Input should be a valid integer"),
        retryable=False,
    )


async def test_timeouts() -> None:
    async def coroutine(payload: None) -> None:
        await asyncio.Event().wait()

    release = threading.Event()

    def thread(payload: None, ctx: TaskContext) -> bool:
        release.wait(10)
        return ctx.cancel_requested

    child = Child()
    assert await run(attempt_of(coroutine, timeout_seconds=0.01)) == TimedOut(0.01)
    assert await run(attempt_of(coroutine, timeout_seconds=0.01, isolated=True), child) == TimedOut(0.01)
    assert child.killed
    overrun = attempt_of(thread, timeout_seconds=0.01)
    assert await run(overrun) == TimedOut(0.01)
    assert overrun.lingering is not None
    release.set()
    late = await overrun.lingering
    assert isinstance(late, Completed)
    assert late.result is True


@pytest.mark.parametrize(
    ("why", "outcome"),
    [("cancelled", Cancelled()), ("superseded", Superseded()), ("handed_back", HandedBack())],
)
async def test_stops(why: Any, outcome: Outcome) -> None:
    async def coroutine(payload: None) -> None:
        await asyncio.Event().wait()

    release = threading.Event()

    def thread(payload: None, ctx: TaskContext) -> None:
        while not ctx.cancel_requested and not release.wait(0.001):
            pass

    for attempt, children in (
        (attempt_of(coroutine), None),
        (attempt_of(thread), None),
        (attempt_of(coroutine, execution="process"), Child()),
    ):
        running = asyncio.create_task(run(attempt, children))
        await asyncio.sleep(0)
        attempt.stop(why)
        attempt.stop("superseded")
        assert await running == outcome
    release.set()


@pytest.mark.parametrize(
    ("why", "outcome"),
    [("cancelled", Cancelled()), ("superseded", Superseded()), ("handed_back", HandedBack())],
)
async def test_a_thread_that_returns_early_before_the_loop_hears_of_the_stop(
    why: Any, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handler and stop are both done when the loop looks."""
    monkeypatch.setattr(executor, "in_thread", at_once)

    def thread(payload: None, ctx: TaskContext) -> str:
        assert ctx.cancel_requested
        return "half done"

    attempt = attempt_of(thread)
    attempt.stop(why)
    assert await run(attempt) == outcome


def at_once(call: Callable[[], Outcome], *, name: str) -> asyncio.Future[Outcome]:
    """A thread that has returned before anybody could look."""
    answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    answer.set_result(call())
    return answer


async def test_a_thread_that_sees_its_time_run_out_and_returns_first_has_timed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor, "in_thread", at_once)

    def thread(payload: None, ctx: TaskContext) -> str:
        attempt.overran = True  # as another thread would see it
        assert ctx.cancel_requested
        return "half done"

    attempt = attempt_of(thread, timeout_seconds=0.5)
    assert await run(attempt) == TimedOut(0.5)


async def test_what_is_stopped_before_it_begins_does_not_begin() -> None:
    begun: list[str] = []

    async def handler(payload: None, ctx: TaskContext) -> None:
        begun.append(str(ctx.task_id))

    attempt = attempt_of(handler)
    attempt.stop("handed_back")
    assert await run(attempt) == HandedBack()
    assert begun == []


async def test_a_thread_that_finishes_unaware_of_the_cancel_has_completed() -> None:
    release = threading.Event()

    def thread(payload: None) -> str:
        release.wait(10)
        return "done"

    attempt = attempt_of(thread)
    running = asyncio.create_task(run(attempt))
    attempt.stop("cancelled")
    release.set()
    outcome = await running
    assert isinstance(outcome, Completed)
    assert outcome.result == "done"


async def test_a_thread_that_ignores_a_cancel_times_out() -> None:
    release = threading.Event()

    def thread(payload: None) -> None:
        release.wait(10)

    attempt = attempt_of(thread, timeout_seconds=0.05)
    attempt.stop("cancelled")
    assert await run(attempt) == TimedOut(0.05)
    release.set()
    assert attempt.lingering is not None
    await attempt.lingering


async def test_a_coroutine_that_swallows_its_cancellation_keeps_its_slot() -> None:
    release = asyncio.Event()

    async def coroutine(payload: None) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    attempt = attempt_of(coroutine, timeout_seconds=0.01)
    assert await run(attempt) == TimedOut(0.01)
    assert attempt.lingering is not None
    release.set()
    await attempt.lingering


async def test_what_others_append_stops_only_handlers_that_run() -> None:
    async def coroutine(payload: None) -> None: ...

    attempts = Attempts()
    cancelled, superseded, ended = (attempt_of(coroutine) for _ in range(3))
    for attempt in (cancelled, superseded, ended):
        attempts.add(attempt)
    ended.ended = True
    attempts.observe(
        [
            (cancelled.key, "TaskCancelRequested"),
            (superseded.key, "TaskFailed"),
            (superseded.key, "TaskQueued"),
            (ended.key, "TaskCompleted"),
            ("of somebody else", "TaskFailed"),
        ]
    )
    assert cancelled.stopped.result() == "cancelled"
    assert superseded.stopped.result() == "superseded"
    assert not ended.stopped.done()
    assert attempts.running() == [cancelled, superseded]
    assert attempts.holds(ended.state.id, 1)
    attempts.remove(ended)
    assert not attempts.holds(ended.state.id, 1)


async def test_progress_is_kept_until_somebody_stores_it() -> None:
    async def coroutine(payload: None, ctx: TaskContext) -> None:
        ctx.progress(0.2)
        ctx.progress(0.4, "nearly")

    attempt = attempt_of(coroutine)
    await run(attempt)
    assert attempt.progress == (0.4, "nearly")

    async def seen() -> bool:
        return attempt.progress is not None

    await eventually(seen)


class Measured(BaseModel):
    value: float
    note: str | None = None


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        (Any, float("nan"), "NaN"),
        (Any, {"a": [float("inf")]}, "NaN"),
        (Measured, Measured(value=float("nan")), "NaN"),
        (Any, "a\x00b", "U\\+0000"),
        (Any, {"a": "\ud800"}, "surrogate|type"),
        (Any, 2**53, "integers"),
        (Any, "x" * (1024 * 1024), "bytes"),
        (Any, object(), "declared type"),
        (int, "five", "declared type"),
    ],
)
def test_results_that_cannot_be_stored(type_: Any, value: Any, message: str) -> None:
    with pytest.raises(InvalidResult, match=message):
        checked_result(_returning(type_), value)


def test_results_nested_too_deep() -> None:
    deep: Any = 1
    for _ in range(33):
        deep = [deep]
    with pytest.raises(InvalidResult, match="deeper"):
        checked_result(_returning(Any), deep)
    assert checked_result(_returning(Any), deep[0]) == deep[0]


@pytest.mark.parametrize(
    ("type_", "value", "plain"),
    [
        (None, None, None),
        (Measured, Measured(value=1.5), {"value": 1.5, "note": None}),
        (Measured, {"value": 1.5}, {"value": 1.5, "note": None}),
        (list[datetime], [datetime(2026, 1, 1, tzinfo=UTC)], ["2026-01-01T00:00:00Z"]),
        (Any, "ü" * 500_000, "ü" * 500_000),
    ],
)
def test_results_are_plain_json(type_: Any, value: Any, plain: Any) -> None:
    assert checked_result(_returning(type_), value) == plain


def _returning(type_: Any) -> Kind:
    async def function(payload: None) -> None: ...

    function.__annotations__["return"] = type_
    return kind_of(function)


def test_errors_are_bounded_and_storable() -> None:
    class EvilError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(ValueError, match=r"x+") as caught:
        raise ValueError("\x00\ud800" + "x" * 20_000)
    error = error_of(caught.value)
    assert error.message.startswith("�?x")
    assert len(error.message) == 2_000
    assert error.traceback is not None
    assert len(error.traceback) == 10_000
    assert error_of(EvilError()).message == "(the message cannot be read: RuntimeError)"
