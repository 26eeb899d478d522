"""The embedded servers: real binaries, real signals. What a crash leaves must never need a human."""

import asyncio
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import psycopg
import pytest
import redis.asyncio
from psycopg.conninfo import conninfo_to_dict

from events.errors import EmbeddedServerError
from taskledger.embedded import EmbeddedPostgres, EmbeddedValkey, embedded_postgres, embedded_valkey

REPOSITORY = Path(__file__).parents[2]
Server = EmbeddedPostgres | EmbeddedValkey
SERVERS = [EmbeddedPostgres, EmbeddedValkey]
both = pytest.mark.parametrize("kind", SERVERS)
needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")


def installed_openly() -> bool:
    """Whether any user may enter the folders that the server's programs lie in."""
    program = Path(sys.prefix)
    return all(folder.stat().st_mode & 0o001 for folder in (program, *program.parents))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="about starting as root")
needs_setpriv = pytest.mark.skipif(
    not shutil.which("setpriv"), reason="no setpriv: the next start cleans up instead"
)

# Starts a server, says its pid or what went wrong, and holds it until stdin ends.
HOLDER = """
import sys
from pathlib import Path
from taskledger import embedded
server = getattr(embedded, sys.argv[1])(Path(sys.argv[2]))
try:
    server.start()
except embedded.EmbeddedServerError as error:
    sys.exit(f"refused: {error}")
print(server.pid, flush=True)
sys.stdin.read()
server.stop()
"""


@both
def test_data_of_the_first_start_is_there_at_the_second(kind: type[Server], tmp_path: Path) -> None:
    with started(kind, tmp_path / "deep" / "data") as (server, address):
        put(address, "kept")
        pid = server.pid
        assert pid is not None
    with started(kind, tmp_path / "deep" / "data") as (server, address):
        assert got(address) == "kept"
        assert server.pid != pid


@both
def test_start_and_stop_twice_are_once(kind: type[Server], used_dir: Path) -> None:
    server = kind(used_dir)
    server.stop()
    try:
        assert server.start() == server.start()
        assert server.alive()
    finally:
        server.stop()
    server.stop()
    assert (server.alive(), server.pid) == (False, None)


@both
@needs_proc
def test_stop_leaves_no_process_and_no_socket(kind: type[Server], used_dir: Path) -> None:
    with started(kind, used_dir):
        assert processes_on(used_dir)
    assert processes_on(used_dir) == []
    assert not list(used_dir.rglob("*.sock*"))
    assert not list(used_dir.rglob("*.run"))


@both
def test_secrets_are_private(kind: type[Server], tmp_path: Path) -> None:
    with started(kind, tmp_path / "data") as (server, _):
        [password_file] = (tmp_path / "data").glob("*.password")
        assert mode(password_file) == 0o600
        password = password_file.read_text().strip()
        assert len(password) >= 32
        for part in (server.home, *server.data_dir.glob("*.socket"), server.log.parent):
            assert mode(part) == 0o700, part
        if Path("/proc/self").exists():
            assert password not in Path(f"/proc/{server.pid}/cmdline").read_text()
    for file in (tmp_path / "data").rglob("*"):
        if file.is_file() and password in file.read_bytes().decode(errors="replace"):
            assert mode(file) == 0o600, file


def test_postgres_wants_the_password_and_listens_on_its_socket_only(tmp_path: Path) -> None:
    with embedded_postgres(tmp_path) as dsn, psycopg.connect(dsn) as connection:
        shown = [
            "current_database()",
            "current_user",
            "current_setting('listen_addresses')",
            "current_setting('fsync')",
            "current_setting('data_checksums')",
            "current_setting('server_encoding')",
            "current_setting('TimeZone')",
        ]
        row = connection.execute(f"SELECT {', '.join(shown)}".encode()).fetchone()
        assert row == ("taskledger", "taskledger_owner", "", "on", "on", "UTF8", "UTC")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(dsn, password="guess")


def test_valkey_wants_the_password_and_serves_the_asyncio_client(tmp_path: Path) -> None:
    with embedded_valkey(tmp_path) as url:
        assert asyncio.run(async_command(url, "CONFIG", "GET", "maxmemory-policy")) == {
            "maxmemory-policy": "noeviction"
        }
        assert asyncio.run(async_command(url, "CONFIG", "GET", "appendonly")) == {"appendonly": "yes"}
        assert command(url, "CONFIG", "GET", "port") == {"port": "0"}
        with pytest.raises(
            redis.ConnectionError, match="must be called with the client already authenticated"
        ):
            asyncio.run(async_command(url.partition("?")[0], "PING"))


