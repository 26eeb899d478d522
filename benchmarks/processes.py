"""Processes of a subject: started, watched, weighed by CPU time and ended."""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

GRACE_SECONDS: Final = 15.0
_TICK_SECONDS: Final = 1 / os.sysconf("SC_CLK_TCK")
# Fields of /proc/<pid>/stat behind the name: utime, stime, and both of the children that were waited for.
_CPU_FIELDS: Final = slice(11, 15)


class ProcessEndedError(RuntimeError):
    """A process of a subject ended while it was needed. The message ends with what it wrote last."""


def free_port() -> int:
    """One that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A running command; what it writes goes to `log`."""

    def __init__(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                argv, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises ProcessEndedError unless it runs."""
        code = self._process.poll()
        if code is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise ProcessEndedError(f"{self.log.stem} ended with {code}:\n{tail}")

    def end(self) -> None:
        """SIGTERM, and SIGKILL for one that does not listen."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def cpu_seconds(pid: int) -> float:
    """Of a process, its children that ended and its children that run; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[_CPU_FIELDS])) * _TICK_SECONDS + sum(map(cpu_seconds, children))


def peak_mib(pid: int) -> float:
    """The most memory that one process had resident so far, without its children."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
