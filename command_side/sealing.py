"""What the command service seals, and with whose key: new tasks with their owner's, all that follows with
the key that the task was created with, whatever the settings say by then."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from command_side.commands import CreateTask
from events.append import IdempotencyKey, RecordedEvent
from events.envelopes import key_of
from events.records import EventRecord
from events.task_state import TaskState
from events.vault import (
    DataKey,
    Decoder,
    Key,
    Owner,
    Vault,
    has_private,
    note_place,
    sealed,
    sealed_note,
)


@dataclass(frozen=True, slots=True)
class NewTasks:
    keys: Mapping[Owner, DataKey]
    """In the order in which the request names their owners."""

    def event(self, event: EventRecord, command: CreateTask) -> EventRecord:
        key = self.keys[command.tenant, command.subject]
        return sealed(event, command.tenant, key.id, key)

    def key(self, key: IdempotencyKey | None) -> IdempotencyKey | None:
        """With a fingerprint that nobody can compute once one of the keys is destroyed."""
        if key is None:
            return None
        fingerprint = key.fingerprint
        for data_key in self.keys.values():
            fingerprint = data_key.fingerprint(fingerprint)
        return replace(key, fingerprint=fingerprint)


@dataclass(frozen=True, slots=True)
class OldTasks:
    keys: Mapping[UUID, Key]

    def events(self, state: TaskState, events: Sequence[EventRecord]) -> Sequence[EventRecord]:
        if state.sealed_payload is None or not any(map(has_private, events)):
            return events
        key_id = key_of(state.sealed_payload)
        return [sealed(event, state.tenant, key_id, self.keys[key_id]) for event in events]


class Sealing:
    def __init__(self, vault: Vault | None) -> None:
        self._vault = vault

    async def decoder(self, events: Iterable[RecordedEvent]) -> Decoder | None:
        """None: sealed text is to stay sealed. Raises KeyUnavailable."""
        return None if self._vault is None else await self._vault.decoder(events)

    async def note(self, state: TaskState, attempt: int, note: str | None) -> str | None:
        """As the lease of an attempt holds it. Raises KeyUnavailable."""
        if note is None or state.sealed_payload is None or self._vault is None:
            return note
        key_id = key_of(state.sealed_payload)
        key = (await self._vault.keys({key_id}))[key_id]
        return sealed_note(note, note_place(state.tenant, state.id, attempt), key)

    async def new(self, commands: Sequence[CreateTask]) -> NewTasks | None:
        """None where encryption is off."""
        if self._vault is None or not self._vault.seals:
            return None
        owners = list(dict.fromkeys((command.tenant, command.subject) for command in commands))
        keys = await self._vault.owned(owners)
        return NewTasks({owner: keys[owner] for owner in owners})

    async def old(self, work: Iterable[tuple[TaskState, Sequence[EventRecord]]]) -> OldTasks | None:
        """None where there is nothing to seal. Raises KeyUnavailable."""
        if self._vault is None:
            return None
        needed = {
            key_of(state.sealed_payload)
            for state, events in work
            if state.sealed_payload is not None and any(map(has_private, events))
        }
        return OldTasks(await self._vault.keys(needed)) if needed else None
