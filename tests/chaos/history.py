"""What clients did and were told, as JSON lines: an entry when an operation begins, one when it ends.

`ok` is a 2xx. `fail` is a definite refusal: nothing happened. `info` is a timeout, a reset or a 5xx: it may
have happened. An operation without an answer counts as info: its client died first.

| operation                | invoked with                  | answered with                               |
|--------------------------|-------------------------------|---------------------------------------------|
| submit                   | key, {mark, kind}             | task, token, {replayed}                     |
| batch                    | key, {marks}                  | token, {tasks}: ids, in the order of marks  |
| claim                    | {worker}                      | {tasks: [{id, attempt}]}                    |
| complete, fail           | task, {attempt}               | token, {status, version, attempt}           |
| cancel, requeue, discard | task                          | token, {status, version, attempt}           |
| read                     | task, token (min_position)    | {status, version, attempt, position}        |
| list                     |                               | {ids}                                       |

A mark names an intended task and travels in its payload. A retry is an operation of its own with the same
mark and key. `p` is the client; for reads it is the session, whose views may never go back.
"""

import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import orjson

Kind = Literal["invoke", "ok", "fail", "info"]
KINDS: Final = ("invoke", "ok", "fail", "info")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `i` is its place in the file, `op` ties the answer to its invocation."""

    i: int
    p: str
    type: Kind
    f: str
    op: int
    task: str | None
    key: str | None
    value: Any
    token: str | None
    mono_ns: int


class Recorder:
    """Writes a new history. Its methods may be called from any thread; an answer's order in the file is the
    order in which clients learnt of it, so that `A answered before B invoked` can be read off `i`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._lock = threading.Lock()
        self._open: dict[int, Entry] = {}
        self._entries = 0
        self._ops = 0

    def invoke(
        self,
        p: str,
        f: str,
        *,
        task: str | None = None,
        key: str | None = None,
        value: Any = None,
        token: str | None = None,
    ) -> int:
        """The operation's number. The entry is on disk when this returns; the request is sent then, as
        a killed harness must not leave effects that nobody is known to have asked for."""
        with self._lock:
            op = self._ops
            self._ops += 1
            self._open[op] = self._write(p, "invoke", f, op, task=task, key=key, value=value, token=token)
            descriptor = self._file.fileno()
        os.fdatasync(descriptor)
        return op

    def ok(self, op: int, *, task: str | None = None, value: Any = None, token: str | None = None) -> None:
        self._answer("ok", op, task=task, value=value, token=token)

    def fail(self, op: int, code: str) -> None:
        """A definite refusal (4xx): nothing happened."""
        self._answer("fail", op, value=code)

    def info(self, op: int, why: str) -> None:
        """Timeout, reset, 5xx: it may have happened."""
        self._answer("info", op, value=why)

    def close(self) -> None:
        """Operations still open stay unanswered."""
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()

    def _answer(
        self, kind: Kind, op: int, *, task: str | None = None, value: Any = None, token: str | None = None
    ) -> None:
        with self._lock:
            asked = self._open.pop(op, None)
            if asked is None:
                raise ValueError(f"operation {op} was never invoked, or is answered already")
            self._write(
                asked.p, kind, asked.f, op, task=task or asked.task, key=asked.key, value=value, token=token
            )

    def _write(
        self,
        p: str,
        kind: Kind,
        f: str,
        op: int,
        *,
        task: str | None,
        key: str | None,
        value: Any,
        token: str | None,
    ) -> Entry:
        entry = Entry(self._entries, p, kind, f, op, task, key, value, token, time.monotonic_ns())
        self._file.write(orjson.dumps(asdict(entry), option=orjson.OPT_APPEND_NEWLINE))
        self._entries += 1
        return entry


def read_history(path: Path) -> list[Entry]:
    """The entries in order. A torn last line is left out: its recorder was killed while it wrote, so the
    request was never sent. Anything else that cannot be read raises ValueError with its line."""
    lines = path.read_bytes().split(b"\n")
    # What follows the last line break was not written to its end; after a clean end it is empty.
    return [_entry(line, number) for number, line in enumerate(lines[:-1])]


def _entry(line: bytes, number: int) -> Entry:
    try:
        entry = Entry(**orjson.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(f"line {number + 1} is no entry: {error}") from error
    if entry.i != number or entry.type not in KINDS:
        raise ValueError(f"line {number + 1} is entry {entry.i} of type {entry.type}")
    return entry
