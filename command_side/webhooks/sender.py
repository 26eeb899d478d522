"""One request to an endpoint, and what came of it.

httpcore and nothing above it: it follows no redirect, asks no proxy of the environment, keeps no cookie and
unpacks no body. Its connections come from a backend of ours, which looks the host up once, has every
address checked, and connects to one of those: a name that is answered differently a moment later (DNS
rebinding) leads nowhere. Host header and TLS keep the name. An open connection may be used again for a few
seconds: its address has been checked.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import certifi
import httpcore

from command_side.errors import WebhookUrlNotAllowed
from command_side.webhooks.outcomes import Answer, Failure, classify, retry_after_seconds
from command_side.webhooks.resolver import Guard
from command_side.webhooks.targets import Target
from events.errors import ConfigurationError
from taskledger.telemetry import get_logger

KEPT_SECONDS: Final = 2.0
"""An idle connection: less than the five seconds after which common servers close theirs."""
DRAIN_BYTES: Final = 64 * 1024
DRAIN_SECONDS: Final = 1.0
"""What is read of a body, to be thrown away, so that the connection can be used again."""
CONNECT_SECONDS: Final = 5.0
"""To one address, where there are several."""

_logger = get_logger(__name__)


class _UnknownHost(Exception):  # noqa: N818  says what is wrong
    """Its addresses cannot be looked up."""


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses and to no other. Raises WebhookUrlNotAllowed, _UnknownHost, and
    httpcore.ConnectError or ConnectTimeout where none of them takes the connection."""

    def __init__(self, guard: Guard, scheme: str) -> None:
        self._guard = guard
        self._scheme = scheme
        self._network = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._guard.addresses(self._scheme, host, port)
        except OSError as error:
            raise _UnknownHost from error
        *others, last = addresses
        for address in others:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._network.connect_tcp(
                    str(address), port, CONNECT_SECONDS, local_address, socket_options
                )
        return await self._network.connect_tcp(str(last), port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def tls(ca_file: Path | None) -> ssl.SSLContext:
    """Certificates and names are always checked. Raises ConfigurationError for a file that holds none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"TASKLEDGER__WEBHOOKS__CA_FILE: cannot load {ca_file}: {type(error).__name__}"
            ) from None
    return context


class Sender:
    """Each endpoint bounds its own requests; none waits for another's."""

    def __init__(self, guard: Guard, context: ssl.SSLContext, *, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._pools = {
            scheme: httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=None,
                max_keepalive_connections=100,
                keepalive_expiry=KEPT_SECONDS,
                network_backend=GuardedBackend(guard, scheme),
            )
            for scheme in ("https", "http")
        }

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        """Never raises for what the other side does."""
        try:
            async with asyncio.timeout(self._timeout_seconds) as limit:
                return await self._post(target, headers, body, limit)
        except TimeoutError:
            return Answer("timeout")
        except WebhookUrlNotAllowed:
            return Answer("not_allowed")
        except _UnknownHost:
            return Answer("dns")
        except Exception as error:  # noqa: BLE001  whatever one endpoint can cause, the others go on
            return Answer(_failure(error))

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()

    async def _post(
        self, target: Target, headers: Mapping[str, str], body: bytes, limit: asyncio.Timeout
    ) -> Answer:
        url = httpcore.URL(
            scheme=target.scheme, host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        fields = {"Host": target.authority, **headers}
        pool = self._pools[target.scheme]
        async with pool.stream(
            "POST",
            url,
            headers=[(name.encode(), value.encode()) for name, value in fields.items()],
            content=body,
        ) as response:
            answer = _answer(response)
            limit.reschedule(None)  # it has answered: what it says beside that changes nothing
            await _drain(response)
            return answer


async def _drain(response: httpcore.Response) -> None:
    size = 0
    with contextlib.suppress(TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for piece in response.aiter_stream():
                size += len(piece)
                if size > DRAIN_BYTES:
                    return


def _answer(response: httpcore.Response) -> Answer:
    failure = classify(response.status)
    if failure is None:
        return Answer(None, response.status)
    asked = next((v for n, v in response.headers if n.lower() == b"retry-after"), b"")
    seconds = retry_after_seconds(asked.decode("latin-1"), datetime.now(UTC))
    return Answer(failure, response.status, seconds)


def _failure(error: Exception) -> Failure:
    if any(isinstance(cause, ssl.SSLError) for cause in _causes(error)):
        return "tls"
    match error:
        case httpcore.TimeoutException():
            return "timeout"
        case httpcore.ConnectError():
            return "connect"
        case httpcore.NetworkError() | httpcore.ProtocolError() | OSError():
            return "protocol"
        case _:
            _logger.error("unforeseen answer", error=type(error).__name__)
            return "protocol"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
