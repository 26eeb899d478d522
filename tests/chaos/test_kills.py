"""Every kind of process is killed and Redis is emptied, while clients submit: nothing is lost."""

import os
import random
import signal
import threading
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from taskledger.addresses import with_running_up
from taskledger.settings import Settings
from tests.e2e.running import Up, finished, get, ready, up
from tests.integration.test_embedded import processes_on
from tests.support import wait_until

pytestmark = [
    pytest.mark.xdist_group("chaos"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc"),
]

PROCESSES = ("command-api", "query-api", "dispatcher", "projector", "worker")
FAULTS = (*PROCESSES, "worker", "dispatcher", "FLUSHALL", "FLUSHALL")
BETWEEN = 25
"""Tasks that are acknowledged between one fault and the next: the system is at work again."""
BODIES = (
    {"kind": "sum", "payload": {"x": 1, "y": 2}},
    {"kind": "sleep", "payload": {"seconds": 0.3}},
    {"kind": "flaky", "payload": {"failures": 1}},
)


class Client(threading.Thread):
    """Submits one task after the other, each until it is acknowledged, with a key of its own."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._random = random.Random(seed)
        self.stop = threading.Event()
        self.acknowledged: list[str] = []
        self.repeated = 0

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=10) as client:
            while not self.stop.is_set():
                body, key = self._random.choice(BODIES), uuid4().hex
                while (task_id := self._submit(client, body, key)) is None:
                    self.repeated += 1
                self.acknowledged.append(task_id)

    def _submit(self, client: httpx.Client, body: object, key: str) -> str | None:
        try:
            answer = client.post(f"{self._url}/tasks", json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            self.stop.wait(0.02)  # the outcome is unknown: the same key finds out
            return None
        if answer.status_code == 503:
            return None
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


def pid_of(folder: Path, command: str) -> int | None:
    for pid in processes_on(folder):
        if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").endswith(command.encode()):
            return pid
    return None


def strike(fault: str, folder: Path) -> None:
    """The fault has happened when this returns."""
    if fault == "FLUSHALL":
        url = with_running_up(Settings(data_dir=folder / ".taskledger")).require_redis()
        with Redis.from_url(url) as redis:
            redis.flushall()
        return
    pid = wait_until(lambda: pid_of(folder, fault), f"a {fault} to kill")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid_of(folder, fault) != pid, f"the end of the {fault}")


def await_more(clients: list[Client]) -> None:
    def count() -> int:
        return sum(len(client.acknowledged) for client in clients)

    before = count()
    wait_until(lambda: count() > before + BETWEEN, "tasks to be acknowledged", within=30)


def settled(url: str) -> bool:
    stats = get(f"{url}/stats")
    waiting = ("scheduled", "queued", "running", "retrying")
    return stats["lag"] == 0 and not any(stats["by_status"][status] for status in waiting)


@pytest.mark.parametrize("seed", [1])
def test_no_acknowledged_task_is_lost_and_none_is_made_twice(tmp_path: Path, seed: int) -> None:
    faults = list(FAULTS)
    random.Random(seed).shuffle(faults)
    with up(tmp_path) as process:
        command_url, query_url = process.urls
        clients = [Client(command_url, seed + n) for n in range(3)]
        for client in clients:
            client.start()
        for fault in faults:
            await_more(clients)
            strike(fault, tmp_path)
        await_more(clients)
        finish(process, clients, query_url)
        env = {"TASKLEDGER__DATA_DIR": str(tmp_path / ".taskledger")}
        folder = tmp_path / "verify"
        folder.mkdir()
        assert finished("verify", folder=folder, **env).endswith(": no difference")


def finish(process: Up, clients: list[Client], query_url: str) -> None:
    for client in clients:
        client.stop.set()
    for client in clients:
        client.join(30)
        assert not client.is_alive()
    assert process.poll() is None
    acknowledged = [task_id for client in clients for task_id in client.acknowledged]
    assert len(set(acknowledged)) == len(acknowledged)
    wait_until(lambda: ready(*process.urls), "both APIs to be back", within=30)
    wait_until(lambda: settled(query_url), "every task to settle", within=60)
    stats = get(f"{query_url}/stats")
    # A key that was sent again made no second task: there are as many as were acknowledged.
    assert stats["by_status"]["completed"] == stats["total"] == len(acknowledged)
    for task_id in acknowledged:
        assert get(f"{query_url}/tasks/{task_id}")["status"] == "completed"
