"""Addresses of the two APIs: free, before anything is started, and as a client writes them."""

import errno
import socket
from contextlib import ExitStack
from typing import Final

from events.errors import ConfigurationError
from taskledger.settings import CommandApiSettings, QueryApiSettings, Settings

_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (recognised, not bound)


def choose_ports(settings: Settings) -> dict[str, int]:
    """`COMMAND_API` and `QUERY_API` -> the port; where the setting is 0, a free one.

    Raises ConfigurationError naming the setting where a port cannot be had. The process that binds
    it for good can still lose it to another; it then says the same.
    """
    with ExitStack() as held:  # both at once, so that they differ
        return {
            "COMMAND_API": _try(held, settings.command_api, "COMMAND_API"),
            "QUERY_API": _try(held, settings.query_api, "QUERY_API"),
        }


def url(host: str, port: int) -> str:
    """How a client on this machine reaches it."""
    name = _ANY.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _try(held: ExitStack, api: CommandApiSettings | QueryApiSettings, section: str) -> int:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            api.host, api.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = held.enter_context(socket.socket(family, kind, protocol))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1)
    except OSError as error:
        raise ConfigurationError(_told(error, api.host, api.port, section)) from None
    return int(listening.getsockname()[1])


def _told(error: OSError, host: str, port: int, section: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            why, way_out = "something else listens there", f"stop it, or set TASKLEDGER__{section}__PORT"
        case errno.EACCES:
            why, way_out = "ports below 1024 are root's", f"set TASKLEDGER__{section}__PORT"
        case _:
            why, way_out = error.strerror or str(error), f"set TASKLEDGER__{section}__HOST"
    return f"cannot listen on {host}:{port}: {why}; {way_out}"
