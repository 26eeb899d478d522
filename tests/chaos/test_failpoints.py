"""A process dies at each border that matters: its tasks are done once, and nothing is lost."""

from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from projector.verify import inspect as inspect_tables
from tests.chaos import collect, model
from tests.chaos.cluster import Cluster
from tests.chaos.failpoints import FAILPOINTS, resolve
from tests.support import wait_until

pytestmark = [pytest.mark.xdist_group("failpoints"), pytest.mark.timeout(120)]

COPIES: Final = {"command-api": 1, "query-api": 1, "dispatcher": 2, "projector": 2, "worker": 2}
WORK: Final[tuple[dict[str, Any], ...]] = (
    {"kind": "mark"},
    {"kind": "slow", "payload": {"seconds": 0.1}},
    {"kind": "flaky", "payload": {"failures": 1}},
    {"kind": "mark", "delay_seconds": 0.2},
    {"kind": "cpu", "payload": {"seconds": 0.05}},
)


@pytest.fixture(scope="module")
def cluster(
    postgres_server: str, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    name = f"failpoints_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    with Cluster(
        tmp_path_factory.mktemp("failpoints"),
        dsn=make_conninfo(postgres_server, dbname=name),
        redis_url=valkey_server,
        copies=COPIES,
        lease_seconds=1.0,
    ) as cluster:
        yield cluster


class Round:
    """Tasks of one test. Each is asked for until it is acknowledged, with a key of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.tasks: dict[str, str] = {}
        """Mark -> task, as acknowledged."""

    def submit(self, body: dict[str, Any]) -> None:
        mark = uuid4().hex
        sent = {**body, "payload": {**body.get("payload", {}), "mark": mark}}
        answer = self.insist("/tasks", sent, {"Idempotency-Key": mark})
        self.tasks[mark] = str(answer.json()["id"])

    def insist(self, path: str, body: object, headers: dict[str, str] | None = None) -> httpx.Response:
        def ask() -> httpx.Response | None:
            url = f"{self._cluster.command_urls[0]}{path}"
            try:
                answer = httpx.post(url, json=body, headers=headers, timeout=8, trust_env=False)
            except httpx.TransportError:
                return None
            return answer if answer.is_success else None

        answer: httpx.Response = wait_until(ask, f"an answer to {path}", within=30)
        return answer

    def claim_and_complete(self) -> None:
        """As a worker of another language, until there is nothing left of this round."""
        body = {"worker": "outside", "limit": 5, "wait_seconds": 0.5, "lease_seconds": 1}
        while any(self.status(task) != "completed" for task in self.tasks.values()):
            for task in self.insist("/queues/outside/claim", body).json()["tasks"]:
                done = {"attempt": task["attempt"], "result": None}
                self.insist(f"/tasks/{task['id']}/complete", done)

    def status(self, task: str) -> str:
        log, _ = collect.read_log(self._cluster.dsn)
        return model.fold(event for event in log if event.task == task)[task].versions[-1].status

    def await_end(self) -> None:
        """Every task completed once, as the only one of its mark, by a history without a flaw."""
        wanted = set(self.tasks.values())

        def settled() -> dict[str, model.TaskHistory] | None:
            log, _ = collect.read_log(self._cluster.dsn)
            tasks = model.fold(event for event in log if event.mark in self.tasks or event.task in wanted)
            flaws = {task: history.flaw for task, history in tasks.items() if history.flaw is not None}
            if flaws:
                pytest.fail(f"{flaws}")
            done = all(history.versions[-1].status == "completed" for history in tasks.values())
            return tasks if tasks.keys() >= wanted and done else None

        assert wait_until(settled, "every task to be completed", within=30).keys() == wanted


@pytest.mark.parametrize("name", FAILPOINTS)
def test_a_failpoint_names_what_exists(name: str) -> None:
    holder, attribute = resolve(FAILPOINTS[name].target)
    assert callable(getattr(holder, attribute))


def cross(name: str, cluster: Cluster, tasks: Round) -> None:
    """Has a process pass the border, where the tasks alone do not."""
    command = FAILPOINTS[name].commands[0]
    if command == "rebuild":
        rebuild(cluster)
    elif name.startswith("shutdown-"):
        shut_down(cluster, name, command)
    elif name == "api-after-claim-before-lease":
        tasks.submit({"kind": "outside", "queue": "outside"})
        tasks.claim_and_complete()


def rebuild(cluster: Cluster) -> None:
    assert cluster.run("rebuild").returncode == -9
    done = cluster.run("rebuild", "--prune")
    assert done.returncode == 0, done.stderr


def shut_down(cluster: Cluster, failpoint: str, command: str) -> None:
    """Of several, whichever has a connection to close or a batch to end."""
    for name in [name for name in cluster.names if name.startswith(command)]:
        if not cluster.failpoints.fired(failpoint):
            cluster.terminate(name, within=20)


@pytest.mark.faults
@pytest.mark.parametrize("name", FAILPOINTS)
def test_a_process_killed_at_a_border_loses_nothing(cluster: Cluster, name: str) -> None:
    tasks = Round(cluster)
    for body in WORK[:2]:
        tasks.submit(body)
    cluster.failpoints.arm(name)
    for body in WORK:
        tasks.submit(body)
    cross(name, cluster, tasks)
    wait_until(lambda: cluster.failpoints.fired(name), f"{name} to fire", within=20)
    tasks.await_end()
    for member in cluster.names:
        cluster.await_ready(member)
    await_no_difference(cluster)


def await_no_difference(cluster: Cluster) -> None:
    _, positions = collect.read_log(cluster.dsn)

    def projected() -> bool:
        return inspect_tables(cluster.dsn).checkpoint >= positions[-1]

    wait_until(projected, "the projection to reach the log's head", within=20)
    assert inspect_tables(cluster.dsn).differences == []


def test_a_frozen_process_goes_on_where_it_stood(cluster: Cluster) -> None:
    name = "projector-after-view-before-commit"
    tasks = Round(cluster)
    cluster.failpoints.arm(name, "stop")
    for body in WORK:
        tasks.submit(body)
    wait_until(lambda: cluster.failpoints.fired(name), f"{name} to fire", within=20)
    tasks.await_end()
    for member in cluster.names:
        cluster.resume(member)
    await_no_difference(cluster)
