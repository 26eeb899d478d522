"""Seals what is somebody's text before it goes to the log, and opens it after: between the two stand clear
records, as if nothing was encrypted.

Sealed are a task's payload, result, errors, the reasons given for what is done to it, and the notes of its
progress. What a task is filed under (kind, queue, tags, ids, worker, the type of an error) stays readable:
lists, statistics and people go by it.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Protocol, cast
from uuid import UUID

import orjson
from eventsourcing.persistence import StoredEvent

from events.append import RecordedEvent
from events.codec import EventMapper, OrjsonTranscoder
from events.envelopes import Envelope, Erased, Place, key_of, packed, unpack
from events.errors import KeyUnavailable, LogError, SealBroken
from events.records import EventRecord
from events.task_events import ERASED_ERROR, PrivateEvent, TaskError

Owner = tuple[str, str | None]
"""Whom data is about: tenant and subject; without a subject it is the tenant's own."""

_TYPE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.<>]{0,199}")
"""Of errors, as programs name them. What else a worker calls an error may be anybody's words."""


class DataKey(Protocol):
    @property
    def id(self) -> UUID: ...

    def seal(self, plain: bytes, place: Place) -> Envelope: ...

    def open(self, envelope: Envelope, place: Place) -> bytes:
        """Raises SealBroken where it was sealed with another key or for another place."""
        ...

    def fingerprint(self, digest: bytes) -> bytes:
        """Of a request. Once the key is destroyed, nobody can find out by trying whether a request that
        he has in mind was made."""
        ...


Key = DataKey | Erased


class Keyring(Protocol):
    """Both raise StoreUnavailable, and KeyUnavailable for a key that is not there or cannot be used."""

    async def keys(self, ids: Collection[UUID]) -> Mapping[UUID, Key]: ...

    async def owned(self, owners: Collection[Owner]) -> Mapping[Owner, DataKey]:
        """The keys to seal with; made where there is none yet."""
        ...


class Decoder(Protocol):
    def decode(self, stored: StoredEvent) -> EventRecord:
        """Raises LogError."""
        ...


class Vault:
    """Without a keyring encryption is off: records pass unchanged, and sealed ones are refused."""

    def __init__(self, keyring: Keyring | None = None) -> None:
        self._keyring = keyring
        self._mapper = EventMapper()
        self._closed = _Closed(self._mapper)

    @property
    def seals(self) -> bool:
        return self._keyring is not None

    async def owned(self, owners: Collection[Owner]) -> Mapping[Owner, DataKey]:
        return await self._ring().owned(owners)

    async def keys(self, ids: Collection[UUID]) -> Mapping[UUID, Key]:
        """Raises KeyUnavailable, also where encryption is off."""
        return await self._ring().keys(ids) if ids else {}

    async def decoder(self, events: Iterable[RecordedEvent]) -> Decoder:
        """Decodes these events, and opens what is sealed in them. Raises KeyUnavailable where it cannot;
        without a keyring, when such an event is decoded."""
        if self._keyring is None:
            return self._closed
        records: dict[int, EventRecord] = {}
        needed: set[UUID] = set()
        for event in events:
            try:
                record = records[event.id] = self._mapper.decode(event)
                if isinstance(record, PrivateEvent) and record.sealed is not None:
                    needed.add(key_of(record.sealed))
            except LogError:
                continue  # decode() will say so
        return _Opening(self._mapper, records, await self.keys(needed))

    def _ring(self) -> Keyring:
        if self._keyring is None:
            raise KeyUnavailable(
                "the text is encrypted, and this process has no TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE"
            )
        return self._keyring


class _Closed:
    def __init__(self, mapper: EventMapper) -> None:
        self._mapper = mapper

    def decode(self, stored: StoredEvent) -> EventRecord:
        record = self._mapper.decode(stored)
        if isinstance(record, PrivateEvent) and record.sealed is not None:
            raise KeyUnavailable("the text is encrypted, and this process has no key")
        return record


