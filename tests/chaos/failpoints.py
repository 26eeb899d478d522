"""Failpoints: a process kills or freezes itself at a named border.

Production code knows nothing of them. The launcher wraps the functions named here, which are looked up
as Python looks them up when they are called; a test resolves every one, so that a rename cannot silence
it. An armed failpoint is a file: of all the processes that pass the border, the one that renames it fires.
"""

import functools
import importlib
import inspect
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

Action = Literal["kill", "stop"]
Moment = Literal["before", "after"]
When = Callable[[tuple[Any, ...], Any], bool]
"""Whether a call counts: given its positional arguments (`self` first) and, after it, its result."""

FOLDER: Final = "CHAOS_FAILPOINTS"
"""Environment variable: where armed failpoints are."""


@dataclass(frozen=True, slots=True)
class Failpoint:
    target: str
    """`module:function` or `module:Class.method`."""
    moment: Moment
    commands: tuple[str, ...]
    """Processes in which it is installed."""
    when: When = lambda _arguments, _result: True
    opened: bool = False
    """The call is one autocommit statement over the connection in its first argument: in a transaction
    that is opened for it, all is written and nothing committed when the process dies after it."""


def _given(arguments: tuple[Any, ...], _result: Any) -> bool:
    """A call with something in its first argument: an empty batch crosses no border."""
    return bool(arguments[1])


def _rows(arguments: tuple[Any, ...], _result: Any) -> bool:
    """A batch that changes rows, and not the checkpoint alone."""
    return bool(arguments[2].inserted or arguments[2].updated)


_API: Final = ("command-api",)
_DISPATCHER: Final = ("dispatcher",)
_WORKER: Final = ("worker",)
_PROJECTOR: Final = ("projector",)
_REBUILD: Final = ("rebuild",)

FAILPOINTS: Final[Mapping[str, Failpoint]] = {
    "api-before-append": Failpoint("events.postgres_log:PostgresLog.append", "before", _API, _given),
    "api-after-append-before-reply": Failpoint(
        "events.postgres_log:PostgresLog.append", "after", _API, _given
    ),
    "api-after-claim-before-lease": Failpoint("command_side.api.leases:Leases.grant", "before", _API),
    "relay-before-xadd": Failpoint(
        "command_side.dispatcher.publisher:Publisher._publish",
        "before",
        _DISPATCHER,
        lambda a, _: bool(a[2]),
    ),
    "relay-after-xadd": Failpoint(
        "command_side.dispatcher.publisher:Publisher._publish",
        "after",
        _DISPATCHER,
        lambda a, published: bool(a[2]) and published is True,
    ),
    "relay-after-commit": Failpoint(
        "command_side.dispatcher.store:OutstandingStore.commit", "after", _DISPATCHER
    ),
    "sweeper-before-append": Failpoint(
        "command_side.dispatcher.sweeper:Sweeper._execute", "before", _DISPATCHER, _given
    ),
    "sweeper-after-append": Failpoint(
        "command_side.dispatcher.sweeper:Sweeper._execute",
        "after",
        _DISPATCHER,
        lambda _, changed: changed > 0,
    ),
    "worker-after-read-before-start": Failpoint(
        "command_side.worker.starter:Starter.start", "before", _WORKER, _given
    ),
    "worker-after-start-before-ack": Failpoint(
        "command_side.worker.intake:Intake._hand_on",
        "before",
        _WORKER,
        lambda a, _: bool(a[1].attempts),
    ),
    "worker-after-ack": Failpoint("command_side.worker.consumer:Consumer.settle", "after", _WORKER, _given),
    "worker-after-effect-before-complete": Failpoint(
        "command_side.worker.finish:Finisher.finish",
        "before",
        _WORKER,
        lambda a, _: bool(a[2].type == "completed"),
    ),
    "worker-after-complete": Failpoint("command_side.worker.runner:Runner.over", "before", _WORKER),
    "projector-mid-projection": Failpoint("projector.view:TasksView.write", "before", _PROJECTOR, _rows),
    "projector-after-view-before-commit": Failpoint(
        "projector.view:TasksView.write", "after", _PROJECTOR, _rows, opened=True
    ),
    "projector-after-commit": Failpoint("projector.follower:Follower._commit", "after", _PROJECTOR),
    "rebuild-mid-fold": Failpoint("projector.filling:fold_range", "after", _REBUILD),
    "rebuild-before-indexes": Failpoint("projector.indexes:build", "before", _REBUILD),
    "rebuild-before-swap": Failpoint("projector.rebuild:_switch", "before", _REBUILD),
    "rebuild-mid-swap": Failpoint(
        "projector.generations:set_state", "after", _REBUILD, lambda a, _: bool(a[2] == "retired")
    ),
    "rebuild-after-swap": Failpoint("projector.rebuild:_switch", "after", _REBUILD),
    "shutdown-api": Failpoint(
        "taskledger.serving:_Server.shutdown", "before", ("command-api", "query-api")
    ),
    "shutdown-worker": Failpoint("command_side.worker.main:Worker._drain", "before", _WORKER),
    "shutdown-worker-drained": Failpoint("command_side.worker.intake:Intake.leave", "before", _WORKER),
    "shutdown-dispatcher": Failpoint("events.group_commit:GroupCommit.drain", "before", _DISPATCHER),
    "shutdown-projector": Failpoint("projector.leadership:Leadership.__exit__", "before", _PROJECTOR),
}


