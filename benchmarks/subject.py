"""What is measured: its processes, and how to ask it; ours and each peer say it in `subject.toml`.

Braces in commands, addresses and variables stand for `{dsn}`, `{redis}`, `{workers}`, `{count}`, the ports
`{api}` and `{query}`, and `{free}`, another port each time. In `read` they stand for fields of a task.
"""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import tomllib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import httpx

from benchmarks.processes import Process, cpu_seconds, free_port, peak_mib
from benchmarks.servers import Servers

ROOT: Final = Path(__file__).resolve().parent
READY_SECONDS: Final = 60.0
SETTLED_SECONDS: Final = 180.0
COMMAND_SECONDS: Final = 900.0
"""One that ends, as enqueuing a million tasks or a rebuild."""
CHECKED_RESULTS: Final = 100


class WrongError(AssertionError):
    """Tasks did not complete, or with a wrong result: that is no figure."""


@dataclass(frozen=True)
class Subject:
    name: str
    folder: Path
    title: str
    keeps: str
    """Where an accepted task lives: "PostgreSQL" or "Redis"."""
    tuned: str
    """What was tried before these settings were taken."""
    prepare: list[list[str]]
    """Commands that make an empty database ready, behind the environment's python."""
    processes: dict[str, list[str]]
    """Long-running ones; the one named "worker" runs as often as a workload says, the first first."""
    enqueue: list[str]
    """Enqueues {count} tasks `sum` of x = y = n the fastest way there is; prints {"seconds": …}."""
    ready: list[str]
    submit: str
    read: str
    count: str
    """Answers a document with the number of completed tasks behind the keys of `counted`."""
    counted: list[str]
    rebuild: list[str] = field(default_factory=list[str])
    """Makes what is read anew from the log, for those that have one."""
    tables: dict[str, str] = field(default_factory=dict[str, str])
    """Whose bytes are told one by one: LIKE patterns of schema.table."""
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def load(cls, folder: Path) -> Self:
        document = tomllib.loads((folder / "subject.toml").read_text())
        return cls(name=folder.name, folder=folder, **document)

    def install(self, cache: Path) -> Path:
        """The python of its own environment, made anew when its requirements change; without any: ours."""
        requirements = self.folder / "requirements.txt"
        if not requirements.exists():
            return Path(sys.executable)
        digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
        home = cache.absolute() / f"{self.name}-{digest}"  # processes run in folders of their own
        python, done = home / "bin/python", home / "installed"
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--require-hashes", "-r", str(requirements)], check=True)
            done.touch()
        return python


def all_subjects() -> dict[str, Subject]:
    """Ours first."""
    folders = [ROOT / "ours", *sorted((ROOT / "peers").iterdir())]
    return {folder.name: Subject.load(folder) for folder in folders if (folder / "subject.toml").exists()}


