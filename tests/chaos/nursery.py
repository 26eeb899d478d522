"""Starts processes in milliseconds: forked from one that has imported everything already.

A process under fire is started again and again, and importing takes more than a second each time. The
nursery has one thread and has drawn no random number, so that what is forked from it is as good as new.
It ends with the program that uses it, and all that it has forked end with it.

Lines of JSON on the socket: {"argv", "env", "cwd", "out", "err"} asks for a process and is answered by
{"started": pid}, with the process's own handle beside it; {"ended": pid, "code": exit code or minus the
signal} comes when one has ended.
"""

import importlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from taskledger.cli import SIDES
from taskledger.lifecycle import SUPERVISOR_PID, follow_supervisor
from tests.chaos import launch

_ALSO: Final = ("projector.rebuild", "projector.verify", "uvloop", "uvicorn.protocols.http.httptools_impl")
_START_SECONDS: Final = 60.0


class Fork:
    """A process of the nursery, as its user sees it."""

    def __init__(self, pid: int, handle: int) -> None:
        self.pid = pid
        self._handle = handle  # a number alone may soon be somebody else's
        self._ended = threading.Event()
        self._code = 0

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended; whoever waits for it is told
            signal.pidfd_send_signal(self._handle, number)

    def wait(self, within: float | None = None) -> int:
        """Its exit code, minus the signal if one killed it. Raises AssertionError if it goes on."""
        if not self._ended.wait(within):
            raise AssertionError(f"process {self.pid} did not end within {within} s")
        return self._code

    def ended(self, code: int) -> None:
        """From the nursery: it is gone."""
        self._code = code
        self._ended.set()

    def __del__(self) -> None:
        os.close(self._handle)


class Nursery:
    """Thread-safe. Its own process is started at first use, and anew if it was killed."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._control: socket.socket | None = None
        self._started = threading.Condition()
        self._newest: Fork | None = None
        self._forks: dict[int, Fork] = {}

    def fork(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, out: Path, err: Path) -> Fork:
        """Runs `taskledger` with these arguments, environment and folder; what it says goes to files."""
        job = {"argv": list(argv), "env": dict(env), "cwd": str(cwd), "out": str(out), "err": str(err)}
        with self._turn, self._started:
            if self._control is None:
                self._control = self._open()
            self._newest = None
            self._control.sendall(json.dumps(job).encode() + b"\n")
            if not self._started.wait_for(lambda: self._newest is not None, _START_SECONDS):
                raise AssertionError("the nursery does not answer")
            assert self._newest is not None
            return self._newest

    def _open(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        opened = threading.Event()
        # The thread that starts it must live as long as it does: the kernel takes its end for ours.
        threading.Thread(
            target=self._keep, args=(ours, theirs, opened), name="nursery", daemon=True
        ).start()
        opened.wait()
        return ours

    def _keep(self, ours: socket.socket, theirs: socket.socket, opened: threading.Event) -> None:
        with theirs:
            argv = [sys.executable, "-P", "-m", "tests.chaos.nursery", str(theirs.fileno())]
            env = {**os.environ, SUPERVISOR_PID: str(os.getpid())}
            process = subprocess.Popen(
                argv, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        opened.set()
        with process, ours:  # the socket first: the nursery ends when it is closed
            for message, handles in _messages(ours):
                self._hear(message, handles)
        with self._started:
            self._control = None
            for fork in self._forks.values():
                fork.ended(-signal.SIGKILL)
            self._forks.clear()

    def _hear(self, message: Any, handles: deque[int]) -> None:
        with self._started:
            if "started" in message:
                pid = int(message["started"])
                self._newest = self._forks[pid] = Fork(pid, handles.popleft())
                self._started.notify_all()
            else:
                self._forks.pop(int(message["ended"])).ended(int(message["code"]))


NURSERY: Final = Nursery()
"""One for the whole program: importing is what costs."""


class _Server:
    """The nursery's own process."""

    def __init__(self, control: socket.socket, wake: socket.socket) -> None:
        self._control = control
        self._wake = wake
        self._unread = b""

    def serve(self) -> None:
        """Returns when the user has gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake in ready:
                    self._wake.recv(4096)
                    self._reap()
                if self._control in ready and not self._listen():
                    return

    def _listen(self) -> bool:
        data = self._control.recv(65536)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._fork(json.loads(line))
        return bool(data)

    def _fork(self, job: dict[str, Any]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._control.close()
            self._wake.close()
            _become(job, parent)
        # Only its parent can name it for certain: until it is reaped below, nobody else has its number.
        handle = os.pidfd_open(pid)
        try:
            self._say({"started": pid}, handle)
        finally:
            os.close(handle)

    def _reap(self) -> None:
        with suppress(ChildProcessError):  # there is none left
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                self._say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})

    def _say(self, message: Any, *handles: int) -> None:
        line = json.dumps(message).encode() + b"\n"
        sent = socket.send_fds(self._control, [line], handles)
        self._control.sendall(line[sent:])


def _become(job: dict[str, Any], parent: int) -> NoReturn:
    """Runs in the child and never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(job["cwd"])
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update({**job["env"], SUPERVISOR_PID: str(parent)})
        sys.argv[1:] = job["argv"]
        random.seed()
        launch.main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 (nothing may leave: the nursery's stack lies below)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _messages(control: socket.socket) -> Iterator[tuple[Any, deque[int]]]:
    """Each with the handles that have come and that nobody took: one comes with its line's first byte."""
    unread = b""
    handles = deque[int]()
    while True:
        data, came, _, _ = socket.recv_fds(control, 65536, 16, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return
        handles.extend(came)
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            yield json.loads(line), handles


def _noticed(_number: int, _frame: object) -> None:
    """The wakeup descriptor carries the news; a handler must exist for it to be written."""


def main() -> None:
    """Argument: the socket's descriptor."""
    follow_supervisor()
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    for module in (*SIDES.values(), *_ALSO):
        importlib.import_module(module)
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _noticed)
    _Server(control, wake).serve()


if __name__ == "__main__":
    main()
