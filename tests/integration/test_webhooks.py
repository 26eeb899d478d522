"""What a webhook is told, by the process that delivers, over real HTTP."""

import logging
import time
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest

from command_side.commands import CancelTask, RequeueTask, StartTask
from command_side.webhooks.webhook import (
    DeleteWebhook,
    DisableWebhook,
    EnableWebhook,
    Redeliver,
    RotateSecret,
    SendTest,
)
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
        await hooks.caught_up()
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
        await hooks.caught_up()
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
        await hooks.caught_up()
    assert await hooks.rows() == []


async def test_aggregates_and_events_that_nobody_knows_are_passed_over(hooks: Hooks) -> None:
    async with receiver() as there, delivering(hooks.service.dsn):
        await hooks.create(there.url)
        await hooks.append(uuid4(), 1, "InvoicePaid", b"{}")
        await hooks.append(uuid4(), 1, "WebhookTeleported", b"{}")
        await hooks.completed()
        await there.has(1)


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
