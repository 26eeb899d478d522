"""Every process of the service, as many as asked for, kept running and open to every sort of violence."""

import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple, Self

from taskledger.database import migrate_when_reachable
from taskledger.health import ask
from tests.chaos import handlers, plants
from tests.chaos.failpoints import Failpoints
from tests.chaos.member import Member
from tests.chaos.nursery import NURSERY
from tests.chaos.ports import Ports
from tests.support import wait_until

COPIES: Final = {"command-api": 2, "query-api": 2, "dispatcher": 2, "projector": 2, "worker": 2}
OUTSIDE: Final = '{"outside": {"queue": "outside"}}'
"""The kind whose workers claim over HTTP, and its queue."""
_PORT_OF: Final = {"command-api": "COMMAND_API", "query-api": "QUERY_API"}


class Ran(NamedTuple):
    returncode: int
    """Minus the signal that killed it."""
    stdout: str
    stderr: str


class Cluster:
    """Safe to use from any thread. `env` adds settings; `plant` names a planted bug."""

    def __init__(
        self,
        folder: Path,
        *,
        dsn: str,
        redis_url: str,
        copies: Mapping[str, int] = COPIES,
        lease_seconds: float = 1.5,
        env: Mapping[str, str] | None = None,
        plant: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.dsn = dsn
        self.redis_url = redis_url
        self.lease_seconds = lease_seconds
        self.plant = plant
        self.effects_file = folder / "effects.jsonl"
        self.failpoints = Failpoints(folder / "failpoints")
        self._own_env = dict(env or {})
        self._runs = count()
        self._ports = Ports()
        self._members: dict[str, Member] = {}
        ports = {name: self._ports.take() for name in _names(copies)}
        query = next((port for name, port in ports.items() if name.startswith("query-api")), None)
        shared = self._environment(query)
        for name, port in ports.items():
            command = name.rpartition("-")[0]
            section = _PORT_OF.get(command, "HEALTH")
            special = {f"TASKLEDGER__{section}__PORT": str(port), "TASKLEDGER__WORKER__NAME": name}
            self._members[name] = Member(
                name, command, folder, port, {**shared, **special, **self._own_env}
            )

    @property
    def names(self) -> list[str]:
        return list(self._members)

    @property
    def command_urls(self) -> list[str]:
        return [self.health_url(name) for name in self.names if name.startswith("command-api")]

    @property
    def query_urls(self) -> list[str]:
        return [self.health_url(name) for name in self.names if name.startswith("query-api")]

    @property
    def restarts(self) -> Counter[str]:
        return Counter({name: member.restarts for name, member in self._members.items()})

    @property
    def exit_codes(self) -> dict[str, list[int]]:
        """Of the processes that have ended, in order; minus the signal for a killed one."""
        return {name: list(member.exit_codes) for name, member in self._members.items()}

    def health_url(self, name: str) -> str:
        """Where `/health/ready` and `/health/live` are."""
        return self._members[name].url

    def start(self, within: float = 60.0) -> None:
        """Migrates, starts all at once and returns when all are ready."""
        migrate_when_reachable(self.dsn)
        plants.spoil(self.plant, self.dsn)
        for member in self._members.values():
            member.start()
        for name in self.names:
            self.await_ready(name, within)

    def stop(self) -> None:
        """Kills what runs; nothing is left when this returns."""
        for member in self._members.values():
            member.end()
        for member in self._members.values():
            member.join()
        self._ports.release()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def pid(self, name: str) -> int | None:
        return self._members[name].pid

    def said(self, name: str) -> str:
        """All that the processes in this place have logged."""
        log = self._members[name].log
        return log.read_text(errors="replace") if log.exists() else ""

    def kill(self, name: str, within: float = 10.0) -> int | None:
        """Has ended when this returns; the pid, or None if there was nothing to kill."""
        member = self._members[name]
        pid = member.signal(signal.SIGKILL)
        if pid is not None:
            member.await_end(pid, within)
        return pid

    def suspend(self, name: str) -> int | None:
        """Stands still when this returns."""
        pid = self._members[name].signal(signal.SIGSTOP)
        if pid is not None:
            wait_until(lambda: _state(pid) in "TZ-", f"{name} to stand still")
        return pid

    def resume(self, name: str) -> None:
        self._members[name].signal(signal.SIGCONT)

    def terminate(self, name: str, within: float | None = None) -> int | None:
        """SIGTERM. With `within`, waits for the end and returns the exit code."""
        member = self._members[name]
        pid = member.signal(signal.SIGTERM)
        return None if pid is None or within is None else member.await_end(pid, within)

    def hold(self, name: str) -> None:
        """From now on not started again."""
        self._members[name].hold(held=True)

    def release(self, name: str) -> None:
        self._members[name].hold(held=False)

    def ready(self, name: str) -> bool:
        return ask(f"{self.health_url(name)}/health/ready") is None

    def await_ready(self, name: str, within: float = 30.0) -> None:
        """Raises at once for a process that refuses to run."""

        def ready() -> bool:
            if self._members[name].refuses:
                raise RuntimeError(f"{name} refuses to run:\n{self.said(name)[-4000:]}")
            return self.ready(name)

        try:
            wait_until(ready, f"{name} to be ready", within=within)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said(name)[-4000:]}") from None

    def run(self, command: str, *arguments: str, within: float = 60.0) -> Ran:
        """A command that ends, such as verify or rebuild, with failpoints and plant as the others."""
        name = f"{command}-{next(self._runs)}"
        out, err = (self.folder / f"{name}.{end}" for end in ("out", "err"))
        env = {**self._environment(None), **self._own_env}
        process = NURSERY.fork([command, *arguments], env=env, cwd=self.folder, out=out, err=err)
        try:
            return Ran(process.wait(within), out.read_text(), err.read_text())
        finally:
            process.send_signal(signal.SIGKILL)

    def _environment(self, query_port: int | None) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TASKLEDGER", "CHAOS_", "COVERAGE_", "COV_"))
        }
        ours = {
            "TASKLEDGER__POSTGRES__DSN": self.dsn,
            "TASKLEDGER__POSTGRES__POOL_SIZE": "4",
            "TASKLEDGER__REDIS__URL": self.redis_url,
            "TASKLEDGER__LEASE_SECONDS": str(self.lease_seconds),
            "TASKLEDGER__HANDLERS": '["tests.chaos.handlers"]',
            "TASKLEDGER__EXTERNAL_KINDS": OUTSIDE,
            "TASKLEDGER__WORKER__CONCURRENCY": "16",
            "TASKLEDGER__WORKER__DRAIN_SECONDS": "2",
            "TASKLEDGER__LOG_FORMAT": "json",
            "TASKLEDGER__DATA_DIR": str(self.folder / "data"),
            "PYTHONUNBUFFERED": "1",
            handlers.EFFECTS: str(self.effects_file),
            **self.failpoints.env,
        }
        if query_port is not None:
            ours["TASKLEDGER__QUERY_API__PUBLIC_URL"] = f"http://127.0.0.1:{query_port}"
        if self.plant is not None:
            ours[plants.PLANT] = self.plant
        return {**inherited, **ours}


def _names(copies: Mapping[str, int]) -> Iterator[str]:
    for command, many in copies.items():
        yield from (f"{command}-{number}" for number in range(many))


def _state(pid: int) -> str:
    """One letter, as in /proc; "-" for a process that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "-"
    return stat.rpartition(")")[2].split()[0]
