"""Start a server that does not outlive us, and recognise one that a killed run left behind."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

POLL_SECONDS = 0.01
# Signals to send in turn, and how many seconds each gets.
Signals = Sequence[tuple[signal.Signals, float]]


@dataclass(frozen=True, slots=True)
class RunAs:
    """How a program is started. Default: as ourselves. Else through a prefix, or as another user."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    @property
    def extra_groups(self) -> list[int] | None:
        """A user we drop to keeps none of our own groups."""
        return None if self.uid is None else []

    def give(self, path: Path) -> None:
        """Let the server own a file that we made for it."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


class Child:
    """A started server: in a session of its own, so that Ctrl-C at the terminal reaches only us, and with
    a signal at our death (Linux with util-linux; elsewhere the next start finds what is left).

    A thread that lives as long as the server does the fork, because the kernel sends that signal when the
    *thread* that forked ends, see PR_SET_PDEATHSIG(2const); a caller's thread may belong to a pool.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        run_as: RunAs,
        cwd: Path,
        env: Mapping[str, str],
        output: int,
        death_signal: signal.Signals,
    ) -> None:
        self.ended = threading.Event()
        started: Future[subprocess.Popen[bytes]] = Future()

        def parent() -> None:
            try:
                process = subprocess.Popen(  # noqa: S603
                    [*run_as.prefix, *at_our_death(death_signal), *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env=env,
                    umask=0o077,
                    start_new_session=True,
                    user=run_as.uid,
                    group=run_as.gid,
                    extra_groups=run_as.extra_groups,
                )
            except Exception as error:  # noqa: BLE001 (raised in the caller's thread by result())
                started.set_exception(error)
                return
            started.set_result(process)
            process.wait()
            self.ended.set()

        threading.Thread(target=parent, name=f"parent of {Path(argv[0]).name}", daemon=True).start()
        self._process = started.result()
        self.pid = self._process.pid

    def stop(self, signals: Signals) -> None:
        """Send each signal in turn until the server has ended."""
        for number, patience in signals:
            if not self.ended.is_set():
                self._process.send_signal(number)
                self.ended.wait(patience)


def command_line(pid: int) -> str:
    """The arguments of a process joined by blanks; "" once it has ended, even if nobody has reaped it."""
    if not Path("/proc/self").exists():
        ps = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
        return subprocess.run(ps, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "))
    except OSError:  # gone, or not ours to see
        return ""


def end_leftover(pid: int, mark: str, signals: Signals) -> bool:
    """Stop a server of an earlier run, known by `mark` in its arguments. Pids are used again, so anything
    else is left alone. False if it is still there after the last signal."""
    for number, patience in signals:
        deadline = time.monotonic() + patience
        if mark in command_line(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        while mark in command_line(pid) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    return mark not in command_line(pid)


def succeeds(argv: Sequence[str], run_as: RunAs | None = None) -> bool:
    """Try a short command; one that cannot be run or does not end within 5 s has not succeeded."""
    user = run_as or RunAs()
    try:
        done = subprocess.run(  # noqa: S603
            argv,
            capture_output=True,
            check=False,
            timeout=5,
            user=user.uid,
            group=user.gid,
            extra_groups=user.extra_groups,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def at_our_death(number: signal.Signals) -> list[str]:
    """The prefix that has the kernel send the signal when we die; none where it is not to be had."""
    return ["setpriv", "--pdeathsig", number.name.removeprefix("SIG"), "--"] if _setpriv_works() else []


@cache
def _setpriv_works() -> bool:
    # BusyBox has a setpriv without --pdeathsig
    return shutil.which("setpriv") is not None and succeeds(
        ["setpriv", "--pdeathsig", "TERM", "--", "true"]
    )
