"""`taskledger` commands as a user runs them: processes with an environment of their own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskledger.health import ask
from tests.integration.test_embedded import processes_on
from tests.support import wait_until

START_SECONDS = 60.0
"""Three test workers may share two cores with this."""
FREE_PORTS = {"TASKLEDGER__COMMAND_API__PORT": "0", "TASKLEDGER__QUERY_API__PORT": "0"}


class Running(subprocess.Popen[bytes]):
    """A started command; what it said is in files, so that it never waits for us."""

    def __init__(self, *command: str, folder: Path, env: Mapping[str, str]) -> None:
        self.out, self.err = (folder / f"{'-'.join(command)}.{name}" for name in ("out", "err"))
        with self.out.open("wb") as out, self.err.open("wb") as err:
            argv = [sys.executable, "-P", "-m", "taskledger", *command]
            super().__init__(
                argv, cwd=folder, env=clean(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def said(self) -> str:
        return self.out.read_text() + self.err.read_text()

    def events(self) -> list[str]:
        """The `event` of each JSON line."""
        lines = self.err.read_text().splitlines()
        return [json.loads(line)["event"] for line in lines if line.startswith("{")]

    def end(self, number: signal.Signals = signal.SIGTERM, within: float = 30.0) -> int:
        self.send_signal(number)
        return self.wait(within)


class Up(Running):
    """`taskledger up` on free ports."""

    def __init__(self, folder: Path, **env: str) -> None:
        super().__init__("up", folder=folder, env={**FREE_PORTS, "TASKLEDGER__LEASE_SECONDS": "2", **env})

    def await_ready(self) -> str:
        """What it prints then."""

        def printed() -> str | None:
            assert self.poll() is None, self.said()
            text = self.out.read_text()
            return text if "Ctrl-C stops" in text else None

        return str(wait_until(printed, "up to be ready", within=START_SECONDS))

    @property
    def urls(self) -> tuple[str, str]:
        """Of command API and query API."""
        command, query = re.findall(r"^  \w+ API +(\S+)", self.await_ready(), re.MULTILINE)
        return str(command), str(query)


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """Ours without settings, and with what is given."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TASKLEDGER__")}
    return {**own, **env}


@contextmanager
def up(folder: Path, **env: str) -> Generator[Up]:
    with Up(folder, **env) as process:
        try:
            process.await_ready()
            yield process
        finally:
            if process.poll() is None:
                process.end()
    wait_until(lambda: not processes_on(folder), "nothing to be left", within=5)


def refused(*command: str, folder: Path, **env: str) -> str:
    """The one line of a command that must refuse to run; the folder must be its own."""
    with Running(*command, folder=folder, env=env) as process:
        try:
            code = process.wait(START_SECONDS)
        finally:
            process.kill()
    said = process.said()
    lines = [line for line in said.splitlines() if line and not line.startswith("{")]
    assert code == 2, said
    assert len(lines) == 1, said
    assert lines[0].startswith("taskledger: ")
    assert not processes_on(folder)
    return lines[0].removeprefix("taskledger: ")


def finished(*command: str, folder: Path, **env: str) -> str:
    """What a command that ends well has printed."""
    with Running(*command, folder=folder, env=env) as process:
        try:
            assert process.wait(START_SECONDS) == 0, process.said()
        finally:
            process.kill()
    return process.out.read_text().strip()


def shell(script: str, *, folder: Path, within: float = 90.0, **env: str) -> str:
    """What a script prints when it is pasted into a shell. It must not fail."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=clean(env),
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def get(url: str) -> Any:
    """The JSON at a URL."""
    import httpx

    with httpx.Client(trust_env=False, timeout=70) as client:
        return client.get(url).raise_for_status().json()


def ready(*urls: str) -> bool:
    return all(ask(f"{url}/health/ready") is None for url in urls)
