"""The eventsourcing library's conformance cases for recorders.

Their module also imports a cipher for cases of its own, from a package we do not depend on
(pycryptodome). No recorder case uses it, so a stand-in takes its place during that import only.
Use them as `conformance.ApplicationRecorderTestCase`: an abstract case imported by its name would be
collected as a test of the importing module.
"""

import sys
from importlib.util import find_spec
from types import ModuleType

_CIPHER = "eventsourcing.cipher"

if find_spec("Crypto") is None:
    _stand_in = ModuleType(_CIPHER)
    _stand_in.__dict__["AESCipher"] = None
    sys.modules[_CIPHER] = _stand_in
try:
    from eventsourcing.tests.persistence import (
        ApplicationRecorderTestCase,
        NonInterleavingNotificationIDsBaseCase,
        TrackingRecorderTestCase,
    )
finally:
    if find_spec("Crypto") is None:
        del sys.modules[_CIPHER]

__all__ = [
    "ApplicationRecorderTestCase",
    "NonInterleavingNotificationIDsBaseCase",
    "TrackingRecorderTestCase",
]
