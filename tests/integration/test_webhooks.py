"""What a webhook is told, by the process that delivers, over real HTTP."""

import asyncio
import logging
import ssl
import time
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest
import trustme
from eventsourcing.persistence import StoredEvent

from command_side.commands import CancelTask, RequeueTask, StartTask
from command_side.webhooks.webhook import (
    DeleteWebhook,
    DisableWebhook,
    EnableWebhook,
    Redeliver,
    RotateSecret,
    SendTest,
)
from events.append import AppendCommand, Appended, StreamAppend
from taskledger import metrics
from tests.integration.webhooks import (
    MASTER,
    OK,
    Behaviour,
    Hooks,
    Received,
    Reply,
    delivering,
    position_of,
    receiver,
    reply,
    secret_of,
    settings_for,
    verify,
)
from tests.support import Service, eventually


@pytest.fixture
def hooks(service: Service) -> Hooks:
    return Hooks.over(service)


def first(count: int, then: Reply, after: Reply = OK) -> Behaviour:
    """Answers `then` to the first requests and `after` to all that follow."""
    seen = 0

    def behave(_: Received) -> Reply:
        nonlocal seen
        seen += 1
        return then if seen <= count else after

    return behave


async def test_a_completed_task_is_told_signed(hooks: Hooks) -> None:
    async with receiver() as there, delivering(hooks.service.dsn):
        webhook = await hooks.create(there.url)
        task = await hooks.completed({"sum": 3}, tags=("blue",))
        (request,) = await there.has(1)
        await hooks.become("delivered")
    tag = await hooks.service.log.tag()
    assert request.path == "/hook?of=tasks"
    assert verify(secret_of(webhook), request)
    assert not verify(secret_of(webhook, 2), request)
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    assert request.id == f"{webhook.id.hex}_{task.position}_{tag}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == f"127.0.0.1:{there.port}"
    message = request.json
    assert (message["type"], message["webhook"]) == ("TaskCompleted", str(webhook.id))
    data = message["data"]
    assert data["url"] == f"https://tasks.example/tasks/{task.id}?min_position={task.position}.{tag}"
    assert (data["id"], data["status"], data["result"]) == (str(task.id), "completed", {"sum": 3})
    assert "payload" not in data


async def test_each_is_told_what_it_asks_for_from_its_creation_on(hooks: Hooks) -> None:
    async with receiver() as there, delivering(hooks.service.dsn):
        await hooks.completed("before anybody asked")
        wanted = {
            "all": await hooks.create(there.url),
            "kind": await hooks.create(there.url, kinds=("other",)),
            "queue": await hooks.create(there.url, queues=("slow",)),
            "tags": await hooks.create(there.url, tags=("a", "b")),
            "types": await hooks.create(there.url, types=("TaskCreated", "TaskCancelled")),
        }
        await hooks.completed("plain")
        await hooks.completed("kind", kind="other")
        await hooks.completed("queue", queue="slow")
        await hooks.completed("tags", tags=("b", "c", "a"))
        await hooks.completed("one tag", tags=("a",))
        cancelled = await hooks.service.create()
        await hooks.service.execute(cancelled.id, CancelTask())
        await there.has(5 + 3 + 7)
    names = {webhook.id.hex: name for name, webhook in wanted.items()}
    told: dict[str, list[Any]] = {name: [] for name in wanted}
    for request in sorted(there.received, key=lambda r: position_of(r.id)):
        told[names[request.id.split("_")[0]]].append(request.json)
    results = {name: [m["data"]["result"] for m in told[name]] for name in told}
    assert results["all"] == ["plain", "kind", "queue", "tags", "one tag"]
    assert (results["kind"], results["queue"], results["tags"]) == (["kind"], ["queue"], ["tags"])
    assert Counter(m["type"] for m in told["types"]) == {"TaskCreated": 6, "TaskCancelled": 1}


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (reply(500), "status"),
        (reply(404, body=b"x" * 1000), "status"),
        (reply(302, "Location: http://127.0.0.1:1/"), "redirect"),
        (b"nonsense\r\n\r\n", "protocol"),
        (b"", "protocol"),
        (b"HTTP/1.1 2", "protocol"),
        (b"HTTP/1.1 200 " + b"x" * 200_000 + b"\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000 + b"\r\n", "protocol"),
    ],
    ids=["500", "404", "redirect", "nonsense", "silence", "half", "long line", "many headers"],
)
async def test_what_is_not_2xx_is_sent_again_under_the_same_id(
    hooks: Hooks, trouble: bytes, error: str
) -> None:
    def behave(_: Received) -> Reply:
        return trouble if len(there.received) == 1 else OK

    async with receiver(behave) as there, delivering(hooks.service.dsn):
        await hooks.create(there.url)
        await hooks.completed()
        await there.has(1)
        await hooks.become("delivered")
    first_try, second = there.received
    assert first_try.id == second.id
    assert first_try.body == second.body
    assert await hooks.rows("attempt, last_status, last_error") == [(2, 200, None)]
    sample = f'taskledger_webhook_attempts_total{{outcome="{error}"}}'
    assert sample in metrics.exposition()[0].decode()


