"""A migrated database of a test's own on a PostgreSQL that the test may break."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from events.migrate import migrate
from tests.chaos.servers import Servers
from tests.integration.command_api import GREET, NO_REDIS, SUM, in_process, settings_for

APPEND: Final = b"taskledger-command-api-append"
TEMPLATE: Final = "migrated"


@dataclass(frozen=True, slots=True)
class Store:
    servers: Servers
    name: str
    """Of the database."""

    @property
    def direct(self) -> str:
        return make_conninfo(self.servers.direct_dsn, dbname=self.name)

    @property
    def dsn(self) -> str:
        """Through the proxy."""
        return self.servers.proxied(self.direct)

    def sql(self, statement: str, *parameters: Any) -> list[TupleRow]:
        """As the superuser, around the proxy."""
        with psycopg.connect(self.direct, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def stored(self, task: str | UUID) -> list[str]:
        """The topics of a task's events."""
        found = (
            "select topic from taskledger.task_events where originator_id = %s order by originator_version"
        )
        return [row[0] for row in self.sql(found, task)]

    def sessions(self, name: str) -> list[int]:
        """Backends of clients with this application_name."""
        rows = self.sql(
            "select pid from pg_stat_activity where application_name = %s and datname = %s", name, self.name
        )
        return [row[0] for row in rows]

    def idle_sessions(self, name: str) -> list[int]:
        """Of these, those that have had their answer: a backend stopped at work may hold what all need."""
        rows = self.sql(
            "select pid from pg_stat_activity where application_name = %s and datname = %s"
            " and state = 'idle' and query like 'listen%%'",
            name,
            self.name,
        )
        return [row[0] for row in rows]


def prepare(servers: Servers) -> None:
    with psycopg.connect(servers.direct_dsn, autocommit=True) as connection:
        connection.execute(f"create database {TEMPLATE}".encode())
    migrate(make_conninfo(servers.direct_dsn, dbname=TEMPLATE))


@contextmanager
def fresh(servers: Servers) -> Generator[Store]:
    """Everything works at the beginning, and again at the end."""
    servers.postgres_proxy.heal()
    store = Store(servers, f"t_{uuid4().hex[:12]}")
    name = sql.Identifier(store.name)
    with psycopg.connect(servers.direct_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {} strategy file_copy").format(
                name, sql.Identifier(TEMPLATE)
            )
        )
    try:
        yield store
    finally:
        servers.resume_postgres()
        servers.start_postgres()
        servers.postgres_proxy.heal()
        with psycopg.connect(servers.direct_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(name))


class Client:
    """Of the command API. Each submission has a key, so that it can be repeated until it is answered."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def submit(self, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key or uuid4().hex}
        return await self.http.post("/tasks", json={**SUM, **body}, headers=headers)

    async def created(self, **body: Any) -> str:
        answer = await self.http.post("/tasks", json={**SUM, **body})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def started(self) -> str:
        """A task at its first attempt, held over HTTP."""
        task = await self.created(**GREET)
        answer = await self.post(f"/tasks/{task}/start", {"worker": "w"})
        assert answer.status_code == 200, answer.text
        return task

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        return await self.http.post(path, json={} if body is None else body)

    async def status_of(self, path: str) -> int:
        return (await self.http.get(path)).status_code

    async def accepts(self) -> bool:
        return (await self.submit()).status_code == 201


@asynccontextmanager
async def command_api(store: Store, **settings: Any) -> AsyncGenerator[Client]:
    """In this process, through the proxy. Its append statements are prepared: one reply from now on."""
    async with in_process(settings_for(store.dsn, NO_REDIS, **settings)) as http:
        client = Client(http)
        await client.created()
        await client.submit()
        yield client
