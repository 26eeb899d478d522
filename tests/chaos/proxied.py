"""One connection through a proxy: its two ends, and how they end."""

import asyncio
import socket
import struct
from dataclasses import dataclass, field

LINGER_ZERO = struct.pack("ii", 1, 0)
READY_FOR_QUERY = b"Z\x00\x00\x00\x05"
NO_REQUEST = b"\x00pX"
"""First bytes of what a PostgreSQL client says before its first request, and of its goodbye."""


@dataclass(eq=False, slots=True)
class Connection:
    client_reader: asyncio.StreamReader
    client: asyncio.StreamWriter
    server_reader: asyncio.StreamReader
    server: asyncio.StreamWriter
    hello: bytes = b""
    lost: bool = False
    left: int | None = None
    """Bytes from the server until the cut."""
    swallowing: bool = False
    tail: bytes = b""
    """The end of what was swallowed: a message may come in two pieces."""
    healed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def postgres(self) -> bool:
        return self.hello[:1] == b"\x00"

    def is_request(self, data: bytes) -> bool:
        return not self.postgres or data[0] not in NO_REQUEST

    def close(self) -> None:
        """What has been written still arrives."""
        self.client.close()
        self.server.close()

    def reset(self) -> None:
        for writer in (self.client, self.server):
            reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN: the peer's next read or write fails, and nothing unsent arrives."""
    if (found := writer.get_extra_info("socket")) is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    writer.transport.abort()