def test_settings_win_over_defaults(used_dir: Path) -> None:
    with (
        embedded_postgres(used_dir, settings={"max_connections": "17"}) as dsn,
        psycopg.connect(dsn) as connection,
    ):
        assert connection.execute("SHOW max_connections").fetchone() == ("17",)
    with embedded_valkey(used_dir, settings={"databases": "3"}) as url:
        assert command(url, "CONFIG", "GET", "databases") == {"databases": "3"}


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (
            EmbeddedPostgres,
            {"max_connections": "many"},
            'invalid value for parameter "max_connections": "many"',
        ),
        (EmbeddedValkey, {"maxmemory-policy": "some"}, "argument"),
    ],
)
def test_a_server_that_dies_at_start_is_quoted(
    kind: type[Server], settings: dict[str, str], told: str, tmp_path: Path
) -> None:
    server = kind(tmp_path, settings=settings)
    line = refusal(server)
    assert told in line
    assert str(server.log) in line


@both
def test_a_server_that_dies_is_started_again_at_the_same_address(
    kind: type[Server], used_dir: Path
) -> None:
    with started(kind, used_dir) as (server, address):
        put(address, "kept")
        kill_server(server)
        assert server.start() == address
        assert got(address) == "kept"


@both
@needs_proc
@needs_setpriv
def test_a_server_ends_when_we_are_killed(kind: type[Server], used_dir: Path) -> None:
    with holder(kind, used_dir) as process:
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not processes_on(used_dir), "the server to follow us")
    with started(kind, used_dir):
        pass


@both
@needs_proc
def test_a_server_that_outlived_us_is_stopped_by_the_next_start(
    kind: type[Server], used_dir: Path, short_path: Callable[..., str]
) -> None:
    with holder(kind, used_dir, path=short_path("unshare")) as process:
        pid = process.server_pid
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert pid in processes_on(used_dir)
    with started(kind, used_dir) as (server, _):
        assert pid not in processes_on(used_dir)
        assert server.pid != pid
    assert processes_on(used_dir) == []


@both
def test_the_terminal_and_the_thread_that_started_it_do_not_reach_the_server(
    kind: type[Server], used_dir: Path
) -> None:
    server = kind(used_dir)
    server.start()
    server.stop()
    logged = server.log.stat().st_size
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid
        put(server.start(), "still there")
        log = server.log.read_text()[logged:]
        assert "shutdown request" not in log
        assert "scheduling shutdown" not in log
    finally:
        server.stop()


def test_an_initdb_that_was_killed_is_done_again(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HOLDER, "EmbeddedPostgres", str(tmp_path)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.PIPE) as process:
        wait_until(lambda: any(tmp_path.glob("postgres.new-*/PG_VERSION")), "initdb to begin")
        process.kill()
    assert not (tmp_path / "postgres").exists()
    (tmp_path / "postgres.new-of-a-power-cut" / "base").mkdir(parents=True)
    with embedded_postgres(tmp_path) as dsn:
        put(dsn, "fine")
    assert not list(tmp_path.glob("postgres.new-*"))


def test_an_orphan_of_a_killed_server_is_waited_for(used_dir: Path) -> None:
    """Two servers on one data folder would ruin it: PostgreSQL's own guard must stay in force."""
    with started(EmbeddedPostgres, used_dir) as (server, address), psycopg.connect(address) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            kill_server(server)
            with pytest.raises(EmbeddedServerError, match="pre-existing shared memory block"):
                server.start(timeout=0.5)
        finally:
            os.kill(backend, signal.SIGKILL)
        put(server.start(), "fine")


