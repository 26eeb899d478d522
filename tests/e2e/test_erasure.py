"""An erased subject's text is nowhere in what a service leaves on the disk, and was not there before."""

import base64
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import httpx
import psycopg
import pytest
from dotenv import dotenv_values
from redis import Redis

from taskledger.addresses import POSTGRES, REDIS
from tests.e2e.running import Up, finished, refused, up
from tests.support import wait_until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.xdist_group("up"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc"),
]

ANN: Final = "canary-of-ann-5d2f"
BOB: Final = "canary-of-bob-91c0"
HANDLERS: Final = """
from typing import Any
from taskledger import Discard, TaskContext, task

@task("repeat")
def repeat(payload: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
    ctx.progress(0.5, f"at {payload['text']}")
    return {"again": payload["text"] * 3}

@task("refuse", max_attempts=1, execution="process")
def refuse(payload: dict[str, Any]) -> None:
    raise ValueError(f"no {payload['text']}")
"""


class Disk:
    """What lies in the folder of a running `up`: data, logs, and what the processes said."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = dotenv_values(folder / ".taskledger/up.env", interpolate=False)
        self.dsn, self._redis = str(found[POSTGRES]), str(found[REDIS])

    def flush(self) -> None:
        """What is only in memory goes to the files, as it would sooner or later."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("checkpoint")
        with Redis.from_url(self._redis) as redis:
            redis.save()

    def holding(self, *pieces: bytes) -> list[str]:
        """The files in which one of the pieces stands."""
        pattern = re.compile(b"|".join(map(re.escape, pieces)))
        files = [path for path in self._folder.rglob("*") if path.is_file() and not path.is_symlink()]
        assert any("pg_wal" in path.parts for path in files)
        assert any(path.name.startswith("dump") for path in files)
        return sorted(
            str(path.relative_to(self._folder))
            for path in files
            if path.name != "canaries.py" and pattern.search(_content(path))
        )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # a server's, gone by now
        return b""


def written(text: str) -> list[bytes]:
    """The text as it may stand in a file: itself, in hex, or in base64 at each of its three offsets."""
    data = text.encode()
    coded = [base64.b64encode(b"\0" * n + data)[4 if n else 0 : -4] for n in range(3)]
    return [data, data.hex().encode(), *coded]


def pieces(wrapped: bytes) -> list[bytes]:
    """In the write-ahead log a page's head may stand in the middle of it."""
    return [wrapped[at : at + 20] for at in range(0, len(wrapped) - 19, 20)]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "canary_handlers.py").write_text(HANDLERS)
    finished("keys", "new", "master.key", folder=tmp_path)
    assert (tmp_path / "master.key").stat().st_mode & 0o777 == 0o600
    return {
        "TASKLEDGER__HANDLERS": '["canary_handlers"]',
        "TASKLEDGER__EXTERNAL_KINDS": '{"greet": {"queue": "front"}}',
        "TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE": "master.key",
    }


@pytest.fixture
def running(tmp_path: Path, settings: dict[str, str]) -> Iterator[Up]:
    with up(tmp_path, **settings) as process:
        yield process


@pytest.fixture
def client(running: Up) -> Iterator["Client"]:
    with Client(running) as client:
        yield client


class Client:
    def __init__(self, process: Up) -> None:
        self._command, self._query = process.urls
        self._http = httpx.Client(trust_env=False, timeout=70)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """Again while a loaded machine does not keep up: each of the test's requests may be repeated."""

        def answered() -> httpx.Response | None:
            answer = self._http.post(self._command + path, json=body, headers=headers)
            return None if answer.status_code == 503 else answer

        answer: httpx.Response = wait_until(answered, f"an answer to {path}", within=60)
        return answer.raise_for_status().json()

    def get(self, path: str, **parameters: Any) -> Any:
        return self._http.get(self._query + path, params=parameters).raise_for_status().json()

    def about(self, subject: str, text: str) -> list[str]:
        """Tasks that hold the text wherever a task can, settled."""
        ids = [
            self.post(
                "/tasks",
                {"kind": kind, "payload": {"text": text}, "subject": subject},
                **{"Idempotency-Key": f"{subject}-{n}"},
            )["id"]
            for n, kind in enumerate(("repeat", "refuse", "greet", "greet"))
            for _ in range(2)  # the second is the first again
        ][::2]
        *_, held, cancelled = ids
        claimed = self.post("/queues/front/claim", {"worker": "w", "limit": 5, "wait_seconds": 10})
        assert {task["payload"]["text"] for task in claimed["tasks"]} == {text}
        for id_ in (held, cancelled):
            wait_until(partial(self._runs, id_))
            self.post(f"/tasks/{id_}/heartbeat", {"attempt": 1, "progress": 0.5, "note": text})
        error = {"type": "Refused", "message": text, "traceback": text}
        self.post(f"/tasks/{held}/fail", {"attempt": 1, "error": error, "retryable": False})
        self.post(f"/tasks/{cancelled}/cancel", {"reason": text})
        self.post(f"/tasks/{cancelled}/fail", {"attempt": 1, "error": error})
        for id_ in ids:
            self.get(f"/tasks/{id_}", wait_seconds=60)
        return ids

    def _runs(self, id_: str) -> bool:
        return bool(self.get(f"/tasks/{id_}")["status"] == "running")

    def tasks(self, ids: list[str]) -> list[Any]:
        return [self.get(f"/tasks/{id_}") for id_ in ids]


