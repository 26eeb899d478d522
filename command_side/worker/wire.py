"""What a worker and its child processes say to each other: JSON frames behind a length."""

import asyncio
import socket
import struct
import threading
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, TypeAdapter

from command_side.worker.outcomes import Outcome

_LENGTH: Final = struct.Struct("!I")
_OUTCOME: Final[TypeAdapter[Outcome]] = TypeAdapter(Annotated[Outcome, Field(discriminator="type")])


def frame(message: Any) -> bytes:
    body = orjson.dumps(message)
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> Any:
    """Raises asyncio.IncompleteReadError where the other side ended."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return orjson.loads(await reader.readexactly(length))


def outcome_message(outcome: Outcome) -> Any:
    return {"outcome": _OUTCOME.dump_python(outcome, mode="json")}


def outcome_in(message: Any) -> Outcome:
    return _OUTCOME.validate_python(message["outcome"])


class Channel:
    """The child's end. Blocking; handlers may report from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        with self._lock:
            self._connection.sendall(frame(message))

    def receive(self) -> Any:
        """Raises EOFError when the worker has gone."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return orjson.loads(self._exactly(length))

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            part = self._connection.recv(min(count, 1024 * 1024))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
