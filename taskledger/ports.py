"""Addresses of the two APIs: free, before anything is started, and as a client writes them."""

import errno
import socket
from contextlib import ExitStack
from typing import Final

from events.errors import ConfigurationError
from taskledger.settings import CommandApiSettings, QueryApiSettings, Settings

_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (recognised, not bound)


def choose_ports(settings: Settings, held: ExitStack) -> dict[str, int]:
    """`COMMAND_API` and `QUERY_API` -> the port; where the setting is 0, a free one.

    Both are ours until `held` is closed: bound, but not listened on, so that neither another program nor
    an outgoing connection is given one while its process starts, or is started again. That process can
    listen there, since it sets SO_REUSEADDR. Raises ConfigurationError naming the setting where a port
    cannot be had.
    """
    command, query = settings.command_api, settings.query_api
    chosen = {
        "COMMAND_API": _take(held, command, "COMMAND_API"),
        "QUERY_API": _take(held, query, "QUERY_API"),
    }
    if command.host == query.host and chosen["COMMAND_API"] == chosen["QUERY_API"]:
        raise ConfigurationError(
            f"both APIs would listen on {query.host}:{query.port}; set TASKLEDGER__QUERY_API__PORT"
        )
    return chosen


def url(host: str, port: int) -> str:
    """How a client on this machine reaches it."""
    name = _ANY.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _take(held: ExitStack, api: CommandApiSettings | QueryApiSettings, section: str) -> int:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            api.host, api.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = held.enter_context(socket.socket(family, kind, protocol))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ConfigurationError(_told(error, api.host, api.port, section)) from None
    return int(bound.getsockname()[1])


def _told(error: OSError, host: str, port: int, section: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            why, way_out = "something else listens there", f"stop it, or set TASKLEDGER__{section}__PORT"
        case errno.EACCES:
            why, way_out = "ports below 1024 are root's", f"set TASKLEDGER__{section}__PORT"
        case _:
            why, way_out = error.strerror or str(error), f"set TASKLEDGER__{section}__HOST"
    return f"cannot listen on {host}:{port}: {why}; {way_out}"
