"""One process of a cluster, and whatever takes its place."""

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.chaos.nursery import NURSERY, Fork

_PAUSE_SECONDS: Final = 0.5
"""Before a process that ended with an error is started again."""
_TRIES: Final = 3


class Member:
    """One place in the cluster: a name, a port and a log file that its processes inherit.

    A thread starts them and waits for their end. Nothing survives this program, however it ends.
    """

    def __init__(self, name: str, command: str, folder: Path, port: int, env: Mapping[str, str]) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"{name}.log"
        self.exit_codes: list[int] = []
        self._command = command
        self._folder = folder
        self._env = env
        self._changed = threading.Condition()
        self._process: Fork | None = None
        self._held = False
        self._over = False
        self._thread = threading.Thread(target=self._keep, name=f"member {name}", daemon=True)

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    @property
    def restarts(self) -> int:
        return len(self.exit_codes)

    @property
    def refuses(self) -> bool:
        """Whether it ended by itself and with an error each of the last times."""
        last = self.exit_codes[-_TRIES:]
        return len(last) == _TRIES and all(code > 0 for code in last)

    def start(self) -> None:
        self._thread.start()

    def hold(self, held: bool) -> None:
        with self._changed:
            self._held = held
            self._changed.notify_all()

    def signal(self, number: signal.Signals) -> int | None:
        """The process that got it; None if there is none just now."""
        with self._changed:
            process = self._process
            if process is not None:
                process.send_signal(number)
            return None if process is None else process.pid

    def await_end(self, pid: int, within: float) -> int:
        """The exit code of that process, minus the signal that killed it."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.pid != pid, within):
                raise AssertionError(f"{self.name} ({pid}) did not end within {within} s")
            return self.exit_codes[-1]

    def end(self) -> None:
        """Of this place, for good."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self.signal(signal.SIGKILL)

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _keep(self) -> None:
        while self._spawn():
            process = self._process
            assert process is not None
            code = process.wait()
            with self._changed:
                self.exit_codes.append(code)
                self._process = None
                self._changed.notify_all()
                if code > 0:  # it refuses to run, or has a defect: nobody struck it
                    self._changed.wait_for(lambda: self._over, _PAUSE_SECONDS)

    def _spawn(self) -> bool:
        """False when this place is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self._held)
            if self._over:
                return False
            self._process = NURSERY.fork(
                [self._command], env=self._env, cwd=self._folder, out=self.log, err=self.log
            )
            return True
