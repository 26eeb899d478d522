"""The data keys in PostgreSQL, wrapped by a master key, and remembered for a few seconds.

A key belongs to a tenant, or to one subject of a tenant. The table knows a subject by a keyed hash of its
name, and loses that together with the key when it is erased (events.erasure).
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.rows import TupleRow

from events.ciphers import DataKey, MasterKeys, new_secret
from events.envelopes import Erased
from events.errors import KeyUnavailable, SealBroken
from events.vault import Key, Owner

KEYS_CHANNEL: Final = "taskledger_keys"
"""Notified when keys are erased. A hint: what is remembered is forgotten by itself."""
REMEMBERED_SECONDS: Final = 5.0
REMEMBERED_KEYS: Final = 10_000

Fetch = Callable[[str, Sequence[Any]], Awaitable[Sequence[Sequence[Any]]]]
"""Runs a statement and gives its rows. Raises StoreUnavailable, SchemaNotReady."""

_BY_ID: Final = """
select id, master, wrapped, erased_at from taskledger.data_keys where id = any(%b::uuid[])
"""
_BY_OWNER: Final = """
select k.tenant, k.subject, k.id, k.master, k.wrapped
from unnest(%b::text[], %b::bytea[]) as u(tenant, subject)
join taskledger.data_keys k using (tenant, subject)
"""
# Of two who make the same key at once one inserts it, and both are given that one.
_ADD: Final = """
insert into taskledger.data_keys (tenant, subject, id, master, wrapped)
select * from unnest(%b::text[], %b::bytea[], %b::uuid[], %b::text[], %b::bytea[])
on conflict (tenant, subject) do update set tenant = excluded.tenant
returning tenant, subject, id, master, wrapped
"""
_OWN: Final = ("", b"")
"""Whose key hashes the names of subjects: nobody's. It is never erased."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class PostgresKeyring:
    """Implements events.vault.Keyring. For one event loop; forget() may be called from any thread."""

    def __init__(
        self, fetch: Fetch, masters: MasterKeys, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._masters = masters
        self._by_id = _Memory[UUID, Key](clock)
        self._by_owner = _Memory[Owner, DataKey](clock)
        self._hashing: DataKey | None = None

    def forget(self) -> None:
        """What is under way now is not remembered either."""
        self._by_id.forget()
        self._by_owner.forget()

    async def keys(self, ids: Collection[UUID]) -> Mapping[UUID, Key]:
        found, missing = self._by_id.look(ids)
        if missing:
            mark = self._by_id.mark()
            learnt = _keys(await self._fetch(_BY_ID, (list(missing),)), self._masters)
            self._by_id.learn(learnt, mark)
            found |= learnt
        if len(found) < len(set(ids)):
            raise KeyUnavailable("the text is encrypted with a key that this database does not have")
        return found

    async def owned(self, owners: Collection[Owner]) -> Mapping[Owner, DataKey]:
        found, missing = self._by_owner.look(owners)
        if missing:
            mark = self._by_owner.mark()
            learnt = await self._learn(missing)
            self._by_owner.learn(learnt, mark)
            found |= learnt
        return found

    async def check(self) -> bool:
        """Whether the master key is the one that keys here are wrapped with; True if there are none yet.
        Raises StoreUnavailable, SchemaNotReady."""
        rows = await self._fetch(_BY_OWNER, ([_OWN[0]], [_OWN[1]]))
        return all(self._masters.knows(row[3]) for row in rows)

    async def _learn(self, owners: Iterable[Owner]) -> dict[Owner, DataKey]:
        hashing = await self._names()
        wanted = {(owner[0], subject_hash(hashing, *owner)): owner for owner in owners}
        return {wanted[name]: key for name, key in (await self._find_or_add(wanted)).items()}

    async def _names(self) -> DataKey:
        if self._hashing is None:
            self._hashing = (await self._find_or_add([_OWN]))[_OWN]
        return self._hashing

    async def _find_or_add(self, wanted: Collection[tuple[str, bytes]]) -> dict[tuple[str, bytes], DataKey]:
        found = await self._rows(_BY_OWNER, _columns(wanted))
        # In order, so that two who add the same ones at once do not wait for each other.
        missing = sorted(name for name in wanted if name not in found)
        if missing:
            found |= await self._rows(_ADD, (*_columns(missing), *self._new(len(missing))))
        return found

    def _new(self, count: int) -> tuple[list[UUID], list[str], list[bytes]]:
        ids = [uuid4() for _ in range(count)]
        master = self._masters.present
        return ids, [master.id] * count, [master.wrap(id_, new_secret()) for id_ in ids]

    async def _rows(self, statement: str, parameters: Sequence[Any]) -> dict[tuple[str, bytes], DataKey]:
        rows = await self._fetch(statement, parameters)
        return {(row[0], row[1]): _unwrapped(self._masters, *row[2:]) for row in rows}


def keys_now(
    connection: Connection[TupleRow], masters: MasterKeys, ids: Collection[UUID]
) -> Mapping[UUID, Key]:
    """As PostgresKeyring.keys(), for a thread with a connection of its own; those that there are. Raises
    KeyUnavailable, and psycopg errors."""
    return _keys(connection.execute(_BY_ID, (list(ids),)).fetchall(), masters)


def _keys(rows: Iterable[Sequence[Any]], masters: MasterKeys) -> dict[UUID, Key]:
    return {
        id_: _unwrapped(masters, id_, master, wrapped) if erased_at is None else Erased(erased_at)
        for id_, master, wrapped, erased_at in rows
    }


def _unwrapped(masters: MasterKeys, id_: UUID, master: str, wrapped: bytes) -> DataKey:
    try:
        return masters.unwrap(id_, master, wrapped)
    except SealBroken as error:
        raise KeyUnavailable(str(error)) from error


def subject_hash(hashing: DataKey, tenant: str, subject: str | None) -> bytes:
    """What the table knows a subject by; empty for the tenant itself."""
    if subject is None:
        return b""
    return hmac.digest(hashing.secret, f"{tenant}\0{subject}".encode(), hashlib.sha256)


def _columns(names: Collection[tuple[str, bytes]]) -> tuple[list[str], list[bytes]]:
    return [tenant for tenant, _ in names], [subject for _, subject in names]


class _Memory(Generic[K, V]):
    """For a few seconds, and so many at most: the oldest go first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._forgotten = 0

    def look(self, wanted: Collection[K]) -> tuple[dict[K, V], set[K]]:
        now = self._clock()
        found: dict[K, V] = {}
        for key in wanted:
            known = self._known.get(key)
            if known is not None and now < known[0]:
                found[key] = known[1]
        return found, set(wanted) - found.keys()

    def mark(self) -> tuple[float, int]:
        """To be taken before the question is asked."""
        return self._clock(), self._forgotten

    def learn(self, learnt: Mapping[K, V], mark: tuple[float, int]) -> None:
        """As of the mark, and not at all if forget() was called since."""
        asked, forgotten = mark
        if not learnt or forgotten != self._forgotten:
            return
        for key, value in learnt.items():
            self._known[key] = (asked + REMEMBERED_SECONDS, value)
            self._known.move_to_end(key)
        now = self._clock()
        while self._known and (
            len(self._known) > REMEMBERED_KEYS or next(iter(self._known.values()))[0] <= now
        ):
            self._known.popitem(last=False)

    def forget(self) -> None:
        self._forgotten += 1
        self._known.clear()
