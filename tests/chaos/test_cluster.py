"""The processes under test, as the harness keeps them: what it says of them is so."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import plants
from tests.chaos.cluster import Cluster
from tests.chaos.nursery import NURSERY
from tests.chaos.plants import PLANTS
from tests.support import wait_until

ONE_OF_EACH = {"command-api": 1, "query-api": 1, "dispatcher": 1, "projector": 1, "worker": 1}


@pytest.fixture
def cluster(tmp_path: Path, dsn: str, redis_url: str) -> Iterator[Cluster]:
    with Cluster(tmp_path, dsn=dsn, redis_url=redis_url, copies=ONE_OF_EACH) as cluster:
        yield cluster


def test_a_killed_process_is_replaced_at_its_address(cluster: Cluster) -> None:
    for name in cluster.names:
        url, killed = cluster.health_url(name), cluster.kill(name)
        assert killed is not None
        cluster.await_ready(name)
        assert (cluster.health_url(name), cluster.exit_codes[name]) == (url, [-signal.SIGKILL])
        assert cluster.pid(name) not in (killed, None)
    assert cluster.restarts == dict.fromkeys(cluster.names, 1)


def test_a_held_process_stays_away_until_it_is_released(cluster: Cluster) -> None:
    cluster.hold("worker-0")
    cluster.kill("worker-0")
    assert cluster.kill("worker-0") is None
    assert cluster.pid("worker-0") is None
    assert not cluster.ready("worker-0")
    cluster.release("worker-0")
    cluster.await_ready("worker-0")


def test_a_suspended_process_goes_on_as_the_same(cluster: Cluster) -> None:
    before = cluster.pid("command-api-0")
    assert cluster.suspend("command-api-0") == before
    assert not cluster.ready("command-api-0")
    cluster.resume("command-api-0")
    cluster.await_ready("command-api-0")
    assert cluster.pid("command-api-0") == before


def test_every_process_ends_in_order_when_it_is_asked_to(cluster: Cluster) -> None:
    for name in cluster.names:
        assert cluster.terminate(name, within=20) == 0, cluster.said(name)
        cluster.await_ready(name)


def test_processes_that_end_before_anybody_looks_are_told_all_the_same(tmp_path: Path) -> None:
    busy = threading.Event()

    def keep_the_interpreter_busy() -> None:
        while not busy.is_set():
            continue

    others = [threading.Thread(target=keep_the_interpreter_busy) for _ in range(3)]
    for other in others:
        other.start()
    try:
        for _ in range(10):
            out = tmp_path / "out"
            fork = NURSERY.fork(["no-command"], env=os.environ, cwd=tmp_path, out=out, err=out)
            assert fork.wait(30) == 2
    finally:
        busy.set()
        for other in others:
            other.join()


def test_a_process_that_refuses_to_run_is_told_at_once(tmp_path: Path, dsn: str, redis_url: str) -> None:
    env = {"TASKLEDGER__HANDLERS": '["tests.chaos.no_such_module"]'}
    cluster = Cluster(tmp_path, dsn=dsn, redis_url=redis_url, copies={"worker": 1}, env=env)
    with pytest.raises(RuntimeError, match="no_such_module"):
        cluster.start()
    cluster.stop()


STARTER = """
import json, sys, time
from pathlib import Path
from tests.chaos.cluster import Cluster
from tests.chaos.nursery import NURSERY
folder, dsn, redis_url = sys.argv[1:]
with Cluster(Path(folder), dsn=dsn, redis_url=redis_url, copies={"worker": 1, "projector": 1}) as cluster:
    cluster.suspend("projector-0")
    print(json.dumps([cluster.pid(name) for name in cluster.names]), flush=True)
    time.sleep(600)
"""


def test_nothing_outlives_a_harness_that_is_killed(tmp_path: Path, dsn: str, redis_url: str) -> None:
    argv = [sys.executable, "-c", STARTER, str(tmp_path), dsn, redis_url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        told = harness.stdout.readline()
        pids = [int(pid) for pid in told.strip("[]\n").split(",")]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        harness.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "their end")


@pytest.mark.parametrize("name", [name for name, plant in PLANTS.items() if plant.install is not None])
def test_a_planted_bug_finds_what_it_changes(tmp_path: Path, name: str) -> None:
    """The process gets as far as its settings, which are not there."""
    cluster = Cluster(tmp_path, dsn="", redis_url="", copies={}, plant=name)
    done = cluster.run(PLANTS[name].commands[0])
    assert "TASKLEDGER__POSTGRES__DSN is not set" in done.stderr


@pytest.mark.parametrize("name", [name for name, plant in PLANTS.items() if plant.spoil is not None])
def test_a_planted_bug_finds_the_function_it_edits(dsn: str, name: str) -> None:
    plants.spoil(name, dsn)
