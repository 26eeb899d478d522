"""How a process ends: with which code, and whose death it follows."""

import ctypes
import gc
import os
import signal
import sys
from typing import Final

EXIT_FAILED: Final = 1
"""Something unforeseen; the log has the trace. `verify`: there are differences."""
EXIT_REFUSED: Final = 2
"""A setting or a server stops the process, in one line. Starting again changes nothing."""
EXIT_REPLACE: Final = 75
"""EX_TEMPFAIL: the process has drained and wants to be replaced at once, see the worker."""
EXIT_INTERRUPTED: Final = 130

SUPERVISOR_PID: Final = "TASKLEDGER_SUPERVISOR_PID"
"""Environment variable by which `up` tells a child whom to follow."""

_PR_SET_PDEATHSIG: Final = 1


def follow_supervisor() -> None:
    """Have the kernel end this process when the supervisor that started it ends in whatever way.

    SIGKILL, because the servers go at the same moment: there is nothing left to drain into, and a
    process that waits for them would hold its port against the next start. No supervisor: no effect.
    Only Linux has such a signal; elsewhere a killed `up` leaves its children to be ended by hand.
    """
    supervisor = os.environ.pop(SUPERVISOR_PID, "")
    if not supervisor.isdigit():
        return
    die_with_parent(int(supervisor))


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when `parent`, which started it, has ended; exits if it has already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(EXIT_FAILED)


_YOUNG_OBJECTS: Final = 20_000
"""That may come into being before the collector looks for cycles among them; a few MB."""


def spare_collector() -> None:
    """Call once everything that stays is made. The collector then passes over it, and looks less often:
    what a request or an event leaves behind has no cycles and is freed without it, and its looks were a
    tenth of the time of a busy process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
