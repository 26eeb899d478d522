"""PostgreSQL has no room left: for its tables, or for its write-ahead log."""

import asyncio
import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.chaos.servers import FAST, Servers
from tests.chaos.store import Store, command_api, fresh, prepare
from tests.integration.command_api import problem
from tests.support import eventually

BUDGET_SECONDS = 5.0

pytestmark = pytest.mark.xdist_group("chaos-postgres")


class Disk:
    """A small file system in memory."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        path.mkdir(exist_ok=True, mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(path)]
        try:
            subprocess.run(mount, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {getattr(error, 'stderr', None) or error}")

    def grow(self, megabytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(self.path)], check=True)

    def remove(self) -> None:
        """At once for who looks, and for the server when it has closed its files."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def disk(postgres: Servers, tmp_path: Path) -> Iterator[Disk]:
    """Tablespace `small`. Ask for it before `store`, which must be gone first."""
    disk = Disk(tmp_path / "small", 3)
    try:
        with psycopg.connect(postgres.direct_dsn, autocommit=True) as connection:
            connection.execute(f"create tablespace small location '{disk.path}'".encode())
            yield disk
            connection.execute("drop tablespace small")
    finally:
        disk.remove()


def large() -> dict[str, Any]:
    """A task that does not compress."""
    return {"kind": "text_stats", "payload": {"text": secrets.token_hex(50_000)}}


async def test_postgres_disk_full(disk: Disk, store: Store) -> None:
    """No room for another event -> 503 `storage_full` after one try each, reads go on, and nothing is
    stored in part; when there is room again, so are writes, without a restart."""
    store.sql("alter table taskledger.task_events set tablespace small")
    log = Path(str(store.sql("show data_directory")[0][0])).parent / "log" / "postgres.log"

    def refusals() -> int:
        return log.read_text(encoding="utf-8").count("could not extend file")

    async with command_api(store) as client:
        acknowledged: list[str] = []
        while (answer := await client.submit(**large())).status_code == 201:
            acknowledged.append(answer.json()["id"])
            assert len(acknowledged) < 100
        problem(answer, 503, "storage_full")
        before, head = refusals(), store.sql("select max(notification_id) from taskledger.task_events")

        begun = time.monotonic()
        batch = {"tasks": [large() for _ in range(5)]}
        answers = await asyncio.gather(
            *(client.submit(f"key-{n}", **large()) for n in range(10)), client.post("/tasks/batch", batch)
        )
        for answer in answers:
            problem(answer, 503, "storage_full")
            assert int(answer.headers["retry-after"]) >= 1
        assert time.monotonic() - begun < BUDGET_SECONDS
        assert refusals() - before <= len(answers)
        assert store.sql("select max(notification_id) from taskledger.task_events") == head
        assert (await client.post(f"/tasks/{acknowledged[0]}/heartbeat", {"attempt": 1})).status_code == 409

        disk.grow(30)
        again = await client.submit("key-0", **large())
        assert again.status_code == 201
        assert "Idempotent-Replayed" not in again.headers
    for task in acknowledged:
        assert store.stored(task) == ["TaskCreated"]


@pytest.fixture
def small_wal(tmp_path: Path) -> Iterator[tuple[Servers, Disk]]:
    """A server whose write-ahead log has a disk of its own."""
    segments = {"max_wal_size": "32MB", "min_wal_size": "32MB", "checkpoint_timeout": "1h"}
    servers = Servers(tmp_path, postgres={**FAST, **segments})
    with contextlib.ExitStack() as stack:
        stack.callback(servers.stop)
        servers.start_postgres()
        servers.postgres_proxy.start()
        prepare(servers)
        servers.crash_postgres()
        wal, kept = tmp_path / "postgres" / "pg_wal", tmp_path / "kept"
        wal.rename(kept)
        disk = Disk(wal, 100)
        stack.callback(disk.remove)
        subprocess.run(["cp", "-a", f"{kept}/.", str(wal)], check=True)
        servers.start_postgres()
        yield servers, disk


@pytest.mark.faults
async def test_postgres_wal_disk_full(small_wal: tuple[Servers, Disk]) -> None:
    """No room for the write-ahead log -> the server crashes; writes 503 meanwhile, and with room for its
    recovery all is as before, with everything that was acknowledged."""
    servers, disk = small_wal
    with fresh(servers) as store:
        async with command_api(store) as client:
            acknowledged = [await client.created() for _ in range(20)]
            disk.grow(used_megabytes(disk) + 2)
            with pytest.raises(psycopg.OperationalError):
                store.sql(
                    "create table filler as select repeat(n::text, 100) from generate_series(1, 999999) n"
                )

            problem(await client.submit("k"), 503, "store_unavailable")
            disk.grow(300)
            await asyncio.to_thread(restart, servers)
            await eventually(client.accepts, "writes", within=8)
            assert (await client.submit("k")).status_code == 201
        for task in acknowledged:
            assert store.stored(task) == ["TaskCreated"]


def used_megabytes(disk: Disk) -> int:
    return sum(file.stat().st_size for file in disk.path.rglob("*") if file.is_file()) // 2**20 + 1


def restart(servers: Servers) -> None:
    """A server that could not recover for lack of room has ended."""
    servers.crash_postgres()
    servers.start_postgres()
