"""Webhooks over both APIs: made, changed, watched; and what is refused."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from command_side.api import webhooks as routes
from command_side.api.app import create_app
from tests.integration import command_api
from tests.integration.command_api import NO_REDIS, problem
from tests.integration.query import query_api
from tests.integration.webhooks import (
    LOOPBACK,
    MASTER,
    OK,
    Hooks,
    delivering,
    position_of,
    receiver,
    reply,
    verify,
)
from tests.support import Service, eventually

PUBLIC = "https://hooks.example.com/tasks"
ZONE = {"hooks.example.com": ["93.184.215.14"], "inside.example.com": ["10.0.0.1"]}


async def zone(host: str, _port: int) -> list[str]:
    if host not in ZONE:
        raise OSError("no such name")
    return ZONE[host]


@dataclass(frozen=True, slots=True)
class Apis:
    command: httpx.AsyncClient
    query: httpx.AsyncClient

    async def create(self, url: str = PUBLIC, **more: Any) -> dict[str, Any]:
        answer = await self.command.post("/webhooks", json={"url": url, **more})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def act(self, webhook: str, what: str, body: Any = None) -> dict[str, Any]:
        answer = await self.command.post(f"/webhooks/{webhook}/{what}", json=body or {})
        assert answer.status_code == 200, answer.text
        done: dict[str, Any] = answer.json()
        return done

    async def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        answer = await self.query.get(path, params=parameters or None)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def read(self, done: dict[str, Any]) -> dict[str, Any]:
        return await self.get(f"/webhooks/{done['id']}", min_position=done["position"])


@asynccontextmanager
async def both(dsn: str, **hooks: Any) -> AsyncGenerator[Apis]:
    settings = command_api.settings_for(dsn, NO_REDIS, webhooks={"secret": MASTER, **hooks})
    app = create_app(settings, zone)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api", timeout=30) as command,
        query_api(dsn) as query,
    ):
        yield Apis(command, query)


@pytest.fixture
async def apis(service: Service) -> AsyncIterator[Apis]:
    """With the process that delivers. It may send to loopback."""
    async with both(service.dsn, allowed_networks=LOOPBACK) as found, delivering(service.dsn, resolve=zone):
        yield found


async def test_from_the_request_to_a_signature_that_verifies(apis: Apis, service: Service) -> None:
    async with receiver() as there:
        made = await apis.create(there.url, types=["TaskCompleted"], description="ours")
        assert made["secret"].startswith("whsec_")
        await Hooks.over(service).completed()
        (request,) = await there.has(1)
        assert verify(made["secret"], request)
        shown = await apis.read(made)
    assert shown["url"] == there.url
    assert (shown["types"], shown["description"], shown["status"]) == (["TaskCompleted"], "ours", "enabled")
    assert "secret" not in str(shown)


async def test_a_location_is_where_it_can_be_read(apis: Apis) -> None:
    answer = await apis.command.post("/webhooks", json={"url": PUBLIC})
    location = answer.headers["location"].removeprefix("https://tasks.example")
    shown = await apis.get(location)
    made = answer.json()
    assert shown["id"] == made["id"]
    settled = ["TaskCompleted", "TaskDeadLettered", "TaskCancelled", "TaskDiscarded"]
    assert shown["types"] == made["types"] == settled
    assert [w["id"] for w in (await apis.get("/webhooks"))["webhooks"]] == [made["id"]]


async def test_an_idempotency_key_makes_one_and_shows_its_secret_again(apis: Apis) -> None:
    headers = {"Idempotency-Key": "k"}
    answers = [
        await apis.command.post("/webhooks", json={"url": PUBLIC}, headers=headers) for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["idempotent-replayed"] == "true"
    other = await apis.command.post("/webhooks", json={"url": f"{PUBLIC}/x"}, headers=headers)
    problem(other, 422, "idempotency_key_reused")


async def test_a_dead_delivery_is_shown_and_sent_again(service: Service) -> None:
    hooks = Hooks.over(service)
    async with (
        receiver(lambda _: reply(503)) as there,
        both(service.dsn, allowed_networks=LOOPBACK) as apis,
        delivering(service.dsn, max_attempts=2),
    ):
        made = await apis.create(there.url)
        tasks = [await hooks.completed() for _ in range(3)]
        await hooks.become("dead", "dead", "dead")
        where = f"/webhooks/{made['id']}/deliveries"
        page = await apis.get(where, status="dead", limit=2)
        rest = await apis.get(where, status="dead", limit=2, before=page["next"])
        dead = [*page["deliveries"], *rest["deliveries"]]
        assert [d["task_id"] for d in dead] == [str(task.id) for task in reversed(tasks)]
        assert rest["next"] is None
        assert (await apis.get(where, status="pending"))["deliveries"] == []
        first = dead[0]
        assert (first["type"], first["status"], first["attempt"]) == ("TaskCompleted", "dead", 2)
        assert (first["last_status"], first["last_error"]) == (503, "status")
        shown = await apis.get(f"/webhooks/{made['id']}")
        assert (shown["dead"], shown["last_status"], shown["last_error"]) == (3, 503, "status")
        assert shown["failures"] >= 2
        assert shown["failing_since"] is not None
        there.behaviour = lambda _: OK
        await apis.act(made["id"], "redeliver", {"position": dead[1]["position"]})
        await hooks.become("dead", "delivered", "dead")
        await apis.act(made["id"], "redeliver", {"dead": True})
        await hooks.become("delivered", "delivered", "delivered")
        await eventually(lambda: _well(apis, made["id"]), "its page to say so")


async def _well(apis: Apis, webhook: str) -> bool:
    shown = await apis.get(f"/webhooks/{webhook}")
    return (shown["dead"], shown["pending"], shown["failures"], shown["failing_since"]) == (0, 0, 0, None)


async def test_history_can_be_asked_for_at_the_beginning_and_later(apis: Apis, service: Service) -> None:
    hooks = Hooks.over(service)
    tasks = [await hooks.completed() for _ in range(3)]
    async with receiver() as there:
        made = await apis.create(there.url, after="start")
        await there.has(3)
        tag = made["position"].split(".")[1]
        await apis.act(made["id"], "redeliver", {"after": f"{tasks[0].position}.{tag}"})
        await there.has(5)
    later = sorted(position_of(i) for i in there.ids[3:])
    assert later == [task.position for task in tasks[1:]]


async def test_what_can_be_done_with_one(apis: Apis) -> None:
    made = await apis.create()
    one = made["id"]
    disabled = await apis.act(one, "disable", {"reason": "moving"})
    assert (disabled["status"], disabled["cause"]) == ("disabled", "asked")
    assert (await apis.read(disabled))["status"] == "disabled"
    problem(await apis.command.post(f"/webhooks/{one}/test", json={}), 409, "wrong_state")
    enabled = await apis.act(one, "enable")
    assert await apis.act(one, "enable") == enabled
    rotated = await apis.act(one, "rotate-secret")
    assert rotated["secret"] not in (made["secret"], "")
    assert (await apis.read(rotated))["rotated_at"] is not None
    await apis.act(one, "test")
    deleted = await apis.command.request("DELETE", f"/webhooks/{one}")
    assert deleted.json()["status"] == "deleted"
    assert (await apis.command.request("DELETE", f"/webhooks/{one}")).json() == deleted.json()
    problem(await apis.command.post(f"/webhooks/{one}/test", json={}), 404, "webhook_not_found")
    path = f"/webhooks/{one}?min_position={deleted.json()['position']}"
    problem(await apis.query.get(path), 404, "webhook_not_found")
    assert (await apis.get("/webhooks"))["webhooks"] == []


async def test_the_log_keeps_who_did_what(apis: Apis, service: Service) -> None:
    made = await apis.create()
    await apis.act(made["id"], "disable", {"reason": "moving"})
    feed = (await apis.get("/events"))["events"]
    assert [(e["type"], e["task_id"]) for e in feed] == [
        ("WebhookCreated", None),
        ("WebhookDisabled", None),
    ]
    assert feed[1]["data"]["reason"] == "moving"
    assert "whsec" not in str(feed)
    problem(await apis.query.get(f"/tasks/{made['id']}/events"), 404, "task_not_found")


CANARY = "canary-5555"


BAD_INPUT: list[tuple[dict[str, Any], str, str]] = [
    ({"url": f"http://127.0.0.1/{CANARY}"}, "webhook_url_not_allowed", "/url"),
    ({"url": f"https://inside.example.com/{CANARY}"}, "webhook_url_not_allowed", "/url"),
    ({"url": f"https://unknown.example.com/{CANARY}"}, "webhook_url_not_allowed", "/url"),
    ({"url": f"https://user:{CANARY}@hooks.example.com/"}, "webhook_url_not_allowed", "/url"),
    ({"url": f"https://169.254.169.254/{CANARY}"}, "webhook_url_not_allowed", "/url"),
    ({"url": f"{CANARY}"}, "webhook_url_not_allowed", "/url"),
    ({"url": f"{PUBLIC}/{CANARY * 200}"}, "invalid_request", "/url"),
    ({"url": ""}, "invalid_request", "/url"),
    ({"url": 5}, "invalid_request", "/url"),
    ({}, "invalid_request", "/url"),
    ({"url": PUBLIC, "types": []}, "invalid_request", "/types"),
    ({"url": PUBLIC, "types": [CANARY]}, "invalid_request", "/types"),
    ({"url": PUBLIC, "types": ["QueuePaused"]}, "invalid_request", "/types"),
    ({"url": PUBLIC, "types": ["TaskCompleted"] * 2}, "invalid_request", "/types"),
    ({"url": PUBLIC, "types": "TaskCompleted"}, "invalid_request", "/types"),
    ({"url": PUBLIC, "kinds": ["Upper"]}, "invalid_request", "/kinds/0"),
    ({"url": PUBLIC, "queues": ["a", "a"]}, "invalid_request", "/queues"),
    ({"url": PUBLIC, "tags": [f"t{n}" for n in range(17)]}, "invalid_request", "/tags"),
    ({"url": PUBLIC, "description": "x" * 501}, "invalid_request", "/description"),
    ({"url": PUBLIC, CANARY: 1}, "invalid_request", f"/{CANARY}"),
    ({"url": PUBLIC, "after": "999999.TAG"}, "invalid_request", "/after"),
]


async def test_bad_input_is_refused_and_not_repeated(service: Service) -> None:
    tag = await service.log.tag()
    async with both(service.dsn) as apis:
        for body, code, location in BAD_INPUT:
            answer = await apis.command.post("/webhooks", json=_of_log(body, tag))
            document = problem(answer, 422, code)
            assert [error["location"] for error in document["errors"]] == [location], body
            assert location == f"/{CANARY}" or CANARY not in answer.text
    assert await service.log.head() == 0


def _of_log(body: dict[str, Any], tag: str) -> dict[str, Any]:
    return {
        name: value.replace("TAG", tag) if isinstance(value, str) else value for name, value in body.items()
    }


BAD_POSITIONS: list[tuple[dict[str, Any], int, str]] = [
    ({}, 422, "invalid_request"),
    ({"dead": True, "after": "start"}, 422, "invalid_request"),
    ({"dead": False}, 422, "invalid_request"),
    ({"after": "yesterday"}, 400, "malformed_position"),
    ({"after": "-1.k3v9x0aa"}, 400, "malformed_position"),
    ({"position": "1"}, 400, "malformed_position"),
    ({"after": "1.k3v9x0aa"}, 409, "log_rewound"),
    ({"position": "1.k3v9x0aa"}, 409, "log_rewound"),
    ({"position": "0.TAG"}, 422, "invalid_request"),
    ({"position": "start"}, 422, "invalid_request"),
    ({"position": "99.TAG"}, 422, "invalid_request"),
    ({"after": "99.TAG"}, 422, "invalid_request"),
]


async def test_positions_that_cannot_be_are_refused(service: Service) -> None:
    tag = await service.log.tag()
    async with both(service.dsn) as apis:
        where = f"/webhooks/{(await apis.create())['id']}/redeliver"
        for body, status, code in BAD_POSITIONS:
            problem(await apis.command.post(where, json=_of_log(body, tag)), status, code)
    assert await service.log.head() == 1


async def test_ids_and_parameters_that_are_none(apis: Apis) -> None:
    made = await apis.create()
    await apis.read(made)
    for one in ("x", made["id"].upper(), "0199d1a0-7c1e-7abc-8def-0123456789ab"):
        problem(await apis.command.post(f"/webhooks/{one}/enable", json={}), 404, "webhook_not_found")
        problem(await apis.query.get(f"/webhooks/{one}"), 404, "webhook_not_found")
        problem(await apis.query.get(f"/webhooks/{one}/deliveries"), 404, "webhook_not_found")
    where = f"/webhooks/{made['id']}/deliveries"
    problem(await apis.query.get(f"{where}?status=gone"), 422, "invalid_request")
    problem(await apis.query.get(f"{where}?limit=0"), 422, "invalid_request")
    problem(await apis.query.get(f"{where}?befor=1"), 422, "invalid_request")
    problem(await apis.query.get(f"{where}?before=1"), 400, "malformed_position")
    problem(await apis.query.get(f"{where}?before=1.k3v9x0aa"), 409, "log_rewound")
    problem(await apis.query.get(f"/webhooks/{made['id']}?min_position=1.k3v9x0aa"), 409, "log_rewound")


async def test_a_task_is_no_webhook(apis: Apis, service: Service) -> None:
    task = await service.create()
    problem(await apis.command.post(f"/webhooks/{task.id}/enable", json={}), 404, "webhook_not_found")


async def test_there_may_be_only_so_many(apis: Apis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_WEBHOOKS", 1)
    await apis.read(await apis.create())
    problem(await apis.command.post("/webhooks", json={"url": PUBLIC}), 409, "too_many_webhooks")


async def test_without_a_secret_there_are_none(service: Service) -> None:
    async with both(service.dsn, secret=None) as apis:
        answer = await apis.command.post("/webhooks", json={"url": PUBLIC})
        problem(answer, 501, "webhooks_not_configured")
        assert "retry-after" not in answer.headers
        assert (await apis.get("/webhooks"))["webhooks"] == []


async def test_what_is_said_of_them_is_in_the_documents(apis: Apis) -> None:
    commands = (await apis.command.get("/openapi.json")).json()
    queries = (await apis.query.get("/openapi.json")).json()
    types = commands["components"]["schemas"]["NewWebhook"]["properties"]["types"]["items"]["enum"]
    assert "TaskCompleted" in types
    assert "/webhooks/{webhook_id}/redeliver" in commands["paths"]
    assert "/webhooks/{webhook_id}/deliveries" in queries["paths"]
