"""Whatever a client does wrong is answered with a 4xx problem that names it and repeats none of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from command_side.api.app import create_app
from events.ids import new_task_id
from taskledger.settings import CommandApiSettings
from tests.integration.command_api import (
    GREET,
    NO_REDIS,
    SUM,
    in_process,
    locations,
    on_port,
    problem,
    settings_for,
)
from tests.support import Service, now

JSON = {"Content-Type": "application/json"}
KEY = "Idempotency-Key"


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(settings_for(dsn, NO_REDIS)) as client:
        yield client


async def send(client: httpx.AsyncClient, body: bytes, path: str = "/tasks") -> httpx.Response:
    return await client.post(path, content=body, headers=JSON)


def task(**fields: Any) -> bytes:
    return json.dumps(SUM | fields).encode()


async def test_malformed_json(client: httpx.AsyncClient, service: Service) -> None:
    for body in (
        b"",
        b"{",
        b'{"kind": "sum", "payload": NaN}',
        b'{"kind": "sum", "payload": 1e999}',
        b'{"kind": "sum", "payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"kind": "sum", "payload": "\xff"}',
        b'{"kind": "sum", "payload": {}, "kind": "sum"}',
        task() + b"x",
        b"\xef\xbb\xbf" + task(),
    ):
        problem(await send(client, body), 400, "malformed_json")
    assert await service.log.head() == 0


async def test_what_cannot_be_stored(client: httpx.AsyncClient, service: Service) -> None:
    for value, below in (
        (b'"\\ud800"', ""),
        (b'{"a": "x\\u0000"}', "/a"),
        (b"9007199254740992", ""),
        (b"1" + b"0" * 4_999, ""),
    ):
        answer = await send(client, b'{"kind": "sum", "payload": ' + value + b"}")
        assert locations(problem(answer, 422, "invalid_request")) == [f"/payload{below}"]
    assert await service.log.head() == 0


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"tenant": "x"}, "/tenant"),
    ({"status": "completed"}, "/status"),
    ({"body": 1}, "/body"),
    ({"a/b~c": 1}, "/a~1b~0c"),
    ({"kind": "Sum"}, "/kind"),
    ({"kind": "sum\n"}, "/kind"),
    ({"kind": None}, "/kind"),
    ({"queue": ""}, "/queue"),
    ({"queue": "q" * 65}, "/queue"),
    ({"queue": None}, "/queue"),
    ({"priority": "urgent"}, "/priority"),
    ({"priority": 10**15}, "/priority"),
    ({"max_attempts": 0}, "/max_attempts"),
    ({"max_attempts": 101}, "/max_attempts"),
    ({"max_attempts": "5"}, "/max_attempts"),
    ({"max_attempts": 5.0}, "/max_attempts"),
    ({"max_attempts": True}, "/max_attempts"),
    ({"timeout_seconds": 0}, "/timeout_seconds"),
    ({"timeout_seconds": 604_800.1}, "/timeout_seconds"),
    ({"timeout_seconds": True}, "/timeout_seconds"),
    ({"tags": ["a"] * 2}, "/tags"),
    ({"tags": [f"t{n}" for n in range(17)]}, "/tags"),
    ({"tags": ["ok", "NO"]}, "/tags/1"),
    ({"tags": "a"}, "/tags"),
    ({"delay_seconds": -1}, "/delay_seconds"),
    ({"delay_seconds": 4000 * 86400}, "/delay_seconds"),
    ({"delay_seconds": 1, "run_at": "2020-01-01T00:00:00Z"}, "/delay_seconds"),
    ({"run_at": 1_700_000_000}, "/run_at"),
    ({"run_at": "1700000000"}, "/run_at"),
    ({"run_at": "2026-01-01"}, "/run_at"),
    ({"run_at": "2026-01-01T00:00:00"}, "/run_at"),
    ({"run_at": "2026-13-01T00:00:00Z"}, "/run_at"),
    ({"run_at": "0001-01-01T00:00:00+14:00"}, "/run_at"),
    ({"run_at": (now() + timedelta(days=3660)).isoformat()}, "/run_at"),
    ({"payload": {"x": 1}}, "/payload/y"),
    ({"payload": {"x": 1, "y": "2"}}, "/payload/y"),
    ({"payload": {"x": 1, "y": 2, "z": 3}}, "/payload/z"),
    ({"payload": None}, "/payload"),
]


async def test_what_does_not_fit(client: httpx.AsyncClient, service: Service) -> None:
    for fields, location in UNFIT:
        refusal = problem(await send(client, task(**fields)), 422, "invalid_request")
        assert locations(refusal) == [location], fields
    assert await service.log.head() == 0


async def test_bodies_of_another_shape(client: httpx.AsyncClient) -> None:
    for body in (b"null", b"[]", b"3", b'"kind"', b"true"):
        assert locations(problem(await send(client, body), 422, "invalid_request")) == [""]
    assert locations(problem(await send(client, b"{}"), 422, "invalid_request")) == ["/kind", "/payload"]
    for body in (b"{}", b'{"tasks": []}', b'{"tasks": {}}'):
        refusal = problem(await send(client, body, "/tasks/batch"), 422, "invalid_request")
        assert locations(refusal) == ["/tasks"]


async def test_an_unknown_kind(client: httpx.AsyncClient) -> None:
    assert locations(problem(await send(client, task(kind="nope")), 422, "unknown_kind")) == ["/kind"]


async def test_a_payload_that_an_external_kind_refuses(client: httpx.AsyncClient) -> None:
    payload = {"width": 0, "secret": "hunter2"}
    answer = await send(client, task(kind="resize", payload=payload))
    refusal = problem(answer, 422, "invalid_request")
    assert set(locations(refusal)) == {"/payload", "/payload/width"}
    assert "lacks url" in [error["message"] for error in refusal["errors"]]
    assert "hunter2" not in answer.text
    assert "secret" not in answer.text
    good = await send(client, task(kind="resize", payload={"url": "a", "width": 1}))
    assert good.status_code == 201


async def test_refusals_repeat_nothing_and_name_a_hundred_places_at_most(client: httpx.AsyncClient) -> None:
    bad: list[dict[str, Any]] = [
        {"kind": "hunter2 ", "payload": {}, "queue": "hunter2!", "run_at": "hunter2"}
    ] * 200
    answer = await client.post("/tasks/batch", json={"tasks": bad})
    assert len(problem(answer, 422, "invalid_request")["errors"]) == 100
    single = await send(client, task(priority="hunter2", tags=["hunter2!"], payload="hunter2"))
    assert "hunter2" not in answer.text + single.text


async def test_other_content_types(client: httpx.AsyncClient) -> None:
    for content_type in (
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "application/json; charset=latin-1",
    ):
        headers = {} if content_type is None else {"Content-Type": content_type}
        answer = await client.post("/tasks", content=task(), headers=headers)
        problem(answer, 415, "unsupported_media_type")


async def test_content_types_that_are_json(client: httpx.AsyncClient) -> None:
    for content_type in (
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
    ):
        answer = await client.post("/tasks", content=task(), headers={"Content-Type": content_type})
        assert answer.status_code == 201
    packed = await client.post("/tasks", content=task(), headers={**JSON, "Content-Encoding": "gzip"})
    problem(packed, 415, "unsupported_media_type")


async def test_keys_that_are_none(client: httpx.AsyncClient) -> None:
    for key in ("", "k" * 256, "k" * 10_000, "a b", "a\tb", "é"):
        headers = [(b"Idempotency-Key", key.encode())]
        answer = await client.post("/tasks", json=SUM, headers=headers)
        problem(answer, 400, "invalid_idempotency_key")


async def test_two_keys_are_none(client: httpx.AsyncClient) -> None:
    headers = [(KEY, "a"), (KEY, "a")]
    problem(await client.post("/tasks", json=SUM, headers=headers), 400, "invalid_idempotency_key")
    longest = await client.post("/tasks", json=SUM, headers={KEY: "k" * 255})
    assert longest.status_code == 201


async def test_ids_that_are_none(client: httpx.AsyncClient) -> None:
    created = (await client.post("/tasks", json=SUM)).json()["id"]
    unknown = str(new_task_id())
    for name, body in (
        ("start", {"worker": "w"}),
        ("complete", {"attempt": 1, "result": None}),
        ("fail", {"attempt": 1, "error": {"type": "E", "message": ""}}),
        ("heartbeat", {"attempt": 1}),
        ("cancel", {}),
        ("requeue", {}),
        ("discard", {}),
    ):
        for id_ in (unknown, created.upper(), f"{{{created}}}", created.replace("-", ""), "x", "%00"):
            answer = await client.post(f"/tasks/{id_}/{name}", json=body)
            assert answer.status_code == (422 if id_ == "%00" else 404), answer.text
    problem(await client.post(f"/tasks/{unknown}/cancel"), 404, "task_not_found")
    problem(await client.post("/tasks/%2e%2e%2fx/cancel"), 404, "not_found")


async def test_bodies_of_commands(client: httpx.AsyncClient) -> None:
    id_ = (await client.post("/tasks", json=GREET)).json()["id"]
    error = {"type": "E", "message": "m"}
    for path, body, location in (
        ("start", {}, "/worker"),
        ("start", {"worker": "a b"}, "/worker"),
        ("start", {"worker": "w" * 129}, "/worker"),
        ("start", {"worker": "w", "lease_seconds": 0.5}, "/lease_seconds"),
        ("start", {"worker": "w", "lease_seconds": 3601}, "/lease_seconds"),
        ("complete", {"attempt": 1}, "/result"),
        ("complete", {"attempt": 0, "result": 1}, "/attempt"),
        ("complete", {"attempt": "1", "result": 1}, "/attempt"),
        ("fail", {"attempt": 1}, "/error"),
        ("fail", {"attempt": 1, "error": "no"}, "/error"),
        ("fail", {"attempt": 1, "error": {**error, "code": 1}}, "/error/code"),
        ("fail", {"attempt": 1, "error": error, "retryable": 1}, "/retryable"),
        ("heartbeat", {"attempt": 1, "progress": -1}, "/progress"),
        ("heartbeat", {"attempt": 1, "note": "n" * 501}, "/note"),
        ("cancel", {"reason": "r" * 501}, "/reason"),
        ("requeue", {"because": "r"}, "/because"),
    ):
        answer = await client.post(f"/tasks/{id_}/{path}", json=body)
        assert locations(problem(answer, 422, "invalid_request")) == [location]
    claims: list[tuple[dict[str, Any], str]] = [
        ({"limit": 0}, "/limit"),
        ({"limit": 101}, "/limit"),
        ({"wait_seconds": 61}, "/wait_seconds"),
        ({"kinds": []}, "/kinds"),
    ]
    for fields, location in claims:
        answer = await client.post("/queues/front/claim", json={"worker": "w"} | fields)
        assert locations(problem(answer, 422, "invalid_request")) == [location]
    for path in ("claim", "pause", "resume"):
        answer = await client.post(f"/queues/Front/{path}", json={"worker": "w"})
        assert locations(problem(answer, 422, "invalid_request")) == ["/path/queue"]
    for kind in ("sum", "nope"):
        answer = await client.post("/queues/front/claim", json={"worker": "w", "kinds": ["greet", kind]})
        assert locations(problem(answer, 422, "unknown_kind")) == ["/kinds/1"]


async def test_methods_and_paths(client: httpx.AsyncClient) -> None:
    wrong = await client.get("/tasks")
    problem(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    problem(await client.post("/nothing", json={}), 404, "not_found")
    problem(await client.post("/tasks/", json=SUM), 404, "not_found")


async def test_bodies_beyond_the_limit(client: httpx.AsyncClient, service: Service) -> None:
    text = "x" * (1024 * 1024)
    problem(await client.post("/tasks", json={**SUM, "payload": text}), 413, "body_too_large")
    fits = json.dumps({"kind": "greet", "payload": ""}).encode()
    fits = fits.replace(b'""', b'"' + b"x" * (1024 * 1024 - len(fits)) + b'"')
    assert (await send(client, fits)).status_code == 201
    problem(await send(client, fits + b" "), 413, "body_too_large")
    assert await service.log.head() == 1


async def test_batches_beyond_the_limit(dsn: str, service: Service) -> None:
    small = CommandApiSettings(max_batch_tasks=3, max_batch_bytes=2000)
    async with in_process(settings_for(dsn, NO_REDIS, command_api=small)) as client:
        long = await client.post("/tasks/batch", json={"tasks": [SUM] * 4})
        large = await client.post("/tasks/batch", json={"tasks": [SUM] * 100})
    assert locations(problem(long, 422, "invalid_request")) == ["/tasks"]
    problem(large, 413, "body_too_large")
    assert await service.log.head() == 0


async def test_what_is_accepted_alone_is_accepted_in_a_batch(client: httpx.AsyncClient) -> None:
    deepest: Any = "end"
    for _ in range(31):
        deepest = [deepest]
    body = {"kind": "greet", "payload": deepest}
    assert (await client.post("/tasks", json=body)).status_code == 201
    assert (await client.post("/tasks/batch", json={"tasks": [body]})).status_code == 201
    deeper = {"kind": "greet", "payload": [deepest]}
    problem(await client.post("/tasks", json=deeper), 400, "malformed_json")
    problem(await client.post("/tasks/batch", json={"tasks": [deeper]}), 400, "malformed_json")


async def raw(address: str, request: bytes) -> bytes:
    """What a server sends until it closes the connection."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_a_body_declared_too_large_is_refused_unread_and_the_connection_closed(dsn: str) -> None:
    async with on_port(create_app(settings_for(dsn, NO_REDIS))) as address:
        head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = await raw(address, head + b"Content-Length: 20000000\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b'"code":"body_too_large"' in answer


async def test_a_chunked_body_beyond_the_limit_is_cut_off(dsn: str, service: Service) -> None:
    limited = CommandApiSettings(max_body_bytes=1024)
    async with on_port(create_app(settings_for(dsn, NO_REDIS, command_api=limited))) as address:
        head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        chunk = b"200\r\n" + b"[" * 512 + b"\r\n"
        answer = await raw(address, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert await service.log.head() == 0


async def test_a_body_that_does_not_arrive_is_not_waited_for(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskledger.protocol.BODY_SECONDS", 0.2)
    async with on_port(create_app(settings_for(dsn, NO_REDIS))) as address:
        head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = await raw(address, head + b"Content-Length: 20\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["sum", "greet", "high"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    (
        *("kind", "payload", "queue", "priority", "run_at", "delay_seconds", "max_attempts", "tags"),
        *("timeout_seconds", "tasks", "worker", "attempt", "result", "error", "reason", "progress"),
        *("limit", "kinds"),
    )
)
BODIES = st.dictionaries(FIELDS, VALUES, max_size=6) | VALUES
COMMANDS = ("start", "complete", "fail", "heartbeat", "cancel", "requeue")
PATHS = st.sampled_from(
    ["/tasks", "/tasks/batch", "/queues/front/pause", "/queues/front/claim"]
    + [f"/tasks/{{id}}/{name}" for name in COMMANDS]
)


@hypothesis.settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=PATHS, body=BODIES, complete=st.booleans())
async def test_no_body_makes_the_server_fail(
    client: httpx.AsyncClient, path: str, body: Any, complete: bool
) -> None:
    if complete and isinstance(body, dict):
        body = {**SUM, "worker": "w", "attempt": 1, "tasks": [SUM], **cast("dict[str, Any]", body)}
    id_ = (await client.post("/tasks", json=GREET)).json()["id"]
    answer = await send(client, json.dumps(body).encode(), path.format(id=id_))
    no_redis = path.endswith("claim") and answer.status_code == 503
    assert answer.status_code < 500 or no_redis, answer.text