class Running:
    """A subject whose processes run. A context manager; `work` starts its workers."""

    def __init__(
        self, subject: Subject, python: Path, servers: Servers, logs: Path, workers: int, *, fresh: bool
    ) -> None:
        self.subject = subject
        self.workers = workers
        self._fresh = fresh
        self._python = python
        self._servers = servers
        self._logs = logs
        self._processes: dict[str, Process] = {}
        self._values = {
            "dsn": servers.dsn,
            "redis": servers.redis_url,
            "workers": str(workers),
            "api": str(free_port()),
            "query": str(free_port()),
        }
        self._client = httpx.Client(timeout=30, trust_env=False)

    @contextlib.contextmanager
    def prepared(self) -> Generator[Self]:
        """With its tables, and no process that runs."""
        with contextlib.closing(self._client):
            self._prepare()
            yield self

    @contextlib.contextmanager
    def alone(self) -> Generator[Self]:
        """Of its processes only the first one, which is what tasks are submitted to."""
        try:
            self._begin(list(self.subject.processes)[:1], self.subject.ready[:1])
            yield self
        finally:
            self.__exit__()

    def __enter__(self) -> Self:
        try:
            others = [name for name in self.subject.processes if name != "worker"]
            self._begin(others, self.subject.ready)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes.values()):
            process.end()
        self._client.close()

    def _begin(self, names: list[str], ready: list[str]) -> None:
        self._prepare()
        for name in names:
            self._start(name, name)
        self._await_ready(ready)

    def _prepare(self) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        if not self._fresh:
            self._servers.settle()
            return
        self._servers.clear()
        for command in self.subject.prepare:
            self._run(command)

    @property
    def dsn(self) -> str:
        return self._servers.dsn

    def rebuild(self) -> tuple[float, str]:
        """Seconds that the command took, its start included, and what it said."""
        began = time.perf_counter()
        said = self._run(self.subject.rebuild)
        return time.perf_counter() - began, said

    def work(self) -> None:
        for n in range(self.workers):
            self._start("worker", f"worker-{n}")

    @property
    def submit_url(self) -> str:
        return self._fill(self.subject.submit)

    def read_url(self, created: Mapping[str, Any]) -> str:
        return self._fill(self.subject.read, **created)

    def enqueue(self, count: int) -> float:
        """Seconds that it took."""
        printed = self._run([self._fill(part, count=count) for part in self.subject.enqueue])
        return float(json.loads(printed.splitlines()[-1])["seconds"])

    def completed(self) -> int:
        return self.counted(*self.subject.counted)

    def counted(self, *keys: str) -> int:
        """What the document of counts has there."""
        self.check()
        found: Any = self._client.get(self._fill(self.subject.count)).raise_for_status().json()
        for key in keys:
            found = found.get(key, 0)
        return int(found)

    def await_completed(self, count: int, within: float = SETTLED_SECONDS) -> None:
        deadline = time.monotonic() + within
        while (done := self.completed()) < count:
            if time.monotonic() > deadline:
                raise WrongError(f"{self.subject.name}: {done} of {count} tasks completed in {within} s")
            time.sleep(0.02)
        if done > count:
            raise WrongError(f"{self.subject.name}: {done} tasks completed, of {count}")

    def check_results(self, created: list[tuple[int, dict[str, Any]]]) -> None:
        """Of some at random. `created` holds what each was made with, and what its creation answered."""
        for n, task in random.sample(created, min(CHECKED_RESULTS, len(created))):
            found = self._client.get(self.read_url(task)).raise_for_status().json()
            if (found["status"], found["result"]) != ("completed", {"sum": 2 * n}):
                raise WrongError(f"{self.subject.name}: {found['status']}, {found['result']} for {n} + {n}")

    def cpu(self) -> dict[str, float]:
        """Seconds so far: of API, workers, other processes and both servers."""
        spent = {name: cpu_seconds(pid) for name, pid in self._servers.pids.items()}
        for name, process in self._processes.items():
            kind = name.partition("-")[0] if name.startswith("worker") else name
            spent[kind] = spent.get(kind, 0.0) + cpu_seconds(process.pid)
        return spent

    def peaks(self) -> dict[str, float]:
        """The most memory that each process had so far. MiB."""
        return {name: peak_mib(process.pid) for name, process in self._processes.items()}

    def bytes_kept(self) -> dict[str, int]:
        return self._servers.bytes_kept(self.subject.tables)

    def entries(self) -> int:
        """In the streams of Redis."""
        return self._servers.entries()

    def check(self) -> None:
        for process in self._processes.values():
            process.check()

    def _await_ready(self, ready: list[str]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        for url in map(self._fill, ready):
            while not self._answers(url):
                self.check()
                if time.monotonic() > deadline:
                    raise WrongError(f"{self.subject.name} is not ready: {url}")
                time.sleep(0.05)

    def _answers(self, url: str) -> bool:
        try:
            return self._client.get(url).is_success
        except httpx.TransportError:
            return False

    def _start(self, name: str, label: str) -> None:
        argv = [str(self._python), *map(self._fill, self.subject.processes[name])]
        log = self._logs / f"{label}.log"
        self._processes[label] = Process(argv, cwd=self.subject.folder, env=self._environment(), log=log)

    def _run(self, command: list[str]) -> str:
        argv = [str(self._python), *map(self._fill, command)]
        done = subprocess.run(
            argv,
            cwd=self.subject.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise WrongError(
                f"{self.subject.name}: {command} ended with {done.returncode}:\n{done.stderr[-2000:]}"
            )
        return done.stdout

    def _environment(self) -> dict[str, str]:
        """Ours without what would change the subject."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        own = {name: self._fill(value) for name, value in self.subject.environment.items()}
        return {**kept, "DSN": self._servers.dsn, "REDIS_URL": self._servers.redis_url, **own}

    def _fill(self, text: str, **more: Any) -> str:
        values = {**self._values, **{name: str(value) for name, value in more.items()}}
        return text.format_map({"free": str(free_port()), **values})