async def test_a_request_that_hangs_ends_at_its_time_and_holds_up_nobody_else(hooks: Hooks) -> None:

    async def slow(_host: str, _port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    async with (
        receiver(lambda _: None) as stuck,
        receiver() as well,
        delivering(hooks.service.dsn, timeout_seconds=1.5, resolve=slow),
    ):
        await hooks.create("https://no-name-server-knows.example.com/")
        await hooks.create(stuck.url)
        await hooks.create(well.url)
        await hooks.many(20)
        await well.has(20)
        assert len(stuck.received) <= 8
        rows = await hooks.rows("status, last_error")
        assert len(rows) == 60
        await eventually(lambda: timed_out(hooks), "a timeout", within=30)
        answered = list(well.received)
        await hooks.many(5)
        await well.has(len(answered) + 5)


async def timed_out(hooks: Hooks) -> bool:
    return any(error == "timeout" for (error,) in await hooks.rows("last_error"))


async def test_a_success_counts_whatever_body_follows(hooks: Hooks) -> None:
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536
    huge = reply(200, body=b"y" * 3_000_000)
    packed = reply(200, "Content-Encoding: gzip", body=b"\x1f\x8b" + b"z" * 100)
    answers = iter([endless, huge, packed])
    async with receiver(lambda _: next(answers)) as there, delivering(hooks.service.dsn, concurrency=1):
        await hooks.create(there.url)
        await hooks.many(3)
        await hooks.become("delivered", "delivered", "delivered")
    assert await hooks.rows("attempt, last_status") == [(1, 200)] * 3


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


async def test_what_is_never_taken_is_dead_and_can_be_sent_again(hooks: Hooks) -> None:
    async with receiver(lambda _: reply(500)) as there, delivering(hooks.service.dsn, max_attempts=3):
        webhook = await hooks.create(there.url)
        await hooks.completed()
        await hooks.become("dead")
        assert await hooks.rows("attempt, last_status, last_error") == [(3, 500, "status")]
        there.behaviour = lambda _: OK
        await hooks.webhooks.execute(webhook.id, Redeliver(dead=True))
        await hooks.become("delivered")
    assert len(set(there.ids)) == 1
    assert len(there.ids) == 4


async def test_an_endpoint_that_is_gone_disables_its_webhook(hooks: Hooks) -> None:
    async with receiver(lambda _: reply(410)) as there, delivering(hooks.service.dsn):
        webhook = await hooks.create(there.url)
        await hooks.completed()
        await eventually(lambda: is_disabled(hooks, webhook.id, "gone"), "it to be disabled")
        await hooks.become("dead")
        there.behaviour = lambda _: OK
        missed = await hooks.completed()
        await eventually(lambda: caught_up(hooks), "the follower")
        assert len(await hooks.rows()) == 1
        await hooks.webhooks.execute(webhook.id, EnableWebhook())
        await hooks.webhooks.execute(webhook.id, Redeliver(after=missed.position - 1))
        await hooks.become("dead", "delivered")
    assert position_of(there.ids[-1]) == missed.position


async def is_disabled(hooks: Hooks, webhook: Any, cause: str) -> bool:
    topics = await hooks.service.log.read_stream(webhook)
    return topics[-1].topic == "WebhookDisabled" and f'"cause":"{cause}"'.encode() in topics[-1].state


async def caught_up(hooks: Hooks) -> bool:
    async with hooks.service.pool.connection() as connection:
        cursor = await connection.execute(
            "select position from taskledger.checkpoints where name = 'webhooks'"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0]) == await hooks.service.log.head()


