"""Where webhooks are sent to, over real sockets: names, certificates, redirects, proxies."""

import ssl
from typing import Any

import pytest
import trustme

from tests.integration.webhooks import (
    Hooks,
    delivering,
    receiver,
    reply,
)
from tests.support import Service, eventually


@pytest.fixture
def hooks(service: Service) -> Hooks:
    return Hooks.over(service)


def _tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def _at_loopback(_host: str, _port: int) -> list[str]:
    return ["127.0.0.1"]


async def _tls_outcome(hooks: Hooks, tmp_path: Any, context: ssl.SSLContext, ca: trustme.CA) -> str | None:
    file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(file))
    async with receiver(context=context) as there:
        url = there.url.replace("127.0.0.1", "hooks.example.com")
        async with delivering(hooks.service.dsn, resolve=_at_loopback, ca_file=str(file), max_attempts=1):
            await hooks.create(url)
            await hooks.completed()
            await eventually(lambda: settled(hooks), "an outcome")
            if there.received:
                assert there.received[0].headers["host"] == f"hooks.example.com:{there.port}"
    ((error,),) = await hooks.rows("last_error")
    return None if error is None else str(error)


async def settled(hooks: Hooks) -> bool:
    return [status for status in await hooks.statuses() if status != "pending"] != []


async def test_tls_keeps_the_name_and_trusts_who_it_is_told_to(hooks: Hooks, tmp_path: Any) -> None:
    ca = trustme.CA()
    assert await _tls_outcome(hooks, tmp_path, _tls(ca, "hooks.example.com"), ca) is None


async def test_another_authority_is_not_trusted(hooks: Hooks, tmp_path: Any) -> None:
    context = _tls(trustme.CA(), "hooks.example.com")
    assert await _tls_outcome(hooks, tmp_path, context, trustme.CA()) == "tls"


async def test_a_certificate_of_another_name_is_not_trusted(hooks: Hooks, tmp_path: Any) -> None:
    ca = trustme.CA()
    assert await _tls_outcome(hooks, tmp_path, _tls(ca, "other.example.com", "127.0.0.1"), ca) == "tls"


async def test_a_name_that_is_answered_differently_later_leads_nowhere(hooks: Hooks) -> None:
    """DNS rebinding: what was checked at the creation is another address when the event comes."""
    looked: list[str] = []

    async def rebinding(host: str, _port: int) -> list[str]:
        looked.append(host)
        return ["127.0.0.1"]

    async with receiver() as there:
        url = f"https://rebinding.example.com:{there.port}/"
        async with delivering(
            hooks.service.dsn,
            resolve=rebinding,
            allowed_networks=[],
            allowed_ports=[there.port],
            max_attempts=2,
        ):
            await hooks.create(url)
            await hooks.completed()
            await hooks.become("dead")
    assert await hooks.rows("attempt, last_error") == [(2, "not_allowed")]
    assert looked == ["rebinding.example.com"] * 2
    assert not there.connections


async def test_a_name_that_nobody_knows_is_tried_again(hooks: Hooks) -> None:
    known = False

    async def late(_host: str, _port: int) -> list[str]:
        if not known:
            raise OSError("no such name")
        return ["::1", "127.0.0.1"]  # nothing listens at the first

    async with receiver() as there, delivering(hooks.service.dsn, resolve=late):
        await hooks.create(f"http://later.example.com:{there.port}/")
        await hooks.completed()
        await eventually(lambda: failed_by(hooks, "dns"), "a failure")
        known = True
        await hooks.become("delivered")


async def failed_by(hooks: Hooks, error: str) -> bool:
    return any(row == (error,) for row in await hooks.rows("last_error"))


async def test_redirects_are_not_followed(hooks: Hooks) -> None:
    async with receiver() as secret_place:
        to = f"Location: {secret_place.url}"
        async with (
            receiver(lambda _: reply(307, to)) as there,
            delivering(hooks.service.dsn, max_attempts=2),
        ):
            await hooks.create(there.url)
            await hooks.completed()
            await hooks.become("dead")
    assert await hooks.rows("attempt, last_status, last_error") == [(2, 307, "redirect")]
    assert not secret_place.received


async def test_no_proxy_of_the_environment_is_asked(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as proxy, receiver() as there:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with delivering(hooks.service.dsn):
            await hooks.create(there.url)
            await hooks.completed()
            await there.has(1)
    assert not proxy.received