def test_a_pid_that_another_program_has_by_now_is_no_obstacle(used_dir: Path) -> None:
    with started(EmbeddedPostgres, used_dir) as (server, _):
        kill_server(server)
    pid_file = used_dir / "postgres" / "postmaster.pid"
    with subprocess.Popen(["sleep", "60"]) as stranger:
        dead, rest = pid_file.read_text().split("\n", 1)
        assert dead.isdigit()
        pid_file.write_text(f"{stranger.pid}\n{rest}")
        (used_dir / "postgres.run").write_text(
            f'{{"pid": {stranger.pid}, "socket_dir": "{used_dir}/postgres.socket"}}'
        )
        with embedded_postgres(used_dir) as dsn:
            put(dsn, "fine")
        assert stranger.poll() is None
        stranger.kill()


@both
def test_the_second_on_one_folder_is_refused(kind: type[Server], used_dir: Path) -> None:
    with started(kind, used_dir) as (server, address):
        line = refusal(kind(used_dir))
        assert f"another taskledger is running from {used_dir} (pid {os.getpid()})" in line
        assert server.alive()
        put(address, "undisturbed")


@both
@pytest.mark.parametrize("name", ["long" * 30, "comma,blank and ünicode"])
def test_a_path_that_takes_no_socket_gets_one_elsewhere(
    kind: type[Server], name: str, tmp_path: Path
) -> None:
    with started(kind, tmp_path / name) as (server, address):
        put(address, "fine")
        folder = socket_folder(address)
        assert tmp_path not in folder.parents
        assert mode(folder) == 0o700
        kill_server(server)
        assert server.start() == address
    assert not folder.exists()


@both
@pytest.mark.parametrize(
    ("wanted", "culprit"),
    [("/proc/taskledger", "/proc/taskledger"), (f"{__file__}/data", __file__), (__file__, __file__)],
    ids=["read-only", "below-file", "file"],
)
def test_an_unusable_folder_is_told_in_one_line(kind: type[Server], wanted: str, culprit: str) -> None:
    assert f"cannot use {culprit}: " in refusal(kind(Path(wanted)))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "postgres" / "letters.txt"
    mine.parent.mkdir()
    mine.write_text("dear")
    assert f"{mine.parent} holds something else than PostgreSQL data" in refusal(EmbeddedPostgres(tmp_path))
    assert mine.read_text() == "dear"


def test_data_of_another_version_or_without_its_password_is_left_alone(tmp_path: Path) -> None:
    version = tmp_path / "postgres" / "PG_VERSION"
    version.parent.mkdir()
    version.write_text("15\n")
    assert "was written by PostgreSQL 15 and this is 18" in refusal(EmbeddedPostgres(tmp_path))
    version.write_text("18\n")
    assert "postgres.password is missing" in refusal(EmbeddedPostgres(tmp_path))
    (tmp_path / "postgres.password").write_text("x")
    assert "PostgreSQL did not start: postgres: could not access" in refusal(EmbeddedPostgres(tmp_path))
    assert [file.name for file in version.parent.iterdir()] == ["PG_VERSION"]


def test_a_wrong_password_file_is_told_in_one_line(tmp_path: Path) -> None:
    with embedded_postgres(tmp_path):
        pass
    (tmp_path / "postgres.password").write_text("other")
    assert "password authentication failed" in refusal(EmbeddedPostgres(tmp_path))


@both
def test_a_large_log_is_moved_aside(kind: type[Server], used_dir: Path) -> None:
    log = kind(used_dir).log
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"x" * 10 * 1024 * 1024 + b"y")
    with started(kind, used_dir):
        assert log.stat().st_size < 100_000
    assert Path(f"{log}.1").stat().st_size > 10 * 1024 * 1024


