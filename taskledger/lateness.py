"""How long a request has lain in the machine before the process came to read it."""

import asyncio
import math
import socket
import struct
import sys
from typing import Any, Final

LATENESS: Final = "taskledger.lateness"
"""ASGI extension: lateness() of the request's connection."""

_ESTABLISHED: Final = 1
_LAST_DATA_RECEIVED: Final = 52
_INFO_BYTES: Final = 56
"""Of Linux's struct tcp_info: the state in its first byte, milliseconds since the last data at 52."""


def lateness(transport: asyncio.Transport, raw: Any) -> float:
    """Seconds since the client sent what was read last: what the process could not know while it was
    frozen or too busy to read. Infinite once the client has hung up; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0.0
    if transport.is_closing():
        return math.inf
    info = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    if info[0] != _ESTABLISHED:
        return math.inf
    return float(struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)[0]) / 1000
