"""Ports that stay ours while the processes that listen on them die and come back."""

import socket


class Ports:
    """Each is bound by a socket that never listens: neither another program nor an outgoing connection
    can be given it meanwhile, and a server that sets SO_REUSEADDR can listen on it."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self) -> int:
        held = socket.socket()
        held.bind(("127.0.0.1", 0))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.append(held)
        return int(held.getsockname()[1])

    def release(self) -> None:
        while self._held:
            self._held.pop().close()
