"""Notes of progress, as the leases hold them: encrypted where the task is."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from command_side.worker.attempts import Attempt
from events.envelopes import key_of
from events.errors import KeyUnavailable
from events.vault import Key, note_place, sealed_note

Keys = Callable[[Connection[TupleRow], Collection[UUID]], Mapping[UUID, Key]]
"""Raises KeyUnavailable, and psycopg errors."""


def no_keys(_: Connection[TupleRow], __: Collection[UUID]) -> Mapping[UUID, Key]:
    return {}


def stored_notes(
    connection: Connection[TupleRow], keys: Keys, notes: Sequence[tuple[Attempt, str | None]]
) -> list[str | None]:
    """None for one that cannot be encrypted: the lease is renewed all the same. Raises psycopg errors."""
    needed = {
        key_of(attempt.state.sealed_payload)
        for attempt, note in notes
        if note is not None and attempt.state.sealed_payload is not None
    }
    found: Mapping[UUID, Key] = {}
    if needed:
        with suppress(KeyUnavailable):
            found = keys(connection, needed)
    return [_stored(attempt, note, found) for attempt, note in notes]


def _stored(attempt: Attempt, note: str | None, keys: Mapping[UUID, Key]) -> str | None:
    state = attempt.state
    if note is None or state.sealed_payload is None:
        return note
    key = keys.get(key_of(state.sealed_payload))
    if key is None:
        return None
    return sealed_note(note, note_place(state.tenant, state.id, attempt.number), key)