def test_an_erased_subjects_text_is_found_nowhere(
    running: Up, client: Client, tmp_path: Path, settings: dict[str, str]
) -> None:
    disk = Disk(tmp_path)
    ann, bob = client.about("Ann", ANN), client.about("Bob", BOB)
    before = client.tasks(bob)
    shown = str(client.tasks(ann))
    assert shown.count(ANN) == 11  # four payloads, three in a result, two in each of two errors
    assert finished("rebuild", folder=tmp_path, **settings).startswith("the old tables and the new ones")
    later = client.post(
        "/tasks", {"kind": "repeat", "payload": {"text": ANN}, "subject": "Ann", "delay_seconds": 3600}
    )
    client.get(f"/tasks/{later['id']}", min_position=later["position"])

    # Not even now: nothing on the disk can be read without the master key.
    disk.flush()
    assert disk.holding(*written(ANN), *written(BOB), b"subject-Ann") == []
    keys = {name: _wrapped(disk.dsn, client, ids[0]) for name, ids in (("Ann", ann), ("Bob", bob))}
    assert len(disk.holding(*pieces(keys["Ann"]))) >= 2  # the table and the write-ahead log
    stats = client.get("/stats")

    said = finished("erase", "--subject", "Ann", "--reason", "request 4711", folder=tmp_path, **settings)
    assert said.splitlines()[1:] == [
        "no file of the database holds it any more, not in its wrapped form either"
    ]
    wait_until(lambda: client.get(f"/tasks/{ann[0]}")["erased_at"])
    for task in client.tasks(ann):
        assert (task["payload"], task["result"], task["error"]) == (None, None, None)
        assert task["erased_at"] is not None
    assert client.tasks(bob) == before
    after = client.get("/stats")
    assert (after["by_kind"], after["total"]) == (stats["by_kind"], stats["total"])

    disk.flush()
    assert disk.holding(*written(ANN), *written(BOB)) == []
    assert disk.holding(*pieces(keys["Ann"])) == []
    assert disk.holding(*pieces(keys["Bob"])) != []

    assert finished("verify", folder=tmp_path, **settings).endswith(": no difference")
    assert finished("rebuild", folder=tmp_path, **settings).startswith(
        "the old tables and the new ones were equal"
    )
    assert client.tasks(bob) == before
    client.post(f"/tasks/{later['id']}/cancel", {})

    assert running.end() == 0
    assert disk.holding(*written(ANN), *written(BOB), *pieces(keys["Ann"])) == []


def _wrapped(dsn: str, client: Client, task: str) -> bytes:
    """The key of a task as the database holds it."""
    query = """
        select k.wrapped from taskledger.data_keys k join taskledger.task_events e
        on convert_from(e.state, 'UTF8') like
            '%%"sealed":"' || left(encode('\\x0100' || uuid_send(k.id), 'base64'), 24) || '%%'
        where e.originator_id = %s and e.topic = 'TaskCreated'
    """
    with psycopg.connect(dsn) as connection:
        ((wrapped,),) = connection.execute(query, (task,)).fetchall()
    return bytes(wrapped)


@pytest.fixture
def elsewhere(tmp_path: Path, settings: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """A folder of its own for other commands, and settings that lead back to what runs."""
    folder = tmp_path / "other"
    folder.mkdir()
    finished("keys", "new", "other.key", folder=folder)
    return folder, settings | {
        "TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE": str(tmp_path / "master.key"),
        "TASKLEDGER__DATA_DIR": str(tmp_path / ".taskledger"),
        "TASKLEDGER__HANDLERS": "[]",
    }


NOT_OURS: Final = "TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE: not the master key of this database"


def test_another_master_key_stops_each_process_with_one_line(
    client: Client, elsewhere: tuple[Path, dict[str, str]]
) -> None:
    client.post("/tasks", {"kind": "repeat", "payload": {"text": "x"}})
    folder, env = elsewhere
    assert "other.key: File exists" in refused("keys", "new", "other.key", folder=folder)
    other = env | {"TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE": "other.key"}
    for process in ("command-api", "query-api", "worker"):
        assert refused(process, folder=folder, **other) == NOT_OURS, process


def test_a_master_key_is_replaced_and_the_old_one_is_good_for_nothing_then(
    client: Client, elsewhere: tuple[Path, dict[str, str]]
) -> None:
    client.post("/tasks", {"kind": "repeat", "payload": {"text": "x"}, "subject": "Ann"})
    folder, old = elsewhere
    new = old | {"TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE": "other.key"}
    previous = old["TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE"]
    both = new | {"TASKLEDGER__ENCRYPTION__PREVIOUS_MASTER_KEY_FILE": previous}
    assert finished("keys", "rewrap", folder=folder, **both).splitlines() == [
        "2 keys wrapped anew; the previous master key is needed no longer",
        "no file of the database holds it any more, not in its wrapped form either",
    ]
    assert refused("query-api", folder=folder, **old) == NOT_OURS
    erased = finished("erase", "--subject", "Ann", "--reason", "request 4712", folder=folder, **new)
    assert erased.startswith("erased: 1 key")
    assert finished("keys", "scrub", folder=folder, **new).startswith("no file of the database")