async def test_an_endpoint_that_fails_for_too_long_disables_its_webhook(hooks: Hooks) -> None:
    async with (
        receiver(lambda _: reply(503)) as there,
        delivering(hooks.service.dsn, disable_after_hours=0.5 / 3600),
    ):
        webhook = await hooks.create(there.url)
        await hooks.completed()
        await eventually(lambda: is_disabled(hooks, webhook.id, "failing"), "it to be disabled")
    assert len(there.received) >= 2
    assert await hooks.statuses() == ["pending"]


async def test_retry_after_is_obeyed(hooks: Hooks) -> None:
    async with (
        receiver(first(1, reply(429, "Retry-After: 2"))) as there,
        delivering(hooks.service.dsn, retry_cap_seconds=9),
    ):
        await hooks.create(there.url)
        await hooks.completed()
        await there.has(1)
        began = time.monotonic()
        await there.has(2)
        assert time.monotonic() - began > 1.5


async def test_events_of_one_task_are_sent_in_order_whatever_fails(hooks: Hooks) -> None:
    seen: Counter[str] = Counter()

    def behave(request: Received) -> Reply:
        seen[request.id] += 1
        return reply(500) if seen[request.id] == 1 and position_of(request.id) % 2 else OK

    types = ("TaskCreated", "TaskStarted", "TaskCancelRequested", "TaskCancelled", "TaskRequeued")
    async with receiver(behave) as there, delivering(hooks.service.dsn):
        await hooks.create(there.url, types=types)
        tasks = [await hooks.service.create() for _ in range(5)]
        for task in tasks:
            await hooks.service.execute(task.id, CancelTask())
            await hooks.service.execute(task.id, RequeueTask())
            await hooks.service.execute(task.id, StartTask(holder="h", worker="w"))
        await hooks.become(*["delivered"] * 20)
    taken: dict[str, list[int]] = {}
    for request in there.received:
        if seen[request.id] == 1 or request is not there.received[there.ids.index(request.id)]:
            taken.setdefault(request.json["data"]["id"], []).append(position_of(request.id))
    assert len(taken) == 5
    assert all(positions == sorted(positions) for positions in taken.values())
    assert len(there.received) > 20


async def test_an_event_that_is_never_taken_holds_up_no_other_task(hooks: Hooks) -> None:
    async with (
        receiver(lambda r: reply(500) if r.json["data"]["kind"] == "poison" else OK) as there,
        delivering(hooks.service.dsn, retry_base_seconds=600, retry_cap_seconds=600),
    ):
        await hooks.create(there.url)
        await hooks.completed(kind="poison")
        await hooks.many(30)
        await hooks.become("pending", *["delivered"] * 30)


async def test_all_of_history_can_be_asked_for(hooks: Hooks) -> None:
    await hooks.many(30)
    async with receiver() as there, delivering(hooks.service.dsn):
        webhook = await hooks.create(there.url, after=0)
        await there.has(30)
        await hooks.become(*["delivered"] * 30)
        positions = sorted(position_of(i) for i in there.ids)
        await hooks.webhooks.execute(webhook.id, Redeliver(after=positions[26]))
        await there.has(33)
        await hooks.webhooks.execute(webhook.id, Redeliver(after=positions[3] - 1, upto=positions[3]))
        await there.has(34)
    assert sorted(position_of(i) for i in there.ids[30:33]) == positions[27:]
    assert position_of(there.ids[33]) == positions[3]
    assert len(set(there.ids)) == 30


async def test_a_test_is_sent_first_and_whatever_the_webhook_asks_for(hooks: Hooks) -> None:
    async with receiver() as there, delivering(hooks.service.dsn):
        webhook = await hooks.create(there.url, types=("TaskDiscarded",), kinds=("none",))
        tested = await hooks.webhooks.execute(webhook.id, SendTest())
        (request,) = await there.has(1)
    assert verify(secret_of(webhook), request)
    assert request.json["type"] == "WebhookTested"
    assert position_of(request.id) == tested.position


