"""Webhooks: the process that delivers is killed or cut off, and endpoints do what they like."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from command_side.webhooks import sender
from command_side.webhooks.store import Kept, WebhookStore
from command_side.webhooks.webhook import (
    EnableWebhook,
    Redeliver,
)
from events.errors import StorageFull, StoreUnavailable
from taskledger import metrics
from tests.e2e.running import Running
from tests.integration.webhooks import (
    MASTER,
    OK,
    Hooks,
    Received,
    Reply,
    delivering,
    position_of,
    receiver,
    reply,
)
from tests.support import Service, eventually


@pytest.fixture
def hooks(service: Service) -> Hooks:
    return Hooks.over(service)


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
async def test_webhooks_what_is_not_taken_is_sent_again_under_the_same_id(
    hooks: Hooks, trouble: bytes, error: str
) -> None:
    """An endpoint answers 404 or 500, a redirect, noise, half a line, or headers without end -> The event
    is sent again, with the same id and body, until it is taken."""

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


async def test_webhooks_an_endpoint_that_hangs_holds_up_nobody_else(hooks: Hooks) -> None:
    """One endpoint takes requests and never answers, and the name server of another never does -> Their
    requests end at their time and are tried again; everybody else's webhooks are delivered meanwhile."""

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


async def test_webhooks_a_success_counts_whatever_body_follows(hooks: Hooks) -> None:
    """An endpoint answers 200 with a body without end, of megabytes, or packed -> Delivered, once; the body
    is neither kept nor read to its end."""
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536
    huge = reply(200, body=b"y" * 3_000_000)
    packed = reply(200, "Content-Encoding: gzip", body=b"\x1f\x8b" + b"z" * 100)
    answers = iter([endless, huge, packed])
    async with receiver(lambda _: next(answers)) as there, delivering(hooks.service.dsn, concurrency=1):
        await hooks.create(there.url)
        await hooks.many(3)
        await hooks.become("delivered", "delivered", "delivered")
    assert await hooks.rows("attempt, last_status") == [(1, 200)] * 3


@pytest.mark.faults
async def test_webhooks_a_success_counts_though_its_body_never_comes(hooks: Hooks) -> None:
    """An endpoint answers 200 and then falls silent -> Delivered, once, whatever its time is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sender, "DRAIN_SECONDS", 3.0)
        async with (
            receiver(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot") as there,
            delivering(hooks.service.dsn, timeout_seconds=2.0),
        ):
            await hooks.create(there.url)
            await hooks.completed()
            await hooks.become("delivered")
    assert len(there.received) == 1


async def test_webhooks_an_endpoint_that_is_gone_disables_its_webhook(hooks: Hooks) -> None:
    """An endpoint answers 410 -> Its webhook is disabled, in the log; enabled again, it can ask for what it
    missed."""
    async with receiver(lambda _: reply(410)) as there, delivering(hooks.service.dsn):
        webhook = await hooks.create(there.url)
        await hooks.completed()
        await hooks.disabled(webhook, "gone")
        await hooks.become("dead")
        there.behaviour = lambda _: OK
        missed = await hooks.completed()
        await hooks.caught_up()
        assert len(await hooks.rows()) == 1
        await hooks.webhooks.execute(webhook.id, EnableWebhook())
        await hooks.webhooks.execute(webhook.id, Redeliver(after=missed.position - 1))
        await hooks.become("dead", "delivered")
    assert position_of(there.ids[-1]) == missed.position


async def test_webhooks_an_endpoint_that_fails_for_too_long_disables_its_webhook(hooks: Hooks) -> None:
    """An endpoint takes nothing for days -> Its webhook is disabled; what waits is kept for when it is
    enabled."""
    async with (
        receiver(lambda _: reply(503)) as there,
        delivering(hooks.service.dsn, disable_after_hours=0.5 / 3600),
    ):
        webhook = await hooks.create(there.url)
        await hooks.completed()
        await hooks.disabled(webhook, "failing")
    assert len(there.received) >= 2
    assert await hooks.statuses() == ["pending"]


async def test_webhooks_an_event_that_is_never_taken_holds_up_no_other_task(hooks: Hooks) -> None:
    """An endpoint refuses one task's events for ever -> Those of other tasks are delivered."""
    async with (
        receiver(lambda r: reply(500) if r.json["data"]["kind"] == "poison" else OK) as there,
        delivering(hooks.service.dsn, retry_base_seconds=600, retry_cap_seconds=600),
    ):
        await hooks.create(there.url)
        await hooks.completed(kind="poison")
        await hooks.many(30)
        await hooks.become("pending", *["delivered"] * 30)


