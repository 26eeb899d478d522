"""The log's schema: who may do what, and how it comes to be."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from events.append import Appended
from events.deadline import after
from events.errors import SchemaNotReady
from events.migrate import check_schema, newest_revision
from events.postgres_log import PostgresLog
from taskledger.postgres import SESSION, connect, make_pool
from tests.contract.builders import command, idempotency_key

ROOT = Path(__file__).parents[2]


@pytest.fixture
def application_role(dsn: str) -> Iterator[str]:
    """A role with the rights of a process that appends: SELECT, and EXECUTE on the append function."""
    name = f"app_{uuid4().hex[:12]}"
    role = sql.Identifier(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("create role {}").format(role))
        connection.execute(sql.SQL("grant usage on schema taskledger to {}").format(role))
        connection.execute(sql.SQL("grant select on all tables in schema taskledger to {}").format(role))
        connection.execute(sql.SQL("grant execute on function taskledger.append_v2 to {}").format(role))
        yield name
        connection.execute(sql.SQL("drop owned by {}").format(role))
        connection.execute(sql.SQL("drop role {}").format(role))


async def test_the_log_is_append_only_by_permission(dsn: str, application_role: str) -> None:
    options = f"{SESSION} -c role={application_role}"

    async def restricted() -> AsyncConnection[TupleRow]:
        return await connect(dsn, name="test-restricted", options=options)

    async with make_pool(dsn, name="test", size=2) as pool:
        log = PostgresLog(pool, restricted)
        (outcome,) = await log.append([command(key=idempotency_key())], deadline=after(5))
        assert isinstance(outcome, Appended)
        await log.close()
    async with await restricted() as connection:
        for statement in (
            "insert into taskledger.task_events select * from taskledger.task_events",
            "update taskledger.task_events set topic = 'x'",
            "delete from taskledger.task_events",
            "truncate taskledger.task_events",
            "update taskledger.log_identity set tag = 'aaaaaaaa'",
            "delete from taskledger.idempotency_keys",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(statement.encode())
        cursor = await connection.execute("select topic from taskledger.task_events")
        assert await cursor.fetchall() == [("TaskCreated",)]


async def test_nobody_appends_without_being_granted_to(dsn: str, application_role: str) -> None:
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(
            sql.SQL("revoke execute on function taskledger.append_v2 from {}").format(
                sql.Identifier(application_role)
            )
        )
        cursor = await connection.execute(
            "select has_function_privilege(%s, oid, 'execute') from pg_proc where proname = 'append_v2'",
            (application_role,),
        )
        assert await cursor.fetchall() == [(False,)]


async def test_a_database_that_is_not_migrated(empty_dsn: str) -> None:
    async with make_pool(empty_dsn, name="test", size=1) as pool:
        log = PostgresLog(pool, lambda: connect(empty_dsn, name="test-append"))
        with pytest.raises(SchemaNotReady):
            await log.append([command()], deadline=after(5))
        with pytest.raises(SchemaNotReady):
            await log.read_after(0, limit=1)
        with pytest.raises(SchemaNotReady):
            await log.tag()
        await log.close()
    with psycopg.connect(empty_dsn) as connection, pytest.raises(SchemaNotReady):
        check_schema(connection)


async def test_eight_processes_migrate_at_once(empty_dsn: str) -> None:
    script = "import sys; from events.migrate import migrate; print(migrate(sys.argv[1]))"
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            empty_dsn,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(8)
    ]
    answers = await asyncio.gather(*(process.communicate() for process in processes))
    assert [out.decode().strip() for out, _ in answers] == [newest_revision()] * 8, answers
    with psycopg.connect(empty_dsn) as connection:
        check_schema(connection)
