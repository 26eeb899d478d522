"""`taskledger up`: comes up, keeps everything running, goes away without a trace, refuses in one line."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskledger.embedded import EmbeddedPostgres
from tests.e2e.running import FREE_PORTS, Up, finished, get, ready, refused, shell, up
from tests.integration.test_embedded import processes_on
from tests.support import wait_until

pytestmark = [
    pytest.mark.xdist_group("up"),
    pytest.mark.timeout(180),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Up]:
    with up(folder) as process:
        yield process


def pasted(process: Up) -> str:
    """The curl line that `up` prints."""
    found = re.search(r"^  curl .*?\n\n", process.await_ready(), re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def pids(folder: Path, command: str) -> list[int]:
    """Of the running processes whose command line ends so."""
    return [
        pid
        for pid in processes_on(folder)
        if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").endswith(command.encode())
    ]


def test_the_line_that_it_prints_works_when_pasted(running: Up, folder: Path) -> None:
    answer = shell(pasted(running), folder=folder)
    assert '"status":"completed"' in answer
    assert '"result":{"sum":5}' in answer


def test_webhooks_are_signed_with_a_secret_of_its_own(running: Up, folder: Path) -> None:
    file = folder / ".taskledger/webhooks.secret"
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text()) >= 32
    assert len(pids(folder, "webhooks")) == 1
    url = running.urls[0]
    body = """-H 'Content-Type: application/json' -d '{"url": "https://127.0.0.1/"}'"""
    answer = shell(f"curl -sS {url}/webhooks {body}", folder=folder)
    assert "webhook_url_not_allowed" in answer
    assert file.read_text() not in running.said()


def test_the_documents_that_it_names_are_there(running: Up, folder: Path) -> None:
    for url in re.findall(r"\S+/docs", running.await_ready()):
        assert "<html" in shell(f"curl -sf {url}", folder=folder)


def test_a_second_one_on_the_same_data_is_refused(running: Up, folder: Path, tmp_path: Path) -> None:
    line = refused("up", folder=tmp_path, TASKLEDGER__DATA_DIR=str(folder / ".taskledger"), **FREE_PORTS)
    assert f"(pid {running.pid})" in line
    assert "TASKLEDGER__DATA_DIR" in line
    assert ready(*running.urls)


def test_the_other_commands_find_its_servers(running: Up, folder: Path, tmp_path: Path) -> None:
    env = {"TASKLEDGER__DATA_DIR": str(folder / ".taskledger")}
    shell(pasted(running), folder=folder)
    assert finished("rebuild", "--prune", folder=tmp_path, **env).endswith("dropped")
    assert finished("verify", folder=tmp_path, **env).endswith(": no difference")
    assert finished("migrate", folder=tmp_path, **env).startswith("the database is at revision")


def test_a_process_that_dies_is_started_again(running: Up, folder: Path) -> None:
    (before,) = pids(folder, "query-api")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: set(pids(folder, "query-api")) - {before}, "another query API")
    wait_until(lambda: ready(*running.urls), "it to be ready", within=30)
    assert "process ended" in running.events()


def test_a_server_that_dies_is_started_again(running: Up, folder: Path) -> None:
    server = int((folder / ".taskledger/postgres/postmaster.pid").read_text().split()[0])
    os.kill(server, signal.SIGQUIT)
    wait_until(lambda: "a server ended; starting it again" in running.events(), "the end to be noticed")
    wait_until(lambda: '"sum":5' in shell(pasted(running), folder=folder), "a task to complete", within=30)


def test_it_drains_and_comes_back_with_all_data_also_after_a_kill(tmp_path: Path) -> None:
    with up(tmp_path) as process:
        answer = shell(pasted(process), folder=tmp_path)
        task = re.findall(r'"id":"([^"]+)"', answer)[0]
        assert process.end(signal.SIGINT) == 0
        assert not processes_on(tmp_path)
        assert process.events()[-1] == "stopped"
    began = time.monotonic()
    with up(tmp_path) as process:
        print(f"second start: {time.monotonic() - began:.1f} s")
        assert get(f"{process.urls[1]}/tasks/{task}")["result"] == {"sum": 5}
        process.kill()
        process.wait(5)
        wait_until(lambda: not processes_on(tmp_path), "children and servers to follow", within=10)
    assert "PostgreSQL does not answer" in refused("verify", folder=tmp_path)
    with up(tmp_path) as process:
        assert get(f"{process.urls[1]}/tasks/{task}")["result"] == {"sum": 5}


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    with up(tmp_path) as process:
        location = shell(
            f"curl -sf -o /dev/null -w '%header{{location}}' {process.urls[0]}/tasks"
            """ -H 'Content-Type: application/json' -d '{"kind": "sleep", "payload": {"seconds": 300}}'""",
            folder=tmp_path,
        )
        wait_until(lambda: get(location)["status"] == "running", "the task to run")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "draining" in process.events(), "the worker to drain")
        began = time.monotonic()
        assert process.end(signal.SIGINT) == 0
        assert time.monotonic() - began < 5
        assert not processes_on(tmp_path)


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"TASKLEDGER__LEASE_SECONDS": "soon"}, "TASKLEDGER__LEASE_SECONDS"),
        ({"TASKLEDGER__WEBHOOKS__SECRET": "short"}, "TASKLEDGER__WEBHOOKS__SECRET"),
        ({"TASKLEDGER__LEASES": "1"}, "TASKLEDGER__LEASES: there is no such setting"),
        ({"TASKLEDGER__DATA_DIR": "/proc/nothing"}, "TASKLEDGER__DATA_DIR"),
        ({"TASKLEDGER__DATA_DIR": "/dev/null"}, "TASKLEDGER__DATA_DIR"),
        ({"TASKLEDGER__COMMAND_API__HOST": "192.0.2.1"}, "TASKLEDGER__COMMAND_API__HOST"),
        ({"TASKLEDGER__POSTGRES__DSN": "nonsense"}, "TASKLEDGER__POSTGRES__DSN"),
        ({"TASKLEDGER__REDIS__URL": "http://x", "TASKLEDGER__POSTGRES__DSN": "nonsense"}, "TASKLEDGER__"),
    ],
)
def test_a_wrong_setting_stops_it_in_one_line(env: dict[str, str], told: str, tmp_path: Path) -> None:
    assert told in refused("up", folder=tmp_path, **FREE_PORTS | env)


@pytest.mark.parametrize("api", ["COMMAND_API", "QUERY_API"])
def test_a_port_that_is_taken_is_named_before_anything_starts(api: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("up", folder=tmp_path, **{f"TASKLEDGER__{api}__PORT": str(port)})
    assert line.startswith(f"cannot listen on 127.0.0.1:{port}")
    assert f"TASKLEDGER__{api}__PORT" in line
    assert not (tmp_path / ".taskledger/postgres").exists()


def test_one_port_for_both_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    both = {"TASKLEDGER__COMMAND_API__PORT": port, "TASKLEDGER__QUERY_API__PORT": port}
    assert "TASKLEDGER__QUERY_API__PORT" in refused("up", folder=tmp_path, **both)


def test_a_data_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    letter = tmp_path / ".taskledger/postgres/letter.txt"
    letter.parent.mkdir(parents=True)
    letter.write_text("dear")
    assert "TASKLEDGER__DATA_DIR" in refused("up", folder=tmp_path, **FREE_PORTS)
    assert letter.read_text() == "dear"


def test_a_half_initialised_folder_is_begun_again(tmp_path: Path) -> None:
    """What an initdb that was killed leaves; the line is about something that comes later."""
    (tmp_path / ".taskledger/postgres.new-half").mkdir(parents=True)
    line = refused("up", folder=tmp_path, TASKLEDGER__HANDLERS='["no_such_module"]', **FREE_PORTS)
    assert "no_such_module" in line
    assert not list(tmp_path.glob(".taskledger/postgres.new-*"))
    server = EmbeddedPostgres(tmp_path / ".taskledger")
    try:
        server.start()
    finally:
        server.stop()
