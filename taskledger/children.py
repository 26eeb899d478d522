"""A process that is kept running: started, its output passed on, started again when it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

from taskledger.lifecycle import EXIT_REPLACE, SUPERVISOR_PID

STEADY_SECONDS: Final = 30.0
"""A process that ran this long was fine: what ends it next is a new story."""
SPRINT_SECONDS: Final = 5.0
"""A planned replacement sooner than this is none: it would spin."""
FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 15.0
_PUMP_PATIENCE_SECONDS: Final = 2.0
_LONGEST_LINE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ended:
    """One run of a child, over without being asked for."""

    label: str
    code: int
    """As the shell shows it: 128 + the signal for one that was killed."""
    last_line: str
    failures: int
    """Such ends in a row, this one included; 0 for a planned replacement."""
    pause_seconds: float
    """Until it is started again."""


@dataclass(slots=True)
class Restarts:
    """When to start again: at once for a planned replacement, else with exponential backoff."""

    failures: int = 0

    def after(self, code: int, lasted_seconds: float) -> float:
        """Seconds to wait, given how the run that just ended went."""
        if code == EXIT_REPLACE and lasted_seconds >= SPRINT_SECONDS:
            self.failures = 0
            return 0.0
        self.failures = 1 if lasted_seconds >= STEADY_SECONDS else self.failures + 1
        return float(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (self.failures - 1)))


class Child:
    """One of our processes, in a session of its own: Ctrl-C at the terminal reaches only us.

    A thread that lives as long as this object starts it, waits for it and starts it again, because
    the kernel's signal at a parent's death is sent when the *thread* that forked ends. What the
    process leaves in its group (a handler's process) is killed when it ends.
    """

    def __init__(
        self,
        label: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        on_line: Callable[[str, str], None],
        on_end: Callable[[Ended], None],
    ) -> None:
        self.label = label
        self._argv = [sys.executable, "-P", "-m", "taskledger", *command]
        self._env = {**env, SUPERVISOR_PID: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        self._on_line = on_line
        self._on_end = on_end
        self._stopping = threading.Event()
        self._running = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._last_line = ""
        self._thread = threading.Thread(target=self._keep_running, name=f"child {label}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def terminate(self) -> None:
        """Ask it to drain and end, and start no other."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def join(self, timeout: float) -> bool:
        """True once it has ended for good."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _signal(self, number: signal.Signals) -> None:
        with self._running:
            if self._process is not None:
                self._process.send_signal(number)

    def _keep_running(self) -> None:
        restarts = Restarts()
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run()
            if self._stopping.is_set():
                return
            pause = restarts.after(code, time.monotonic() - began)
            self._on_end(Ended(self.label, code, self._last_line, restarts.failures, pause))
            self._stopping.wait(pause)

    def _run(self) -> int:
        with self._running:
            if self._stopping.is_set():
                return 0
            self._process = process = subprocess.Popen(  # noqa: S603 (our own program)
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        assert process.stdout is not None  # noqa: S101 (asked for above)
        pump = threading.Thread(target=self._pump, args=(process.stdout,), daemon=True)
        pump.start()
        code = process.wait()
        with suppress(ProcessLookupError):  # it left nobody behind
            os.killpg(process.pid, signal.SIGKILL)
        pump.join(_PUMP_PATIENCE_SECONDS)
        return code if code >= 0 else 128 - code

    def _pump(self, output: IO[bytes]) -> None:
        self._last_line = ""
        with output:
            while line := output.readline(_LONGEST_LINE):
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    self._last_line = text
                    self._on_line(self.label, text)
