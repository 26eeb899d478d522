"""The process that child processes are forked from. Started by processes, which see.

It has one thread and the handler modules imported, so that a fork is safe (the worker has threads)
and takes milliseconds (nothing is imported again). It follows the worker: when the worker ends in
whatever way, the socket closes, the zygote kills its children and ends.

Lines of JSON on the socket, one at a time from the worker:
    {"modules": […]}                       the first; answered by {"ready": true}, or {"error": …}
    {"run": key}, with a socket attached   fork a child that serves it; answered by {"started": key}
    {"kill": key}                          kill the child and what it has started
and, whenever a child has ended: {"exited": key, "status": exit code, or minus the signal}.
"""

import array
import contextlib
import os
import selectors
import signal
import socket
import sys
from typing import Any, NoReturn

import orjson

from command_side.worker.child import die_with_parent, serve
from events.errors import ConfigurationError
from taskledger.registry import Registry, load_registry
from taskledger.settings import load_settings
from taskledger.telemetry import configure_logging


class Zygote:
    def __init__(self, control: socket.socket, wake: socket.socket) -> None:
        self._control = control
        self._wake = wake
        self._children: dict[int, str] = {}
        self._unread = b""
        self._attached: list[int] = []
        self._registry: Registry | None = None

    def serve(self) -> None:
        """Returns when the worker has gone."""
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

    def kill_all(self) -> None:
        for pid in self._children:
            _kill(pid)

    def _listen(self) -> bool:
        data, attached, _, _ = socket.recv_fds(self._control, 65536, 16)
        self._attached += attached
        if not data:
            return False
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._obey(orjson.loads(line))
        return True

    def _obey(self, message: Any) -> None:
        match message:
            case {"modules": modules}:
                self._load(modules)
            case {"run": str(key)}:
                self._fork(key, self._attached.pop(0))
            case {"kill": str(key)}:
                for pid, child in self._children.items():
                    if child == key:
                        _kill(pid)
            case _:
                raise ValueError("the worker sent something unknown")

    def _load(self, modules: list[str]) -> None:
        try:
            self._registry = load_registry(modules)
        except ConfigurationError as error:
            self._say({"error": str(error)})
        else:
            self._say({"ready": True})

    def _fork(self, key: str, attached: int) -> None:
        if self._registry is None:
            raise ValueError("asked to run before the modules are loaded")
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(attached, parent, self._registry)
        # Both sides do it: whoever comes first, a kill of the group finds one.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        os.close(attached)
        self._children[pid] = key
        self._say({"started": key, "pid": pid})

    def _become_child(self, attached: int, parent: int, registry: Registry) -> NoReturn:
        signal.set_wakeup_fd(-1)
        self._control.close()
        self._wake.close()
        serve(socket.socket(fileno=attached), registry, parent)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            key = self._children.pop(pid, None)
            if key is not None:
                self._say({"exited": key, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, message: Any) -> None:
        # A worker that has gone is noticed by the next read.
        with contextlib.suppress(BrokenPipeError):
            self._control.sendall(orjson.dumps(message) + b"\n")


def send_with(control: socket.socket, line: bytes, attached: int) -> None:
    """The worker's side of `run`. Raises BlockingIOError where the socket is full."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [attached]))
    control.sendmsg([line], [rights])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _noticed(_number: int, _frame: object) -> None:
    """The wakeup descriptor carries the news; a handler must exist for it to be written."""


def main() -> None:
    """Arguments: the socket's descriptor, and the worker's process id."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    configure_logging(load_settings(), process="worker-child")
    # The worker says when to stop: it drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _noticed)
    zygote = Zygote(control, wake)
    try:
        zygote.serve()
    finally:
        zygote.kill_all()
