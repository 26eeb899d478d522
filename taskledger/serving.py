"""Runs an API until it is told to stop, and lets it end in order."""

import asyncio
import ctypes
import math
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from events.errors import ConfigurationError
from taskledger.lifecycle import spare_collector
from taskledger.protocol import HttpConnection, ServerConfig
from taskledger.settings import HttpSettings
from taskledger.telemetry import get_logger

GRACEFUL_SECONDS: Final = 8
"""How long requests under way may take once nobody is let in any more."""
OTHER_FILES: Final = 256
"""Descriptors for all that is no client's connection."""

_TICK_SECONDS: Final = 0.05
_HANDSHAKE_SECONDS: Final = 0.1
"""For a connection whose client has begun to connect; several round trips."""
_QUEUE_TICKS: Final = 20
"""For accepting those that wait."""

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE_BLOCK_BYTES: Final = 32 * 1024

_SO_ATTACH_FILTER: Final = 26
_REFUSE_SYN: Final = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""Classic BPF: load the TCP flags; SYN set: drop; else take whole. See socket(7) of Linux."""

_logger = get_logger(__name__)


def on_stopping(app: FastAPI, callback: Callable[[], None]) -> None:
    """Called on the event loop once the process stops accepting, while requests are still under way:
    for ending long polls with what there is, which would otherwise be cut off after 8 s."""
    callbacks: list[Callable[[], None]] = getattr(app.state, "on_stopping", [])
    app.state.on_stopping = [*callbacks, callback]


def is_stopping(app: FastAPI) -> bool:
    """Whether the process was told to stop. It still serves then, but is not ready."""
    return bool(getattr(app.state, "stopping", False))


def configure(app: FastAPI, http: HttpSettings) -> ServerConfig:
    return ServerConfig(app, max_connections=http.max_connections, graceful_seconds=GRACEFUL_SECONDS)


def serve(app: FastAPI, *, host: str, port: int, setting: str, http: HttpSettings) -> None:
    """Runs until SIGTERM or SIGINT; then serves on for `http.drain_seconds` without being ready, lets
    requests finish for 8 s and returns.

    Raises ConfigurationError naming `setting` when the port cannot be had.
    """
    _give_memory_back()
    http = http.model_copy(update={"max_connections": _allowed_connections(http.max_connections)})
    with _listen(host, port, setting) as listening:
        _logger.info("listening", host=host, port=port)
        # uvicorn raises the signal again once it has stopped; by then all is done.
        signal.signal(signal.SIGTERM, _stay)
        signal.signal(signal.SIGINT, _stay)
        spare_collector()
        _Server(configure(app, http), app, http.drain_seconds).run(sockets=[listening])


class _Server(uvicorn.Server):
    config: ServerConfig

    def __init__(self, config: ServerConfig, app: FastAPI, drain_seconds: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_seconds = drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._leave()
        for listening in sockets or ():
            await _close_to_newcomers(listening)
        self.config.door.closed = True
        callbacks: list[Callable[[], None]] = getattr(self._app.state, "on_stopping", [])
        for callback in callbacks:
            callback()
        await super().shutdown(sockets)

    async def _leave(self) -> None:
        """Tells everybody that we are going, and gives them the time to hear it."""
        self._app.state.stopping = True
        self.config.door.leaving = True
        for connection in self.server_state.connections:
            if isinstance(connection, HttpConnection):
                connection.leave()
        _logger.info("stopping", drain_seconds=self._drain_seconds)
        for _ in range(math.ceil(self._drain_seconds / _TICK_SECONDS)):
            if self.force_exit:
                return
            await asyncio.sleep(_TICK_SECONDS)


async def _close_to_newcomers(listening: socket.socket) -> None:
    """Returns when closing the socket resets nobody.

    A client whose connection waits to be accepted may have sent its request already. So the kernel is
    told to begin no further ones, and those that wait are accepted first. Who comes meanwhile is
    refused once the socket is closed. Other systems than Linux have no such filter.
    """
    if sys.platform == "linux":
        code = b"".join(struct.pack("HBBI", *instruction) for instruction in _REFUSE_SYN)
        held = ctypes.create_string_buffer(code)
        program = struct.pack("HL", len(_REFUSE_SYN), ctypes.addressof(held))
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    await asyncio.sleep(_HANDSHAKE_SECONDS)
    waiting = select.poll()
    waiting.register(listening.fileno(), select.POLLIN)
    for _ in range(_QUEUE_TICKS):
        if not waiting.poll(0):
            return
        await asyncio.sleep(_TICK_SECONDS)


def _stay(_number: int, _frame: FrameType | None) -> None:
    """A signal handler that lets the caller return and exit with 0."""


def _give_memory_back() -> None:
    """Has glibc return large blocks to the system when they are freed, and threads share their heaps:
    else one burst of large bodies would be paid for until the process ends. See mallopt(3)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        mallopt(_M_ARENA_MAX, 1)


def _allowed_connections(wanted: int) -> int:
    """As many as were asked for, or as the system has descriptors for. A shell's soft limit of 1,024
    is a leftover of select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + OTHER_FILES
    if resource.RLIM_INFINITY not in (soft, hard):
        files = min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
    if files < wanted + OTHER_FILES:
        _logger.warning("too few files for all connections", wanted=wanted, files=files)
    return max(1, files - OTHER_FILES)


def _listen(host: str, port: int, setting: str) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror}); {setting} moves it"
        ) from error
    listening.set_inheritable(True)
    return listening
