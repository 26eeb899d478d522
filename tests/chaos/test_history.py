"""The recorder: nothing is asked for that is not on disk, and nothing that was answered gets lost."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.chaos.history import Recorder, read_history


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


@pytest.fixture
def recorder(path: Path) -> Iterator[Recorder]:
    recorder = Recorder(path)
    yield recorder
    recorder.close()


def test_an_operation_is_read_back_as_it_was(path: Path, recorder: Recorder) -> None:
    op = recorder.invoke("c1", "submit", key="k", value={"mark": "m", "kind": "mark"})
    other = recorder.invoke("s1", "read", task="t0", token="7.abcdefgh")
    recorder.ok(op, task="t1", token="8.abcdefgh", value={"replayed": False})
    recorder.fail(other, "404")

    asked, read, told, refused = read_history(path)
    assert [entry.i for entry in (asked, read, told, refused)] == [0, 1, 2, 3]
    assert (asked.p, asked.type, asked.f, asked.key) == ("c1", "invoke", "submit", "k")
    assert (told.op, told.p, told.f, told.key, told.task) == (op, "c1", "submit", "k", "t1")
    assert (read.token, refused.type, refused.value, refused.task) == ("7.abcdefgh", "fail", "404", "t0")
    assert asked.mono_ns <= read.mono_ns <= told.mono_ns


def test_an_invocation_is_on_disk_before_it_returns(
    path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []

    def fdatasync(descriptor: int) -> None:
        synced.append(path.read_bytes())
        os.fsync(descriptor)

    monkeypatch.setattr("tests.chaos.history.os.fdatasync", fdatasync)
    recorder.invoke("c1", "list")
    assert [line["f"] for line in map(orjson.loads, synced[-1].splitlines())] == ["list"]


def test_what_a_killed_recorder_wrote_is_there_and_its_torn_line_is_not(path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-P", "-c", _KILLED, str(path)],
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert killed.returncode == -signal.SIGKILL
    with path.open("ab") as file:
        file.write(b'{"i":2,"p":"c1","ty')

    assert [(entry.i, entry.type) for entry in read_history(path)] == [(0, "invoke"), (1, "ok")]


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.chaos.history import Recorder
recorder = Recorder(Path(sys.argv[1]))
recorder.ok(recorder.invoke("c1", "list"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"i":0}', b'{"surprise":1}'])
def test_a_line_that_makes_no_sense_is_named(path: Path, recorder: Recorder, line: bytes) -> None:
    recorder.invoke("c1", "list")
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError, match="line 2"):
        read_history(path)


def test_a_missing_line_is_noticed(path: Path, recorder: Recorder) -> None:
    for _ in range(3):
        recorder.invoke("c1", "list")
    first, _, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + last)
    with pytest.raises(ValueError, match="line 2 is entry 2"):
        read_history(path)


def test_an_operation_is_answered_once(recorder: Recorder) -> None:
    op = recorder.invoke("c1", "list")
    recorder.info(op, "timeout")
    for again in (op, 99):
        with pytest.raises(ValueError, match=f"operation {again}"):
            recorder.ok(again)


def test_a_history_is_never_written_over(path: Path, recorder: Recorder) -> None:
    recorder.invoke("c1", "list")
    with pytest.raises(FileExistsError):
        Recorder(path)


def test_threads_write_whole_lines_in_one_order(path: Path, recorder: Recorder) -> None:
    def client(name: str) -> None:
        for n in range(25):
            op = recorder.invoke(name, "submit", key=f"{name}-{n}", value={"mark": "x" * 500})
            recorder.ok(op, task=f"{name}-{n}")

    threads = [threading.Thread(target=client, args=(f"c{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    entries = read_history(path)
    assert [entry.i for entry in entries] == list(range(400))
    assert [entry.mono_ns for entry in entries] == sorted(entry.mono_ns for entry in entries)
    assert {entry.op for entry in entries} == set(range(200))
    asked = {entry.op: entry for entry in entries if entry.type == "invoke"}
    assert all(asked[entry.op].key == entry.task for entry in entries if entry.type == "ok")
