"""Every process by itself, as docker-compose.yml starts them, against servers that were there before: two of
each at once, `migrate` first, and the examples of README.md."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
import yaml

from taskledger.health import ask
from tests.e2e import examples
from tests.e2e.debian import free_port, system_servers
from tests.e2e.running import START_SECONDS, Running, finished, get, refused, shell
from tests.support import wait_until

pytestmark = pytest.mark.timeout(240)

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())
COMMANDS = [s["command"] for name, s in COMPOSE["services"].items() if name not in {"postgres", "redis"}]
EACH = 2


class Process(Running):
    """One process on ports of its own."""

    def __init__(self, name: str, folder: Path, env: Mapping[str, str]) -> None:
        self.port = free_port()
        setting = {"command-api": "COMMAND_API", "query-api": "QUERY_API"}.get(name, "HEALTH")
        self.name = name
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir()
        super().__init__(name, folder=folder, env={**env, f"TASKLEDGER__{setting}__PORT": str(self.port)})

    def health(self, what: str) -> str | None:
        assert self.poll() is None, self.said()
        return ask(f"{self.url}/health/{what}")


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
        stack.callback(lambda: [p.kill() for p in everyone])
        for process in everyone:
            wait_until(
                lambda p=process: p.health("ready") is None,
                f"{process.name} to be ready",
                within=START_SECONDS,
            )
        yield started
        for process in everyone:
            process.terminate()
        assert {f"{p.name}: {p.wait(30)}" for p in everyone} == {f"{name}: 0" for name in names}


def run_the_examples(dsn: str, url: str, folder: Path) -> None:
    env = {
        "TASKLEDGER__POSTGRES__DSN": dsn,
        "TASKLEDGER__REDIS__URL": url,
        "TASKLEDGER__LEASE_SECONDS": "2",
    }
    assert finished("migrate", folder=folder, **env).startswith("the database is at revision")
    with processes(folder, env) as started:
        commands, queries = started["command-api"], started["query-api"]
        script = examples.one_script(commands[0].url, queries[0].url)
        examples.check(shell(script, folder=folder, within=150))
        create = f"curl -sf -w '%header{{location}}' -o /dev/null {commands[1].url}/tasks"
        body = """-H 'Content-Type: application/json' -d '{"kind": "sum", "payload": {"x": 1, "y": 1}}'"""
        location = shell(f"{create} {body}", folder=folder).replace(queries[0].url, queries[1].url)
        assert get(f"{location}&wait_seconds=30")["result"] == {"sum": 2}
        for process in (*started["worker"], *started["dispatcher"], *started["projector"]):
            assert process.health("live") is None
    assert finished("rebuild", folder=folder, **env)
    assert finished("verify", folder=folder, **env).endswith(": no difference")


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
    line = refused(
        command,
        folder=tmp_path,
        TASKLEDGER__POSTGRES__DSN=dsn,
        TASKLEDGER__REDIS__URL=redis_url,
        TASKLEDGER__HANDLERS='["no_such_module"]',
    )
    assert "no_such_module" in line


def test_handlers_of_ones_own_are_found_in_the_working_folder(
    dsn: str, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from taskledger import task\n\n@task('double')\ndef double(payload: int) -> int:\n    return 2 * payload\n"
    )
    (tmp_path / "events.py").write_text("raise RuntimeError('a user may have a module of any name')\n")
    (tmp_path / "run").mkdir()
    port = free_port()
    env = {
        "TASKLEDGER__POSTGRES__DSN": dsn,
        "TASKLEDGER__REDIS__URL": redis_url,
        "TASKLEDGER__HANDLERS": '["mine"]',
        "TASKLEDGER__QUERY_API__PORT": str(port),
    }
    with Running("query-api", folder=tmp_path, env=env) as process:
        try:
            wait_until(
                lambda: ask(f"http://127.0.0.1:{port}") is None, "it to be ready", within=START_SECONDS
            )
            assert [k["kind"] for k in get(f"http://127.0.0.1:{port}/kinds")["kinds"]] == ["double"]
            assert process.end() == 0
        finally:
            process.kill()


def test_a_row_falsified_by_hand_is_found_by_verify_and_put_right_by_rebuild(
    dsn: str, redis_url: str, tmp_path: Path
) -> None:
    env = {"TASKLEDGER__POSTGRES__DSN": dsn, "TASKLEDGER__REDIS__URL": redis_url}
    assert psycopg.connect(dsn).close() is None
    with Running("projector", folder=tmp_path, env=env) as projector:
        wait_until(
            lambda: "following the log" in projector.events(), "the read tables", within=START_SECONDS
        )
        projector.end()
    assert finished("verify", folder=tmp_path, **env).endswith(": no difference")