async def test_a_deleted_one_gets_nothing_more_and_leaves_nothing(hooks: Hooks) -> None:
    async with receiver(lambda _: reply(500)) as there, delivering(hooks.service.dsn):
        webhook = await hooks.create(there.url)
        await hooks.completed()
        await there.has(1)
        await hooks.webhooks.execute(webhook.id, DeleteWebhook())
        await hooks.completed()
        await eventually(lambda: caught_up(hooks), "the follower")
        assert len(await hooks.rows()) == 1
    async with delivering(hooks.service.dsn):
        await eventually(lambda: nothing_left(hooks), "it to be cleared away")


async def nothing_left(hooks: Hooks) -> bool:
    return not await hooks.rows()


async def test_a_disabled_one_goes_on_where_it_was(hooks: Hooks) -> None:
    async with receiver(lambda _: reply(500)) as there, delivering(hooks.service.dsn):
        webhook = await hooks.create(there.url)
        await hooks.completed()
        await there.has(1)
        await hooks.webhooks.execute(webhook.id, DisableWebhook())
        await eventually(lambda: caught_up(hooks), "the follower")
        there.behaviour = lambda _: OK
        await hooks.webhooks.execute(webhook.id, EnableWebhook())
        await hooks.become("delivered")


async def test_secrets_can_be_exchanged_while_it_works(hooks: Hooks) -> None:
    new = "another master secret, just as long as that"
    async with receiver() as there, delivering(hooks.service.dsn, secret=new, previous_secret=MASTER):
        webhook = await hooks.create(there.url)
        await hooks.completed()
        (both,) = await there.has(1)
        assert verify(secret_of(webhook), both)
        assert verify(secret_of(webhook, master=new), both)
        await hooks.webhooks.execute(webhook.id, RotateSecret())
        await hooks.completed()
        rotated = (await there.has(2))[1]
        assert verify(secret_of(webhook, 2, new), rotated)
        assert verify(secret_of(webhook, 1, new), rotated)


async def test_a_second_process_stands_by_and_takes_over(hooks: Hooks) -> None:
    async with receiver() as there:
        async with delivering(hooks.service.dsn), delivering(hooks.service.dsn) as standby:
            await hooks.create(there.url)
            await hooks.many(5)
            await there.has(5)
            await hooks.become(*["delivered"] * 5)
            assert standby.missing() == []
        async with delivering(hooks.service.dsn):
            await hooks.many(5)
            await hooks.become(*["delivered"] * 10)
    assert len(there.ids) == len(set(there.ids)) == 10


async def test_what_a_stopped_process_has_not_sent_the_next_one_does(hooks: Hooks) -> None:
    async with receiver(lambda _: None) as there:
        async with delivering(hooks.service.dsn):
            await hooks.create(there.url)
            await hooks.many(20)
            await there.has(8)
        await hooks.many(5)
        there.behaviour = lambda _: OK
        async with delivering(hooks.service.dsn):
            await hooks.become(*["delivered"] * 25)


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