@both
def test_without_the_wheels_the_line_says_what_to_install(
    kind: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    assert "pip install 'taskledger[embedded]'" in refusal(kind(tmp_path))


@needs_root
def test_root_without_namespaces_names_the_closed_folder(
    tmp_path: Path, short_path: Callable[..., str]
) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    # Whose own folder is closed, as one from mktemp is, hears of that first.
    expected = r"cannot enter .*TASKLEDGER__DATA_DIR" if installed_openly() else "where it is installed"
    with (
        pytest.raises(EmbeddedServerError, match=expected),
        holder(EmbeddedPostgres, tmp_path / "closed" / "data", path=short_path("setpriv")),
    ):
        pytest.fail("must not start")


@needs_root
@pytest.mark.skipif(
    not installed_openly(), reason="this checkout lies in a folder that only root can enter"
)
def test_root_without_namespaces_becomes_another_user(short_path: Callable[..., str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        open_folder = Path(name)
        open_folder.chmod(0o755)
        with holder(EmbeddedPostgres, open_folder / "data", path=short_path("setpriv")) as process:
            assert Path(f"/proc/{process.server_pid}").stat().st_uid not in {0, 65_533}
        with embedded_postgres(
            open_folder / "data"
        ) as dsn:  # namespaces are back: the data keeps its owner
            put(dsn, "fine")
        assert (open_folder / "data" / "postgres").stat().st_uid != 0
        assert mode(open_folder) == 0o755


@needs_root
def test_root_in_a_namespace_keeps_the_files(tmp_path: Path) -> None:
    with started(EmbeddedPostgres, tmp_path / "data"):
        pass
    assert {file.stat().st_uid for file in tmp_path.rglob("*")} == {0}


class Holder(subprocess.Popen[str]):
    """A process that holds a server."""

    server_pid: int


@contextmanager
def holder(kind: type[Server], data_dir: Path, *, path: str | None = None) -> Generator[Holder]:
    argv = [sys.executable, "-c", HOLDER, kind.__name__, str(data_dir)]
    env = os.environ | ({} if path is None else {"PATH": path})
    pipe = subprocess.PIPE
    with Holder(argv, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        answer = process.stdout.readline()
        if not answer:
            raise EmbeddedServerError(process.stderr.read())
        process.server_pid = int(answer)
        yield process


@contextmanager
def started(kind: type[Server], data_dir: Path) -> Generator[tuple[Server, str]]:
    server = kind(data_dir)
    try:
        yield server, server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def used_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests to which it does not matter what was there before: an initdb takes most of a second."""
    return tmp_path_factory.mktemp("embedded") / "data"


@pytest.fixture
def short_path() -> Generator[Callable[..., str]]:
    """A PATH on which the tools are that are named, and little else. Any user may use it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)

        def make(*tools: str) -> str:
            for tool in ("true", "test", *tools):
                if (found := shutil.which(tool)) and not (folder / tool).exists():
                    (folder / tool).symlink_to(found)
            return name

        yield make


def refusal(server: Server) -> str:
    """The line of a refused start, which must be one, and say which setting helps."""
    with pytest.raises(EmbeddedServerError) as caught:
        server.start(timeout=10)
    line = str(caught.value)
    assert "\n" not in line
    assert "TASKLEDGER__" in line or "may be removed" in line
    assert not server.alive()
    return line


def kill_server(server: Server) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.alive(), "the server to be gone")


def put(address: str, value: str) -> None:
    if address.startswith("unix:"):
        command(address, "SET", "kept", value)
    else:
        with psycopg.connect(address) as connection:
            connection.execute("DROP TABLE IF EXISTS kept")
            connection.execute("CREATE TABLE kept AS SELECT %s AS value", [value])


def got(address: str) -> str:
    if address.startswith("unix:"):
        return str(command(address, "GET", "kept"))
    with psycopg.connect(address) as connection:
        row = connection.execute("SELECT value FROM kept").fetchone()
        return str(row and row[0])


class Commands(Protocol):
    """redis-py leaves this method untyped; the asyncio client's returns an awaitable."""

    def execute_command(self, *words: str) -> object: ...


def command(url: str, *words: str) -> object:
    with redis.Redis.from_url(url, decode_responses=True) as client:  # pyright: ignore[reportUnknownMemberType]
        return cast("Commands", client).execute_command(*words)


async def async_command(url: str, *words: str) -> object:
    async with redis.asyncio.from_url(url, decode_responses=True) as client:  # pyright: ignore[reportUnknownMemberType]
        return await cast("Awaitable[object]", cast("Commands", client).execute_command(*words))


def socket_folder(address: str) -> Path:
    if address.startswith("unix:"):
        return Path(address.removeprefix("unix://").partition("?")[0]).parent
    return Path(str(conninfo_to_dict(address)["host"]))


def processes_on(folder: Path) -> list[int]:
    """Every process that names the folder in its command line or works in it, but those that have ended."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                command, cwd = (entry / "cmdline").read_bytes(), (entry / "cwd").readlink()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if command and (os.fsencode(folder) in command or folder in (cwd, *cwd.parents)):
                found.append(int(entry.name))
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.005)
