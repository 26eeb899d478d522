"""Destroys keys, and what PostgreSQL keeps of a row that is gone. Also wraps them anew.

The row of a destroyed key stays as a tombstone. Its former versions are still in the table's file, in old
write-ahead log and in backups; all of them are wrapped by the master key.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events.append import AppendCommand, Appended, StreamAppend, outcomes_of
from events.append_parameters import append_parameters
from events.ciphers import DataKey, MasterKeys
from events.codec import EventMapper
from events.errors import ConcurrencyConflict, ConfigurationError
from events.ids import new_uid
from events.key_events import KeyErased
from events.keyring import KEYS_CHANNEL, subject_hash
from events.statements import APPEND

REWRAPPED_AT_ONCE: Final = 1_000

_HASHING: Final = "select id, master, wrapped from taskledger.data_keys where tenant = '' and subject = ''"
_DESTROY: Final = """
update taskledger.data_keys
set subject = null, master = null, wrapped = null, erased_at = clock_timestamp(), erased_by = %(by)s,
    reason = %(reason)s
where erased_at is null and tenant = %(tenant)s and (subject = %(subject)s or %(subject)s is null)
returning id
"""
_TO_REWRAP: Final = """
select id, master, wrapped from taskledger.data_keys where master <> %s order by id limit %s for update
"""
_REWRAP: Final = """
update taskledger.data_keys k set master = %s, wrapped = u.wrapped
from unnest(%s::uuid[], %s::bytea[]) as u(id, wrapped) where k.id = u.id
"""


_NOT_OURS: Final = (
    "this role may not write over the server's write-ahead log, which holds the key in its wrapped form"
    " until PostgreSQL has used those files again"
)


@dataclass(frozen=True, slots=True)
class Erased:
    keys: int
    position: int
    """Of the event that says so."""


def check_master(connection: Connection[TupleRow], masters: MasterKeys) -> None:
    """Raises ConfigurationError unless the keys here, if there are any, are wrapped with one of ours."""
    row = connection.execute(_HASHING).fetchone()
    if row is not None and not masters.knows(row[1]):
        raise ConfigurationError(
            "TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE: not the master key of this database"
        )


def erase(
    connection: Connection[TupleRow],
    masters: MasterKeys,
    *,
    tenant: str,
    subject: str | None,
    by: str,
    reason: str,
) -> Erased | None:
    """Destroys the subject's key, or all keys of the tenant, in one transaction with the event that says
    so. None where there is none: nothing was stored, or it was erased before.

    Raises SealBroken where the master key is not the one that it takes to find the subject.
    """
    name: bytes | None = None
    if subject is not None:
        hashing = _hashing(connection, masters)
        if hashing is None:
            return None
        name = subject_hash(hashing, tenant, subject)
    values = {"by": by, "reason": reason, "tenant": tenant, "subject": name}
    with connection.transaction():
        ids = sorted(row[0] for row in connection.execute(_DESTROY, values))
        if not ids:
            return None
        event = KeyErased(
            originator_id=ids[0],
            originator_version=1,
            event_uid=new_uid(),
            tenant=tenant,
            scope="tenant" if subject is None else "subject",
            keys=len(ids),
            by=by,
            reason=reason,
        )
        position = _append(connection, event)
        connection.execute("select pg_notify(%s, '')", (KEYS_CHANNEL,))
    return Erased(len(ids), position)


def rewrap(connection: Connection[TupleRow], masters: MasterKeys) -> int:
    """Wraps every key with the present master key; returns how many were not. Raises SealBroken for one
    that is wrapped with neither. A crash leaves some done; the next call does the rest."""
    count = 0
    while True:
        with connection.transaction():
            rows = connection.execute(_TO_REWRAP, (masters.present.id, REWRAPPED_AT_ONCE)).fetchall()
            if not rows:
                return count
            wrapped = [masters.present.wrap(row[0], masters.unwrap(*row).secret) for row in rows]
            connection.execute(_REWRAP, (masters.present.id, [row[0] for row in rows], wrapped))
        count += len(rows)


def scrub(connection: Connection[TupleRow]) -> list[str]:
    """Writes the table afresh, and writes over the write-ahead log that may still hold keys in their
    wrapped form. Returns what could not be done, for people. The connection must be in autocommit and
    without statement_timeout."""
    return [*rewrite(connection), *_write_over_wal(connection)]


def _hashing(connection: Connection[TupleRow], masters: MasterKeys) -> DataKey | None:
    row = connection.execute(_HASHING).fetchone()
    return None if row is None else masters.unwrap(*row)


def _append(connection: Connection[TupleRow], event: KeyErased) -> int:
    stored = EventMapper().encode(event)
    command = AppendCommand([StreamAppend(event.originator_id, [stored], event.tenant)])
    cursor = connection.cursor(binary=True)
    row = cursor.execute(APPEND.encode(), append_parameters([command])).fetchone()
    (outcome,) = outcomes_of([command], row or ())
    if not isinstance(outcome, Appended):
        raise ConcurrencyConflict("the key was erased by somebody else meanwhile")
    return outcome.last_position


def rewrite(connection: Connection[TupleRow]) -> list[str]:
    """Of scrub(), the table. VACUUM alone only marks space as free: what stood there stays until something
    is written over it."""
    kept: list[int] = []

    def hear(diagnostic: psycopg.errors.Diagnostic) -> None:
        # "2 dead row versions cannot be removed yet.", in the server's language
        found = re.match(r"(\d+) ", diagnostic.message_detail or "")
        kept.extend([int(found[1])] if found else [])

    connection.add_notice_handler(hear)
    try:
        connection.execute("vacuum (full, verbose) taskledger.data_keys")
    except psycopg.errors.InsufficientPrivilege:
        return ["the table taskledger.data_keys is not ours to rewrite: its owner should VACUUM FULL it"]
    finally:
        connection.remove_notice_handler(hear)
    if any(kept):
        return [
            "an open transaction still sees the keys as they were: run `taskledger keys scrub` after it"
        ]
    return []


def _write_over_wal(connection: Connection[TupleRow]) -> list[str]:
    """A checkpoint gives old segments new names, for use as they come up. Each switch to the next one
    fills the rest of a segment with zeros: the present one, and after it all that was old."""
    try:
        last = _one(connection, "select pg_walfile_name(pg_current_wal_insert_lsn())")
        connection.execute("select pg_switch_wal()")
        connection.execute("checkpoint")
        ahead = _segments(connection, "name > pg_walfile_name(pg_current_wal_insert_lsn())")
        for _ in range(1 + ahead):
            connection.execute("select pg_logical_emit_message(false, 'taskledger', '')")
            connection.execute("select pg_switch_wal()")
        connection.execute("checkpoint")
        kept = _segments(connection, "name <= %s", last)
    except psycopg.errors.InsufficientPrivilege:
        return [_NOT_OURS]
    if kept:
        return [f"{kept} files of write-ahead log are kept for an archive or a replica, with keys in them"]
    return []


def _segments(connection: Connection[TupleRow], which: str, *values: str) -> int:
    files = "select count(*) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$' and"
    return int(_one(connection, f"{files} {which}", *values))


def _one(connection: Connection[TupleRow], query: str, *values: str) -> Any:
    row = connection.execute(query.encode(), values or None).fetchone()
    return None if row is None else row[0]
