"""What both embedded servers have in common: lock, leftovers, spawn, readiness, stop, book-keeping."""

import json
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypedDict, cast

from events.errors import EmbeddedServerError
from taskledger.embedded import _files as files
from taskledger.embedded._processes import POLL_SECONDS, Child, RunAs, Signals, end_leftover


class _Run(TypedDict):
    """What NAME.run holds: enough to clean up after a run that was killed."""

    pid: int
    socket_dir: str


class Server(ABC):
    """One server on one data folder. Not for use by several threads at once.

    Nothing a crash leaves behind stands in the way of the next start: a lock ends with its process, and a
    server that outlived its `taskledger` is stopped before a new one is started.
    """

    title: ClassVar[str]
    name: ClassVar[str]
    socket_name: ClassVar[str]
    # The first one is also what the server gets when we die.
    stop_signals: ClassVar[Signals]

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = Path(os.path.realpath(data_dir))
        self.home = self.data_dir / self.name
        self.log = self.data_dir / "log" / f"{self.name}.log"
        self._settings = dict(settings or {})
        self._password_file = self.data_dir / f"{self.name}.password"
        self._run_file = self.data_dir / f"{self.name}.run"
        self._default_socket_dir = self.data_dir / f"{self.name}.socket"
        self._socket_dir: Path | None = None
        self._lock: int | None = None
        self._child: Child | None = None
        self._log_offset = 0

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it does not run."""
        return self._child.pid if self._child is not None and not self._child.ended.is_set() else None

    def alive(self) -> bool:
        return self.pid is not None

    def _start(self, timeout: float) -> None:
        """Bring the server up. After a failure nothing runs and the folder is unlocked."""
        if self.alive():
            return
        try:
            with files.told_in_one_line(self.data_dir):
                self._claim()
                self._prepare()
                self._make_socket_dir()
                self._run_until_ready(time.monotonic() + timeout)
        except BaseException:
            self._stop(self.stop_signals)
            raise

    def _stop(self, signals: Signals) -> None:
        """End the server, then give up socket folder and lock. Twice is once."""
        if self._child is not None:
            self._child.stop(signals)
            self._child = None
        if self._socket_dir is not None:
            files.remove_socket_dir(self._socket_dir, self._default_socket_dir)
            self._socket_dir = None
            self._run_file.unlink(missing_ok=True)
        if self._lock is not None:
            files.release_lock(self._lock)
            self._lock = None

    def _claim(self) -> None:
        """Take the lock, then end and clear away what a killed run left. Nothing to do for a server that
        died under us: its socket folder, and so its address, stays the same."""
        if self._lock is not None:
            return
        files.make_data_dir(self.data_dir)
        self._lock = files.take_lock(self.data_dir / f"{self.name}.lock")
        last_run = self._last_run()
        mark = " ".join(self._marking_options())
        for pid in {last_run["pid"], *self._other_leftover_pids()} - {0}:
            if not end_leftover(pid, mark, self.stop_signals):
                stuck = f"the {self.title} of an earlier run (pid {pid}) does not stop"
                raise EmbeddedServerError(f"{stuck}; end it, or {files.ELSEWHERE}")
        files.remove_socket_dir(Path(last_run["socket_dir"]), self._default_socket_dir)
        files.remove_socket_dir(self._default_socket_dir, self._default_socket_dir)
        self._run_file.unlink(missing_ok=True)
        for half_made in self.data_dir.glob(f"{self.name}.new-*"):
            files.remove_tree(half_made)

    def _make_socket_dir(self) -> None:
        if self._socket_dir is None:
            self._socket_dir = files.make_socket_dir(self._default_socket_dir, self.socket_name)
            self._run_as().give(self._socket_dir)
            self._note_run(0)

    def _run_until_ready(self, deadline: float) -> None:
        self._log_offset = files.prepare_log(self.log)
        self._spawn()
        while not self._came_up(deadline):
            line = files.telling_line(files.log_since(self.log, self._log_offset))
            if not self._passes_by_itself(line) or time.monotonic() > deadline:
                raise EmbeddedServerError(f"{self.title} did not start: {line}; {self._way_out()}")
            time.sleep(10 * POLL_SECONDS)
            self._spawn()

    def _came_up(self, deadline: float) -> bool:
        """True once the server answers, False if it has ended instead."""
        child = self._running()
        while not child.ended.is_set():
            if self._is_ready(deadline):
                return True
            if time.monotonic() > deadline:
                line = files.telling_line(files.log_since(self.log, self._log_offset))
                raise EmbeddedServerError(f"{self.title} was not ready in time: {line}; {self._way_out()}")
            child.ended.wait(POLL_SECONDS)
        return False

    def _spawn(self) -> None:
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._child = Child(
                self._argv(),
                run_as=self._run_as(),
                cwd=self.home,
                env=self._env(),
                output=output,
                death_signal=self.stop_signals[0][0],
            )
        finally:
            os.close(output)
        self._note_run(self._child.pid)

    def _running(self) -> Child:
        if self._child is None:
            raise EmbeddedServerError(f"{self.title} has not been started")
        return self._child

    def _socket(self) -> Path:
        if self._socket_dir is None:
            raise EmbeddedServerError(f"{self.title} has not been started")
        return self._socket_dir / self.socket_name

    def _make_password(self) -> str:
        """The password of this data folder, made at the first call."""
        if not self._password_file.exists():
            files.write_private(self._password_file, f"{secrets.token_urlsafe(32)}\n")
        return self._password_file.read_text(encoding="utf-8").strip()

    def _note_run(self, pid: int) -> None:
        run = _Run(pid=pid, socket_dir=str(self._socket_dir))
        files.write_private(self._run_file, json.dumps(run))

    def _last_run(self) -> _Run:
        if not self._run_file.exists():
            return _Run(pid=0, socket_dir=str(self._default_socket_dir))
        return cast("_Run", json.loads(self._run_file.read_text(encoding="utf-8")))

    def _way_out(self) -> str:
        return f"more in {self.log}; to start afresh {files.ELSEWHERE}"

    def _run_as(self) -> RunAs:
        return RunAs()

    def _env(self) -> dict[str, str]:
        return dict(os.environ)

    def _other_leftover_pids(self) -> set[int]:
        """Pids that may be a server of an earlier run beside the one in NAME.run."""
        return set()

    def _passes_by_itself(self, line: str) -> bool:
        """Whether a server that died at start with this line can come up a moment later."""
        del line
        return False

    @abstractmethod
    def _argv(self) -> Sequence[str]:
        """The command line, with `_marking_options()` next to each other and no secret."""

    @abstractmethod
    def _marking_options(self) -> list[str]:
        """Arguments that only this server on this data folder, started by us, has."""

    @abstractmethod
    def _prepare(self) -> None:
        """Create or check what the server needs on disk."""

    @abstractmethod
    def _is_ready(self, deadline: float) -> bool:
        """Ask the server itself. False: not yet."""