async def test_webhooks_a_second_process_stands_by_and_takes_over(hooks: Hooks) -> None:
    """The leading process stops -> The one that stands by goes on; nothing was sent twice."""
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


async def test_webhooks_stopped_amid_requests_the_next_process_sends_them(hooks: Hooks) -> None:
    """SIGTERM while requests are under way -> They are sent again by the next process, with the others."""
    async with receiver(lambda _: None) as there:
        async with delivering(hooks.service.dsn):
            await hooks.create(there.url)
            await hooks.many(20)
            await there.has(8)
        await hooks.many(5)
        there.behaviour = lambda _: OK
        async with delivering(hooks.service.dsn):
            await hooks.become(*["delivered"] * 25)


async def test_webhooks_an_event_of_a_later_release_stops_them_visibly(hooks: Hooks) -> None:
    """A later release wrote an event of a webhook -> The process stands before it, is not ready, and says
    which release it waits for."""
    async with receiver() as there, delivering(hooks.service.dsn) as status:
        webhook = await hooks.create(there.url)
        await hooks.completed("before")
        await there.has(1)
        await hooks.append(webhook.id, 2, "WebhookEnabled", b'{"class_version":9}')
        await hooks.completed("after")
        await eventually(lambda: _halted(status), "it to stand")
        assert "WebhookEnabled" in status.missing()[0]
        assert 'taskledger_follower_halted{follower="webhooks"} 1.0' in metrics.exposition()[0].decode()
    assert len(there.received) == 1


