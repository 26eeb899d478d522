"""What is exported and imported is the same log: same bytes, same read tables, another tag."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from events.errors import ArchiveRefused
from events.transfer import export, import_archive
from projector.verify import inspect
from taskledger.archives import run_export, run_import
from taskledger.postgres import connect_sync
from tests.conftest import _database  # pyright: ignore[reportPrivateUsage]
from tests.integration.projection import execute, many_histories, project, table
from tests.integration.query import settings_for
from tests.integration.sealing import newest, seal
from tests.support import Service

LOG = "select * from taskledger.task_events order by notification_id"


@pytest.fixture
def other(postgres_server: str, template: str) -> Iterator[str]:
    """Another empty log."""
    yield from _database(postgres_server, template)


def rows(dsn: str, query: str = LOG) -> list[Any]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


def exported(dsn: str, task_id: UUID | None = None) -> list[bytes]:
    with connect_sync(dsn, name="test") as connection:
        return list(export(connection, task_id))


def imported(dsn: str, lines: list[bytes]) -> None:
    with connect_sync(dsn, name="test") as connection:
        import_archive(connection, lines)


async def test_an_imported_log_is_the_same_but_for_its_tag(
    service: Service, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await many_histories(service)
    project(service.dsn)
    seal(service.dsn)
    before = rows(other, "select tag from taskledger.log_identity")
    file = tmp_path / "log.ndjson"
    assert run_export(settings_for(service.dsn), task_id=None, file=file) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert run_import(settings_for(other), file=file) == 0

    assert rows(other) == rows(service.dsn)
    told_from = rows(other, "select position from taskledger.checkpoints where name = 'webhooks'")
    assert told_from == [(len(rows(other)),)], "receivers of the other system hear nothing of its past"
    tag = rows(other, "select tag from taskledger.log_identity")
    assert tag not in (before, rows(service.dsn, "select tag from taskledger.log_identity"))
    assert f"the log is {tag[0][0]} from now on" in capsys.readouterr().out
    project(other)
    seal(other)
    assert table(other) == table(service.dsn)
    assert newest(other).head.root == newest(service.dsn).head.root
    last = orjson.loads(file.read_bytes().splitlines()[-1])
    assert last["root"] in newest(service.dsn).head.text
    report = inspect(other)
    assert (report.differences, report.sealed.size) == ([], report.events)


async def test_what_is_imported_goes_on(service: Service, other: str) -> None:
    """The next append follows, at the next position and not before the last time."""
    await service.create()
    execute(service.dsn, "update taskledger.task_events set recorded_at = recorded_at + interval '1 day'")
    imported(other, exported(service.dsn))
    with psycopg.connect(other) as connection:
        row = connection.execute(
            "select head, recorded_at from taskledger.append_v1('{0}', array[%s::uuid], '{1}', '{T}',"
            " '{x}', '{t}', '{k}', '{q}', '{}', '{}', '{}', '{}', '{}')",
            (uuid4(),),
        ).fetchone()
    assert row == (1, rows(service.dsn)[0][2])


async def test_a_single_task_is_imported_from_position_1_on(service: Service, other: str) -> None:
    ids = await many_histories(service, count=10)
    lines = exported(service.dsn, ids[4])
    imported(other, lines)
    theirs = [row for row in rows(service.dsn) if row[3] == ids[4]]
    ours = rows(other)
    assert [row[1:] for row in ours] == [row[1:] for row in theirs]
    assert [row[0] for row in ours] == list(range(1, len(theirs) + 1))
    project(other)
    assert inspect(other).differences == []
    with pytest.raises(ArchiveRefused, match="no task"):
        exported(service.dsn, uuid4())


async def test_an_export_is_of_one_moment(service: Service) -> None:
    await many_histories(service, count=5)
    head = await service.log.head()
    with connect_sync(service.dsn, name="test") as connection:
        lines = export(connection)
        first = next(lines)
        await service.create()
        rest = list(lines)
    assert orjson.loads(first)["events"] == head == len(rest) - 1


async def test_an_empty_log_can_be_taken_along(dsn: str, other: str) -> None:
    imported(other, exported(dsn))
    assert rows(other) == []


DAMAGES: list[Callable[[list[bytes]], list[bytes]]] = [
    lambda lines: lines[:-1],
    lambda lines: [*lines[:-2], lines[-2].replace(b'"sum"', b'"mus"'), lines[-1]],
    lambda lines: [*lines[:40], lines[40][:10]],
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_leaves_the_log_empty_and_its_tag_as_it_was(
    service: Service, other: str, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    for _ in range(50):
        await service.create()
    before = rows(other, "select tag from taskledger.log_identity")
    with pytest.raises(ArchiveRefused):
        imported(other, damage(exported(service.dsn)))
    assert rows(other) == []
    assert rows(other, "select tag from taskledger.log_identity") == before


async def test_what_is_not_empty_takes_nothing(service: Service, other: str) -> None:
    await service.create()
    lines = exported(service.dsn)
    with pytest.raises(ArchiveRefused, match="the log is not empty"):
        imported(service.dsn, lines)
    execute(other, "insert into taskledger.checkpoints (name, position) values ('tasks/1', 7)")
    with pytest.raises(ArchiveRefused, match="another log"):
        imported(other, lines)
    assert len(rows(service.dsn)) == 1


async def test_the_same_version_twice_is_refused(service: Service, other: str) -> None:
    """By the table itself, should a file with a good digest hold such a thing."""
    task = await service.create()
    await service.create()
    execute(service.dsn, "alter table taskledger.task_events drop constraint task_events_pkey")
    execute(service.dsn, "update taskledger.task_events set originator_id = %s", task.id)
    with pytest.raises(ArchiveRefused, match="UniqueViolation"):
        imported(other, exported(service.dsn))
    assert rows(other) == []


@contextmanager
def application(dsn: str) -> Generator[str]:
    """A role that may append and read, as a process has it."""
    name = f"app_{uuid4().hex[:12]}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create role {name} login password 'x'".encode())
        connection.execute(f"grant usage on schema taskledger to {name}".encode())
        connection.execute(f"grant select on all tables in schema taskledger to {name}".encode())
        connection.execute(f"grant execute on function taskledger.append_v1 to {name}".encode())
        try:
            yield f"-c role={name}"
        finally:
            connection.execute(f"drop owned by {name}".encode())
            connection.execute(f"drop role {name}".encode())


async def test_only_who_migrates_may_import(service: Service, other: str) -> None:
    await service.create()
    lines = exported(service.dsn)
    with application(other) as options:
        role = options.rpartition("=")[2]
        with psycopg.connect(other) as connection:
            allowed = connection.execute(
                "select proname, has_function_privilege(%s, oid, 'execute') from pg_proc"
                " where proname like 'import%%' order by 1",
                (role,),
            ).fetchall()
        assert allowed == [("import_begin_v1", False), ("import_events_v1", False)]
        with (
            connect_sync(other, name="test", options=options) as connection,
            pytest.raises(ArchiveRefused, match="only the role that migrates"),
        ):
            import_archive(connection, lines)
        with psycopg.connect(other, options=options) as connection:
            for call in (
                "import_begin_v1()",
                "import_events_v1('{}','{}','{}','{}','{}','{}','{}','{}','{}')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"select taskledger.{call}".encode())
                connection.rollback()
    assert rows(other) == []


def test_the_commands_say_in_one_line_what_is_wrong(dsn: str, tmp_path: Path) -> None:
    for arguments, said in (
        (["export", "--task", str(uuid4())], "there is no task with this id"),
        (["import", "nothing.ndjson"], "cannot read nothing.ndjson"),
        (["export", "--all", "no/where"], "cannot write no/where"),
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "taskledger", *arguments],
            cwd=tmp_path,
            env={"TASKLEDGER__POSTGRES__DSN": make_conninfo(dsn)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr


async def test_whoever_reads_no_further_is_no_fault(service: Service, tmp_path: Path) -> None:
    for _ in range(10):
        await service.create(payload={"text": "x" * 100_000})
    command = f"'{sys.executable}' -P -m taskledger export --all | head -c 100"
    process = await asyncio.create_subprocess_shell(
        command,
        cwd=tmp_path,
        env={**os.environ, "TASKLEDGER__POSTGRES__DSN": service.dsn},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    assert said.startswith(b'{"format":"taskledger-archive","version":1,"scope":"log"')
    assert complained == b""
