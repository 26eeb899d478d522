"""The one look at a host's addresses before a connection is made: what was checked is what is used."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from command_side.webhooks.targets import Address, Policy, Target, literal_address
from taskledger.settings import WebhookSettings

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to addresses. Raises OSError."""

RESOLVE_SECONDS: Final = 3.0
"""Less than what a request that makes a webhook has."""
_THREADS: Final = 64
"""A name server that does not answer holds a thread for up to half a minute: there must be some left."""


class SystemResolver:
    """The machine's own, in threads of its own: the event loop's few are for everybody."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolver")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        look = asyncio.get_running_loop().run_in_executor(self._threads, _look, host, port)
        return await asyncio.wait_for(look, RESOLVE_SECONDS)

    def close(self) -> None:
        """Waits for nobody: whoever still looks ends with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Guard:
    """Says which addresses may be connected to. WebhookUrlNotAllowed: none of them."""

    def __init__(self, policy: Policy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve

    async def check(self, target: Target) -> None:
        """Raises WebhookUrlNotAllowed, also for a host that cannot be looked up now."""
        try:
            await self.addresses(target.scheme, target.host, target.port)
        except OSError:  # TimeoutError included
            self._policy.permit(target.scheme, target.port, ())

    async def addresses(self, scheme: str, host: str, port: int) -> Sequence[Address]:
        """Of the host as it is now: one at least, all of them allowed. Raises WebhookUrlNotAllowed, and
        OSError (TimeoutError included) where it cannot be looked up."""
        literal = literal_address(host)
        found = [str(literal)] if literal is not None else await self._resolve(host, port)
        return self._policy.permit(scheme, port, found)


def guard_of(hooks: WebhookSettings, resolve: Resolve) -> Guard:
    return Guard(Policy(hooks.allowed_networks, frozenset(hooks.allowed_ports)), resolve)
