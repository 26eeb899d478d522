"""Every process by itself, as docker-compose.yml starts them, against servers that were there before.

Two of each at once, `migrate` first, and the examples of README.md. Nobody restarts what dies here, so
the example that kills its worker leaves one.
"""

import signal
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
import yaml

from taskledger.health import ask
from tests.e2e import examples
from tests.e2e.debian import free_port, system_servers
from tests.e2e.running import START_SECONDS, Running, clean, finished, get, refused, shell
from tests.support import Service, wait_until

pytestmark = pytest.mark.timeout(240)

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())
COMMANDS = [s["command"] for name, s in COMPOSE["services"].items() if name not in {"postgres", "redis"}]
EACH = 2


class Process(Running):
    """One process on ports of its own."""

    def __init__(
        self, name: str, folder: Path, env: Mapping[str, str], *, files: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        setting = {"command-api": "COMMAND_API", "query-api": "QUERY_API"}.get(name, "HEALTH")
        self.name = name
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir()
        for file, text in (files or {}).items():
            (folder / file).write_text(text)
        super().__init__(name, folder=folder, env={**env, f"TASKLEDGER__{setting}__PORT": str(self.port)})

    def await_ready(self) -> None:
        def asked() -> bool:
            assert self.poll() is None, self.said()
            return ask(f"{self.url}/health/ready") is None

        wait_until(asked, f"{self.name} to be ready", within=START_SECONDS)


@contextmanager
def processes(folder: Path, env: Mapping[str, str]) -> Generator[dict[str, list[Process]]]:
    """Two of each; all must drain and end well."""
    names = [command[0] for command in COMMANDS if command != ["migrate"]]
    started: dict[str, list[Process]] = {}
    with ExitStack() as stack:
        query = Process("query-api", folder / "query-api-0", env)
        env = {**env, "TASKLEDGER__QUERY_API__PUBLIC_URL": query.url}
        started["query-api"] = [query]
        for name in names:
            group = started.setdefault(name, [])
            group += [Process(name, folder / f"{name}-{n}", env) for n in range(len(group), EACH)]
        everyone = [stack.enter_context(p) for group in started.values() for p in group]
        for process in everyone:
            stack.callback(process.kill)
        for process in everyone:
            process.await_ready()
        yield started
        for process in everyone:
            process.terminate()
        codes = [(process.name, process.wait(30)) for process in everyone]
        assert sorted(code for _, code in codes if code) == [-signal.SIGKILL], codes


def run_the_examples(dsn: str, url: str, folder: Path) -> None:
    secret = {"TASKLEDGER__WEBHOOKS__SECRET": "s" * 32}
    env = {**addresses(dsn, url), **secret, "TASKLEDGER__LEASE_SECONDS": "2"}
    assert finished("migrate", folder=folder, **env).startswith("the database is at revision")
    with processes(folder, env) as started:
        commands, queries = started["command-api"], started["query-api"]
        script = examples.one_script(commands[0].url, queries[0].url)
        examples.check(shell(script, folder=folder, within=150))
        create = f"curl -sf -w '%header{{location}}' -o /dev/null {commands[1].url}/tasks"
        body = """-H 'Content-Type: application/json' -d '{"kind": "sum", "payload": {"x": 1, "y": 1}}'"""
        location = shell(f"{create} {body}", folder=folder).replace(queries[0].url, queries[1].url)
        assert get(f"{location}&wait_seconds=30")["result"] == {"sum": 2}
        assert sum(ask(f"{worker.url}/health/live") is None for worker in started["worker"]) == 1
        for process in (*started["dispatcher"], *started["projector"], *started["webhooks"]):
            assert ask(f"{process.url}/health/live") is None
    assert finished("rebuild", folder=folder, **env)
    assert finished("verify", folder=folder, **env).endswith(": no difference")


@pytest.mark.faults
def test_two_of_each_on_the_newest_servers(empty_dsn: str, redis_url: str, tmp_path: Path) -> None:
    run_the_examples(empty_dsn, redis_url, tmp_path)


@pytest.mark.servers
def test_two_of_each_on_the_servers_of_the_release(tmp_path: Path) -> None:
    with system_servers() as (dsn, url):
        run_the_examples(dsn, url, tmp_path)


@pytest.mark.parametrize("command", [c for [c] in COMMANDS])
def test_without_an_address_a_process_refuses_in_one_line(command: str, tmp_path: Path) -> None:
    assert refused(command, folder=tmp_path).startswith("TASKLEDGER__POSTGRES__DSN is not set")


@pytest.mark.parametrize("command", ["command-api", "query-api", "worker"])
def test_handlers_that_cannot_be_imported_are_named(
    command: str, dsn: str, redis_url: str, tmp_path: Path
) -> None:
    env = addresses(dsn, redis_url)
    line = refused(command, folder=tmp_path, **env, TASKLEDGER__HANDLERS='["no_such_module"]')
    assert "no_such_module" in line


MINE = """
from taskledger import task

@task("double")
def double(payload: int) -> int:
    return 2 * payload
"""


def test_handlers_of_ones_own_are_found_in_the_working_folder(
    dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """And hide none of ours, whatever their names."""
    env = {**addresses(dsn, redis_url), "TASKLEDGER__HANDLERS": '["mine"]'}
    with Process(
        "query-api", tmp_path / "mine", env, files={"mine.py": MINE, "events.py": "0 / 0"}
    ) as process:
        try:
            wait_until(
                lambda: ask(f"{process.url}/health/live") is None, "it to be up", within=START_SECONDS
            )
            assert [kind["kind"] for kind in get(f"{process.url}/kinds")["kinds"]] == ["double"]
            assert process.end() == 0
        finally:
            process.kill()


async def test_a_row_falsified_by_hand_is_found_by_verify_and_put_right_by_rebuild(
    service: Service, redis_url: str, tmp_path: Path
) -> None:
    env = addresses(service.dsn, redis_url)
    await service.create()
    with Process("projector", tmp_path / "projector", env) as projector:
        projector.await_ready()
        assert projector.end() == 0
    assert finished("verify", folder=tmp_path, **env).endswith(": no difference")
    with psycopg.connect(service.dsn, autocommit=True) as connection:
        connection.execute("update taskledger_read_g1.tasks set status = 'completed'")
    with Running("verify", folder=tmp_path, env=clean(env)) as verify:
        assert verify.wait(START_SECONDS) == 1
    assert "status is completed, the log says queued" in verify.said()
    assert "the old tables were not what the log says" in finished("rebuild", folder=tmp_path, **env)
    assert finished("verify", folder=tmp_path, **env).endswith(": no difference")


def addresses(dsn: str, url: str) -> dict[str, str]:
    return {"TASKLEDGER__POSTGRES__DSN": dsn, "TASKLEDGER__REDIS__URL": url}
