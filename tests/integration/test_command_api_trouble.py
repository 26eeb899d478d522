"""The command API while its servers are away, not ready or coming back, and wrong settings at start."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from command_side.api.app import create_app
from events.append import AppendCommand, Outcome
from events.errors import ConfigurationError, Overloaded
from events.group_commit import GroupCommit
from events.migrate import migrate
from taskledger.embedded import EmbeddedPostgres
from taskledger.settings import ExternalKind, PostgresSettings, QueryApiSettings, Settings
from tests.integration.command_api import NO_REDIS, SUM, in_process, problem, settings_for
from tests.support import eventually

NOWHERE = "host=127.0.0.1 port=1 user=nobody connect_timeout=1"


async def test_without_a_database_it_serves_and_says_what_it_waits_for() -> None:
    async with in_process(settings_for(NOWHERE, NO_REDIS)) as client:
        live = await client.get("/health/live")
        ready = problem(await client.get("/health/ready"), 503, "not_ready")
        begun = time.monotonic()
        answers = await asyncio.gather(
            client.post("/tasks", json=SUM),
            client.post("/tasks/batch", json={"tasks": [SUM]}),
            client.post("/tasks/018f4c2e-0000-7000-8000-000000000000/cancel"),
            client.post("/queues/q/pause"),
        )
        took = time.monotonic() - begun
    assert live.status_code == 200
    assert "PostgreSQL" in ready["detail"]
    assert took < 10
    for answer in answers:
        problem(answer, 503, "store_unavailable")
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_database_that_was_not_migrated_is_waited_for(empty_dsn: str) -> None:
    async with in_process(settings_for(empty_dsn, NO_REDIS)) as client:
        ready = problem(await client.get("/health/ready"), 503, "not_ready")
        waiting = asyncio.create_task(client.post("/tasks", json=SUM))
        await asyncio.to_thread(migrate, empty_dsn)
        answer = await waiting
        healthy = await client.get("/health/ready")
    assert "migrate" in ready["detail"]
    assert (answer.status_code, healthy.status_code) == (201, 200)


async def test_a_database_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, settings={"fsync": "off"})
    dsn = await asyncio.to_thread(server.start)
    try:
        await asyncio.to_thread(migrate, dsn)
        async with in_process(settings_for(dsn, NO_REDIS)) as client:
            before = await client.post("/tasks", json=SUM, headers={"Idempotency-Key": "k"})
            await asyncio.to_thread(server.stop, mode="immediate")
            problem(await client.post("/tasks", json=SUM), 503, "store_unavailable")
            problem(await client.get("/health/ready"), 503, "not_ready")
            await asyncio.to_thread(server.start)

            async def stored() -> bool:
                return (await client.post("/tasks", json=SUM)).status_code == 201

            await eventually(stored, "writes to be stored again")
            after = await client.post("/tasks", json=SUM, headers={"Idempotency-Key": "k"})
        assert after.content == before.content
    finally:
        await asyncio.to_thread(server.stop, mode="immediate")


async def test_connections_that_were_cut_are_made_anew(dsn: str, postgres_server: str) -> None:
    async with in_process(settings_for(dsn, NO_REDIS)) as client:
        id_ = (await client.post("/tasks", json=SUM)).json()["id"]
        with psycopg.connect(postgres_server, autocommit=True) as admin:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'taskledger-command-api%%' and datname = %s",
                (conninfo_to_dict(dsn)["dbname"],),
            )
        created = await client.post("/tasks", json=SUM)
        started = await client.post(f"/tasks/{id_}/start", json={"worker": "w"})
    assert (created.status_code, started.status_code) == (201, 200)


async def test_overload_is_refused(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def append(_self: GroupCommit, _command: AppendCommand) -> Outcome:
        raise Overloaded("too many commands are waiting to be stored")

    async with in_process(settings_for(dsn, NO_REDIS)) as client:
        monkeypatch.setattr(GroupCommit, "append", append)
        answer = await client.post("/tasks", json=SUM)
    problem(answer, 429, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1


def _settings(kinds: dict[str, ExternalKind]) -> Settings:
    return settings_for(NOWHERE, NO_REDIS, external_kinds=kinds)


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("sum", None),
        ("x", {"type": "nonsense"}),
        ("x", {"$ref": "http://169.254.169.254/schema"}),
        ("x", {"properties": {"a": {"$ref": "#/$defs/missing"}}}),
    ],
)
def test_external_kinds_that_cannot_work_stop_the_process(
    name: str, schema: dict[str, object] | None
) -> None:
    with pytest.raises(ConfigurationError, match="TASKLEDGER__EXTERNAL_KINDS") as error:
        create_app(_settings({name: ExternalKind(payload_schema=schema)}))
    assert "\n" not in str(error.value)


def test_missing_servers_stop_the_process() -> None:
    with pytest.raises(ConfigurationError, match="POSTGRES__DSN"):
        create_app(Settings(handlers=("examples.handlers",)))
    with pytest.raises(ConfigurationError, match="REDIS__URL"):
        create_app(
            Settings(
                postgres=PostgresSettings(dsn=SecretStr(NOWHERE)), external_kinds={"greet": ExternalKind()}
            )
        )


async def test_locations_without_a_public_url_name_the_query_api(dsn: str) -> None:
    bases: Sequence[tuple[QueryApiSettings, str]] = (
        (QueryApiSettings(), "http://127.0.0.1:8001/tasks/"),
        (QueryApiSettings(host="::1", port=9), "http://[::1]:9/tasks/"),
    )
    for query_api, expected in bases:
        async with in_process(settings_for(dsn, NO_REDIS, query_api=query_api)) as client:
            answer = await client.post("/tasks", json=SUM)
        assert answer.headers["location"].startswith(expected)
