"""Runs an API until it is told to stop, and lets it end in order."""

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from events.errors import ConfigurationError
from taskledger.telemetry import get_logger

GRACEFUL_SECONDS: Final = 8
"""How long requests under way may take once the process was told to stop."""

_logger = get_logger(__name__)


def on_stopping(app: FastAPI, callback: Callable[[], None]) -> None:
    """Called on the event loop once the process was told to stop, while requests are still under way:
    for ending long polls with what there is, which would otherwise be cut off after 8 s."""
    callbacks: list[Callable[[], None]] = getattr(app.state, "on_stopping", [])
    app.state.on_stopping = [*callbacks, callback]


def serve(app: FastAPI, *, host: str, port: int, setting: str) -> None:
    """Runs until SIGTERM or SIGINT, then lets requests finish for 8 s and returns.

    Raises ConfigurationError naming `setting` when the port cannot be had.
    """
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    with _listen(host, port, setting) as listening:
        _logger.info("listening", host=host, port=port)
        # uvicorn raises the signal again once it has stopped; by then all is done.
        signal.signal(signal.SIGTERM, _stay)
        signal.signal(signal.SIGINT, _stay)
        _Server(config, app).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        callbacks: list[Callable[[], None]] = getattr(self._app.state, "on_stopping", [])
        for callback in callbacks:
            callback()
        await super().shutdown(sockets)


def _stay(_number: int, _frame: FrameType | None) -> None:
    """A signal handler that lets the caller return and exit with 0."""


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
