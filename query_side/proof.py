"""What the tree over the log proves: that a task's events are in it, that it only ever grew.

Leaves and whole tiles never change, and a longer tile begins as the shorter one did: so a head, the events
below it and the tiles can be read one after another and still belong together.
"""

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import psycopg

from events.append import RecordedEvent
from events.errors import SchemaNotReady
from events.heads import Note
from events.ids import DEFAULT_TENANT
from events.leaf import leaf_of
from events.merkle import (
    Span,
    TileId,
    consistency_path,
    inclusion_path,
    leaf_hash,
    root_of,
    tiles_needed,
)
from events.position import PositionToken
from query_side.errors import InvalidQuery, NotSealedYet, TaskNotFound
from query_side.read_model import ReadModel, Row, statement
from query_side.shapes import Json, recorded

WAIT_SECONDS: Final = 3.0
"""For the sealer to come to an event: it seals once a second."""
_POLL_SECONDS: Final = 0.2


class Proofs:
    """Hands out what the sealer has stored; checks nothing, which is for who is given it."""

    def __init__(self, model: ReadModel, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._model = model
        self._wait_seconds = wait_seconds

    async def head(self) -> Json:
        """The newest one. Raises NotSealedYet before there is any."""
        return _head_json(await self._head(reaching=0))

    async def of_task(self, task_id: UUID) -> Json:
        """All of the task's events, each with its path to one head. Raises TaskNotFound, and NotSealedYet
        where the sealer does not come to the last of them in time."""
        parameters = {"id": task_id, "tenant": DEFAULT_TENANT}
        rows = [row for row in await self._read("stream", parameters) if row["present"]]
        if not rows or rows[0]["topic"] != "TaskCreated":  # another aggregate's id is no task's
            raise TaskNotFound
        events = [recorded(row) for row in rows]
        note = await self._head(reaching=max(event.id for event in events))
        paths = [inclusion_path(event.id - 1, note.head.size) for event in events]
        tiles = await self._tiles([span for path in paths for span in path])
        # Each event takes some 20 hashes, and most of those are made of others: not on the loop.
        shown = await asyncio.to_thread(_proved, events, paths, tiles)
        return {"task_id": task_id, "head": _head_json(note), "events": shown}

    async def consistency(self, old: int) -> Json:
        """That the newest head's tree begins with the first `old` events as they were. Raises InvalidQuery
        where it does not have as many, NotSealedYet before there is any."""
        note = await self._head(reaching=0)
        if old > note.head.size:
            raise InvalidQuery("from", f"Input should be at most the newest head's size, {note.head.size}")
        path = consistency_path(old, note.head.size)
        nodes = _roots(path, await self._tiles(path))
        return {"from": old, "head": _head_json(note), "path": nodes}

    async def _head(self, *, reaching: int) -> Note:
        deadline = time.monotonic() + self._wait_seconds
        while True:
            (row,) = await self._read("head", {})
            note = None if row["note"] is None else Note.parse(row["note"])
            if note is not None and note.head.size >= reaching:
                return note
            if not reaching or time.monotonic() > deadline:
                raise NotSealedYet(reaching)
            await asyncio.sleep(_POLL_SECONDS)

    async def _tiles(self, spans: Sequence[Span]) -> dict[TileId, bytes]:
        needed = sorted(tiles_needed(spans))
        parameters = {"levels": [t.level for t in needed], "numbers": [t.number for t in needed]}
        rows = await self._read("tiles", parameters)
        return {TileId(row["level"], row["number"]): bytes(row["hashes"]) for row in rows}

    async def _read(self, name: str, parameters: dict[str, Any]) -> list[Row]:
        try:
            return await self._model.read(statement(name), parameters)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise SchemaNotReady("the database has not been migrated: run `taskledger migrate`") from error


def _proved(
    events: Sequence[RecordedEvent], paths: Sequence[Sequence[Span]], tiles: dict[TileId, bytes]
) -> list[Json]:
    return [
        {
            # As it is hashed: a number, and the state as text or bytes.
            "position": event.id,
            "originator_id": event.originator_id,
            "version": event.originator_version,
            "topic": event.topic,
            "recorded_at": event.recorded_at,
            "tenant": event.tenant,
            "kind": event.kind,
            "queue": event.queue,
            **_state(bytes(event.state)),
            "leaf_hash": _text(leaf_hash(leaf_of(event))),
            "path": _roots(path, tiles),
        }
        for event, path in zip(events, paths, strict=True)
    ]


def _roots(path: Sequence[Span], tiles: dict[TileId, bytes]) -> list[str]:
    return [_text(root_of(span, tiles)) for span in path]


def _state(state: bytes) -> Json:
    try:
        return {"state": state.decode()}
    except UnicodeDecodeError:
        return {"state_base64": _text(state)}


def _head_json(note: Note) -> Json:
    head = note.head
    return {
        "log": head.tag,
        "size": head.size,
        "position": str(PositionToken(head.size, head.tag)),
        "root": _text(head.root),
        "sealed_at": head.sealed_at,
        "signed": bool(note.signatures),
        "note": note.text,
    }


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
