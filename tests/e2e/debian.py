"""The PostgreSQL and Redis of the Debian release, from their binaries, on private folders and ports."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from tests.support import wait_until

PASSWORD = "only for this test"
OLDEST_POSTGRES = 15
REQUIRED = os.environ.get("TASKLEDGER_TEST_SERVERS") == "required"


@contextmanager
def system_servers() -> Generator[tuple[str, str]]:
    """DSN and URL; skips, with the reason, where a server is not installed."""
    binaries, server = _postgres_binaries(), shutil.which("redis-server")
    if binaries is None:
        _left_out(f"PostgreSQL {OLDEST_POSTGRES} or later is not installed in /usr/lib/postgresql")
    if server is None:
        _left_out("redis-server is not installed")
    with _open_folder() as folder, _postgres(binaries, folder) as dsn, _redis(server, folder) as url:
        yield dsn, url


def _left_out(reason: str) -> None:
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(f"{reason}; .ci/run installs it")


def _postgres_binaries() -> Path | None:
    found = {
        int(p.parent.name): p for p in Path("/usr/lib/postgresql").glob("*/bin") if p.parent.name.isdigit()
    }
    newest = max(found, default=0)
    return found[newest] if newest >= OLDEST_POSTGRES else None


@contextmanager
def _open_folder() -> Generator[Path]:
    """One that the unprivileged user can get to: pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="taskledger-servers-"))
    try:
        folder.chmod(0o755)
        for name in ("postgres", "redis"):
            (folder / name).mkdir(mode=0o700)
            if (user := _user()) is not None:
                os.chown(folder / name, pwd.getpwnam(user).pw_uid, -1)
        yield folder
    finally:
        shutil.rmtree(folder)


def _user() -> str | None:
    """Who runs the servers: PostgreSQL refuses root."""
    return "postgres" if os.geteuid() == 0 else None


@contextmanager
def _postgres(binaries: Path | None, folder: Path) -> Generator[str]:
    assert binaries is not None
    data, secret, port = folder / "postgres", folder / "password", free_port()
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    initdb = [str(binaries / "initdb"), f"--pgdata={data}", "--username=taskledger", f"--pwfile={secret}"]
    done = subprocess.run(
        [*initdb, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"],
        cwd=data,
        user=_user(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "off",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    dsn = f"postgresql://taskledger:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/postgres"

    def answers() -> bool:
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            return False
        return True

    with _server([binaries / "postgres", "-D", data, *options], data, signal.SIGQUIT):
        wait_until(answers, "PostgreSQL to answer")
        yield dsn


@contextmanager
def _redis(server: str | None, folder: Path) -> Generator[str]:
    assert server is not None
    port, data = free_port(), folder / "redis"
    options = ["--port", port, "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--appendonly", "yes"]

    def answers() -> bool:
        with redis.Redis(port=port, password=PASSWORD) as client:
            try:
                return bool(client.ping())  # pyright: ignore[reportUnknownMemberType] (untyped keywords)
            except redis.RedisError:
                return False

    with _server([server, *options, "--save", "", "--dir", data], data, signal.SIGKILL):
        wait_until(answers, "Redis to answer")
        yield f"redis://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/0"


@contextmanager
def _server(argv: Sequence[object], data: Path, end: signal.Signals) -> Generator[None]:
    output = subprocess.DEVNULL
    with subprocess.Popen(
        [str(part) for part in argv],
        cwd=data,
        user=_user(),
        stdout=output,
        stderr=output,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            process.send_signal(end)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