async def test_webhooks_are_not_sent_again_while_nothing_can_be_written_down(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database takes no writes after a request was answered -> Its outcome is kept and written down
    later; the request is not repeated meanwhile."""
    record, refused = WebhookStore.record, 0

    async def full(self: WebhookStore, *args: Any) -> float:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise StorageFull("the database has no room left to store anything")
        return await record(self, *args)

    monkeypatch.setattr(WebhookStore, "record", full)
    async with receiver() as there, delivering(hooks.service.dsn):
        await hooks.create(there.url)
        await hooks.completed()
        await hooks.become("delivered")
    assert (refused, len(there.received)) == (3, 1)


async def test_webhooks_miss_nothing_when_the_database_is_lost_amid_a_change(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away when the list of webhooks is to be read, at the start and after one was made ->
    Not one event is passed over before it was read."""
    webhooks, refused = WebhookStore.webhooks, 0

    async def away(self: WebhookStore) -> list[Kept]:
        nonlocal refused
        refused += 1
        if refused % 3:
            raise StoreUnavailable("the database did not answer in time")
        return await webhooks(self)

    monkeypatch.setattr(WebhookStore, "webhooks", away)
    async with receiver() as there:
        await hooks.create(there.url)
        tasks = await hooks.many(5)
        async with delivering(hooks.service.dsn):
            await hooks.become(*["delivered"] * 5)
        assert refused == 6
        tasks += await hooks.many(5)
        async with delivering(hooks.service.dsn):
            await hooks.become(*["delivered"] * 10)
    assert refused == 9
    assert {position_of(i) for i in there.ids} == {task.position for task in tasks}


async def test_webhooks_of_a_log_that_was_restored_wait(hooks: Hooks) -> None:
    """The log ends before what was delivered, under the same tag -> Nothing is sent, and the process says
    why."""
    async with receiver() as there, delivering(hooks.service.dsn) as status:
        await hooks.create(there.url)
        await hooks.many(3)
        await hooks.become(*["delivered"] * 3)
        async with hooks.service.pool.connection() as connection:
            await connection.execute("delete from taskledger.task_events where notification_id > 5")
        await eventually(lambda: _rewound(status), "it to wait")
    assert len(there.received) == 3


async def _rewound(status: Any) -> bool:
    return any("it was restored" in line for line in status.missing())


async def test_webhooks_a_history_that_cannot_be_read_is_tried_again(hooks: Hooks) -> None:
    """A task's history holds an event that this release does not know -> Its delivery is tried again, dead
    in the end, and holds up nobody."""
    unreadable = uuid4()
    created = b'{"event_uid":"u","kind":"sum","payload":1}'
    async with receiver() as there, delivering(hooks.service.dsn, max_attempts=3):
        await hooks.create(there.url)
        await hooks.append(unreadable, 1, "TaskCreated", created)
        await hooks.append(unreadable, 2, "TaskTeleported", b"{}")
        await hooks.append(unreadable, 3, "TaskCompleted", b'{"event_uid":"u","attempt":1}')
        await hooks.completed()
        await hooks.become("dead", "delivered")
    assert await hooks.rows("attempt, last_error") == [(3, "unreadable"), (1, None)]


async def _halted(status: Any) -> bool:
    return any(line.startswith("log: a release that can apply") for line in status.missing())


async def test_webhooks_go_on_when_their_database_sessions_are_lost(hooks: Hooks) -> None:
    """Every session of the process is ended -> It leads again, and every event arrives."""
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


TASKS = 300
CANARY = "canary-8888"
KILLED_AT = (40, 120, 200)
"""The requests that are not answered, as their sender is killed."""


class _Process(Running):
    def __init__(self, dsn: str, folder: Path) -> None:
        env = {
            "TASKLEDGER__POSTGRES__DSN": dsn,
            "TASKLEDGER__WEBHOOKS__SECRET": MASTER,
            "TASKLEDGER__WEBHOOKS__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
            "TASKLEDGER__WEBHOOKS__RETRY_BASE_SECONDS": "0.05",
            "TASKLEDGER__WEBHOOKS__RETRY_CAP_SECONDS": "0.5",
            "TASKLEDGER__LOG_LEVEL": "debug",
        }
        folder.mkdir(exist_ok=True)
        super().__init__("webhooks", folder=folder, env=env)


@pytest.mark.timeout(120)
async def test_webhooks_killed_again_and_again_while_they_deliver(service: Service, tmp_path: Path) -> None:
    """SIGKILL, three times, between a request and its answer -> Every event arrives; what arrives twice has
    one id and one body."""
    hooks = Hooks.over(service)
    processes: list[_Process] = []
    killed = asyncio.Event()

    def behave(_: Received) -> Reply:
        count = len(there.received)
        if count in KILLED_AT:
            os.kill(processes[-1].pid, signal.SIGKILL)
            killed.set()
            return None
        return reply(500) if count % 7 == 0 else OK

    async def keep_running() -> None:
        while True:
            processes.append(_Process(service.dsn, tmp_path))
            await killed.wait()
            killed.clear()
            await asyncio.to_thread(processes[-1].wait, 10)

    async with receiver(behave) as there:
        await hooks.create(f"{there.url}&token={CANARY}")
        running = asyncio.create_task(keep_running())
        try:
            tasks = [task for _ in range(TASKS // 20) for task in await hooks.many(20)]
            await eventually(lambda: _delivered(hooks), "all to be delivered", within=90)
        finally:
            running.cancel()
            for process in processes:
                process.kill()
                process.wait(10)
    assert len(processes) == len(KILLED_AT) + 1
    assert {position_of(i) for i in there.ids} == {task.position for task in tasks}
    assert len(set(there.ids)) == TASKS
    repeated = len(there.ids) - TASKS
    assert repeated >= len(KILLED_AT)
    said = processes[-1].said()
    assert '"leading"' in said
    assert MASTER not in said
    assert CANARY not in said
    bodies: dict[str, bytes] = {}
    for request in there.received:
        assert bodies.setdefault(request.id, request.body) == request.body


async def _delivered(hooks: Hooks) -> bool:
    return await hooks.statuses() == ["delivered"] * TASKS


@pytest.mark.faults
@pytest.mark.timeout(120)
async def test_webhooks_frozen_while_they_deliver(service: Service, tmp_path: Path) -> None:
    """SIGSTOP of the leading process, SIGCONT when another leads -> The other one goes on within seconds,
    every event arrives, and the one that wakes changes nothing that is settled."""
    hooks = Hooks.over(service)
    async with receiver() as there:
        await hooks.create(there.url)
        first = _Process(service.dsn, tmp_path / "first")
        second: _Process | None = None
        try:
            await hooks.many(20)
            await there.has(20)
            second = _Process(service.dsn, tmp_path / "second")
            await eventually(lambda: _says(second, "standing by"), "the other one to stand by", within=30)
            first.send_signal(signal.SIGSTOP)
            await hooks.many(20)
            await eventually(lambda: _says(second, "leading"), "the other one to lead", within=30)
            await hooks.become(*["delivered"] * 40)
            first.send_signal(signal.SIGCONT)
            await eventually(lambda: _says(first, "no longer leading"), "it to notice", within=30)
            await hooks.many(20)
            await hooks.become(*["delivered"] * 60)
        finally:
            for process in (first, second):
                if process is not None:
                    process.kill()
                    process.wait(10)
    assert len(set(there.ids)) == 60


async def _says(process: "_Process | None", event: str) -> bool:
    return process is not None and event in process.events()