class _Opening:
    def __init__(
        self, mapper: EventMapper, records: Mapping[int, EventRecord], keys: Mapping[UUID, Key]
    ) -> None:
        self._mapper = mapper
        self._records = records
        self._keys = keys

    def decode(self, stored: StoredEvent) -> EventRecord:
        event = cast("RecordedEvent", stored)
        record = self._records.get(event.id) or self._mapper.decode(event)
        if isinstance(record, PrivateEvent) and record.sealed is not None:
            return _opened(record, record.sealed, event.tenant, self._keys)
        return record


OFF: Final = Vault()
"""Encryption is off."""


def has_private(record: EventRecord) -> bool:
    return isinstance(record, PrivateEvent) and _private_of(record) is not None


def sealed(record: EventRecord, tenant: str, key_id: UUID, key: Key) -> EventRecord:
    """The record as it is stored. Of one whose key is destroyed nothing is kept."""
    if not isinstance(record, PrivateEvent):
        return record
    value = _private_of(record)
    if value is None and record.PRIVATE != "payload":
        return record
    place = Place(tenant, record.originator_id, record.originator_version, record.PRIVATE)
    if isinstance(key, Erased):
        envelope = Envelope(key_id, place.version, b"", b"")
    else:
        plain = value.model_dump() if isinstance(value, TaskError) else value
        envelope = key.seal(_TRANSCODER.encode(plain), place)
    return record.replaced(sealed=envelope.text, **{record.PRIVATE: _left_of(value)})


def open_column(column: bytes, place: Place, key: Key) -> bytes | Erased:
    """The JSON of a column of the read tables that is_envelope(); `place.version` is looked up in it.
    Raises SealBroken."""
    envelope = unpack(column)
    return _open(envelope, place._replace(version=envelope.version), key)


def sealed_note(note: str, place: Place, key: Key) -> str | None:
    """A note of an attempt's progress, as its lease holds it. Its place: see note_place()."""
    return None if isinstance(key, Erased) else key.seal(note.encode(), place).text


def opened_note(text: str, place: Place, key: Key) -> str | None:
    """None where it cannot be read: it is only a note, and gone with the attempt."""
    try:
        note = _open(unpack(packed(text)), place, key)
    except SealBroken:
        return None
    return None if isinstance(note, Erased) else note.decode()


def note_place(tenant: str, task: UUID, attempt: int) -> Place:
    """An attempt stands for the version: there is no event that holds its notes."""
    return Place(tenant, task, attempt, "note")


def without_erased(record: EventRecord) -> tuple[EventRecord, Erased | None]:
    """A record of Vault.decoder() in which nothing stands but JSON, and what was erased of it."""
    value = getattr(record, record.PRIVATE) if isinstance(record, PrivateEvent) else None
    if not isinstance(record, PrivateEvent) or not isinstance(value, Erased):
        return record, None
    return record.replaced(**{record.PRIVATE: value.left}), value


_TRANSCODER: Final = OrjsonTranscoder()


def _private_of(record: PrivateEvent) -> Any:
    """None where there is nothing to hide."""
    value = getattr(record, record.PRIVATE)
    return None if value is ERASED_ERROR or isinstance(value, Erased) else value


def _left_of(value: Any) -> Any:
    """What stays readable."""
    if not isinstance(value, TaskError):
        return None
    return TaskError(type=value.type if _TYPE.fullmatch(value.type) else "Error", message="")


def _opened(record: PrivateEvent, text: str, tenant: str, keys: Mapping[UUID, Key]) -> EventRecord:
    field = record.PRIVATE
    envelope = unpack(packed(text))
    place = Place(tenant, record.originator_id, record.originator_version, field)
    plain = _open(envelope, place, keys[envelope.key])
    if isinstance(plain, Erased):
        return record.replaced(**{field: Erased(plain.at, getattr(record, field))})
    value = orjson.loads(plain)
    return record.replaced(**{field: TaskError(**value) if field == "error" else value})


def _open(envelope: Envelope, place: Place, key: Key) -> bytes | Erased:
    if isinstance(key, Erased):
        return key
    return key.open(envelope, place)