async def test_no_secret_and_no_result_is_logged(
    hooks: Hooks, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    canary = "canary-" + "7" * 20
    async with (
        receiver(first(2, reply(500, body=canary.encode()))) as there,
        delivering(hooks.service.dsn),
    ):
        webhook = await hooks.create(f"{there.url}&token={canary}")
        await hooks.completed(canary, payload={"x": canary})
        await hooks.become("delivered")
    said = caplog.text + "".join(capfd.readouterr())
    assert MASTER not in said
    assert secret_of(webhook).removeprefix("whsec_") not in said
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpcore", "asyncio"))]
    assert not [line for line in ours if canary in line]
    async with hooks.service.pool.connection() as connection:
        for table in ("webhooks", "webhook_deliveries"):
            cursor = await connection.execute(f"select * from taskledger.{table}".encode())
            text = str(await cursor.fetchall())
            assert MASTER not in text
            assert secret_of(webhook).removeprefix("whsec_") not in text
            assert table == "webhooks" or canary not in text


async def test_without_webhooks_nothing_is_read_but_the_checkpoint_moves(hooks: Hooks) -> None:
    async with delivering(hooks.service.dsn):
        await hooks.many(10)
        await eventually(lambda: caught_up(hooks), "the follower")
    assert await hooks.rows() == []


async def test_an_event_of_a_webhook_that_a_later_release_wrote_stops_it_visibly(hooks: Hooks) -> None:
    async with receiver() as there, delivering(hooks.service.dsn) as status:
        webhook = await hooks.create(there.url)
        await hooks.completed("before")
        await there.has(1)
        await _append(hooks, webhook.id, 2, "WebhookEnabled", b'{"class_version":9}')
        await hooks.completed("after")
        await eventually(lambda: _halted(status), "it to stand")
        assert "WebhookEnabled" in status.missing()[0]
        assert 'taskledger_follower_halted{follower="webhooks"} 1.0' in metrics.exposition()[0].decode()
    assert len(there.received) == 1


async def test_aggregates_and_events_that_nobody_knows_are_passed_over(hooks: Hooks) -> None:
    async with receiver() as there, delivering(hooks.service.dsn):
        await hooks.create(there.url)
        await _append(hooks, uuid4(), 1, "InvoicePaid", b"{}")
        await _append(hooks, uuid4(), 1, "WebhookTeleported", b"{}")
        await hooks.completed()
        await there.has(1)


async def test_a_history_that_cannot_be_read_yet_is_tried_again(hooks: Hooks) -> None:
    unreadable = uuid4()
    created = b'{"event_uid":"u","kind":"sum","payload":1}'
    async with receiver() as there, delivering(hooks.service.dsn, max_attempts=3):
        await hooks.create(there.url)
        await _append(hooks, unreadable, 1, "TaskCreated", created)
        await _append(hooks, unreadable, 2, "TaskTeleported", b"{}")
        await _append(hooks, unreadable, 3, "TaskCompleted", b'{"event_uid":"u","attempt":1}')
        await hooks.completed()
        await hooks.become("dead", "delivered")
    assert await hooks.rows("attempt, last_error") == [(3, "unreadable"), (1, None)]


async def _append(hooks: Hooks, stream: UUID, version: int, topic: str, state: bytes) -> None:
    event = StoredEvent(stream, version, topic, state)
    outcome = await hooks.service.commits.append(AppendCommand([StreamAppend(stream, [event])]))
    assert isinstance(outcome, Appended)


async def _halted(status: Any) -> bool:
    return any(line.startswith("log: a release that can apply") for line in status.missing())


async def test_it_goes_on_after_the_database_was_away(hooks: Hooks) -> None:
    async with receiver() as there, delivering(hooks.service.dsn) as status:
        await hooks.create(there.url)
        await hooks.completed()
        await there.has(1)
        async with hooks.service.pool.connection() as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'taskledger-webhooks%' and datname = current_database()"
            )
        await hooks.many(5)
        await hooks.become(*["delivered"] * 6)
        await eventually(lambda: _ready(status), "it to be ready")
    assert set(there.ids) == {r.id for r in there.received}
    assert len(set(there.ids)) == 6


async def _ready(status: Any) -> bool:
    return not status.missing()


def test_the_master_secret_is_checked(tmp_path: Any) -> None:
    from events.errors import ConfigurationError

    file = tmp_path / "secret"
    file.write_text(MASTER + "\n")
    read = settings_for("postgresql://x", secret=None, secret_file=str(file))
    assert read.webhook_secrets() == (MASTER.encode(),)
    assert settings_for("postgresql://x", secret=None).webhook_secrets() == ()
    for wrong in (
        {"secret": "short"},
        {"secret": None, "previous_secret": MASTER},
        {"secret": None, "secret_file": str(tmp_path / "none")},
    ):
        with pytest.raises(ConfigurationError, match="TASKLEDGER__WEBHOOKS__") as caught:
            settings_for("postgresql://x", **wrong).webhook_secrets()
        assert "short" not in str(caught.value).replace("shorter", "")