class Failpoints:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        """For the processes."""
        return {FOLDER: str(self._folder)}

    def arm(self, name: str, action: Action = "kill") -> None:
        """The next process to pass fires. Arming one that has fired arms it anew."""
        armed, fired = self._files(name)
        fired.unlink(missing_ok=True)
        prepared = armed.with_suffix(".prepared")
        prepared.write_text(action)
        prepared.rename(armed)

    def disarm(self, name: str) -> None:
        self._files(name)[0].unlink(missing_ok=True)

    def fired(self, name: str) -> bool:
        return self._files(name)[1].exists()

    def _files(self, name: str) -> tuple[Path, Path]:
        if name not in FAILPOINTS:
            raise KeyError(name)
        return self._folder / f"{name}.armed", self._folder / f"{name}.fired"


def install(command: str) -> None:
    """Wraps the targets of this process's failpoints."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return
    for name, failpoint in FAILPOINTS.items():
        if command in failpoint.commands:
            wrap(failpoint.target, _passing(Path(folder) / name, failpoint))


def resolve(target: str) -> tuple[Any, str]:
    """The object that holds the target, and the target's name in it. Raises AttributeError, and
    LookupError for a method that is only inherited: wrapping it would change other classes."""
    module, _, path = target.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    if name not in vars(holder):
        raise LookupError(target)
    return holder, name


def wrap(target: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts `wrapper(original)` in the target's place."""
    holder, name = resolve(target)
    original = getattr(holder, name)
    setattr(holder, name, functools.wraps(original)(wrapper(original)))


def _passing(path: Path, failpoint: Failpoint) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def passed(moment: Moment, arguments: tuple[Any, ...], result: Any = None) -> None:
        if moment == failpoint.moment and failpoint.when(arguments, result):
            _fire(path)

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        async def asynchronous(*arguments: Any, **options: Any) -> Any:
            passed("before", arguments)
            result = await original(*arguments, **options)
            passed("after", arguments, result)
            return result

        def synchronous(*arguments: Any, **options: Any) -> Any:
            passed("before", arguments)
            with arguments[1].transaction() if failpoint.opened else nullcontext():
                result = original(*arguments, **options)
                passed("after", arguments, result)
            return result

        return asynchronous if inspect.iscoroutinefunction(original) else synchronous

    return wrapper


def _fire(path: Path) -> None:
    fired = path.with_suffix(".fired")
    with suppress(FileNotFoundError):  # not armed, or another process was faster
        path.with_suffix(".armed").rename(fired)
        number = signal.SIGSTOP if fired.read_text() == "stop" else signal.SIGKILL
        os.kill(os.getpid(), number)
