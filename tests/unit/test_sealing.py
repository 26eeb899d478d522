"""Sealed text: it opens in its own place with its own key, and nowhere else."""

import base64
import subprocess
import sys
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.append import RecordedEvent
from events.ciphers import DataKey, MasterKey, MasterKeys, new_master_text, new_secret
from events.codec import EventMapper, data_of
from events.envelopes import Envelope, Erased, Place, is_envelope, key_of, packed, unpack
from events.errors import ConfigurationError, KeyUnavailable, SealBroken
from events.records import EventRecord
from events.task_events import (
    ERASED_ERROR,
    PrivateEvent,
    TaskCompleted,
    TaskCreated,
    TaskError,
    TaskFailed,
    TaskStarted,
)
from events.task_state import evolve
from events.vault import (
    OFF,
    Key,
    Owner,
    Vault,
    has_private,
    note_place,
    open_column,
    opened_note,
    sealed,
    sealed_note,
    without_erased,
)
from projector.fold import Entry, fold
from projector.rows import LOADED, NAMES, row_of, values_of
from taskledger.encryption import master_keys
from taskledger.settings import EncryptionSettings
from tests.golden.records import RECORDS, TASK

KEY = DataKey(uuid4(), new_secret())
PLACE = Place("acme", TASK, 3, "result")
GONE = Erased(datetime(2026, 11, 26, tzinfo=UTC))
MAPPER = EventMapper()
PRIVATE = [
    record
    for records in RECORDS.values()
    for name, record in records.items()
    if isinstance(record, PrivateEvent) and name == "full"
]
assert len(PRIVATE) == 7


class Keys:
    """A keyring of what it is given."""

    def __init__(self, *keys: tuple[UUID, Key]) -> None:
        self._keys = dict(keys)

    async def keys(self, ids: Collection[UUID]) -> Mapping[UUID, Key]:
        return {id_: self._keys[id_] for id_ in ids}

    async def owned(self, owners: Collection[Owner]) -> Mapping[Owner, DataKey]:
        return dict.fromkeys(owners, KEY)


def recorded(record: EventRecord, tenant: str = "acme", position: int = 1) -> RecordedEvent:
    stored = MAPPER.encode(record)
    at = datetime(2026, 11, 26, tzinfo=UTC)
    return RecordedEvent(
        stored.originator_id,
        stored.originator_version,
        stored.topic,
        stored.state,
        position,
        at,
        tenant,
        "sum",
        "default",
    )


async def opened(event: RecordedEvent, key: Key = KEY) -> EventRecord:
    decoder = await Vault(Keys((KEY.id, key))).decoder([event])
    return decoder.decode(event)


@given(st.binary(min_size=1))
def test_what_is_sealed_opens_with_the_same_key_in_the_same_place(plain: bytes) -> None:
    envelope = KEY.seal(plain, PLACE)
    assert unpack(packed(envelope.text)) == envelope
    assert key_of(envelope.text) == KEY.id
    assert KEY.open(envelope, PLACE) == plain
    assert plain not in envelope.ciphertext or len(plain) < 4


@pytest.mark.parametrize(
    "other",
    [
        PLACE._replace(tenant="acm"),
        PLACE._replace(task=uuid4()),
        PLACE._replace(version=4),
        PLACE._replace(field="payload"),
    ],
    ids=["tenant", "task", "version", "field"],
)
def test_what_is_sealed_opens_in_no_other_place(other: Place) -> None:
    with pytest.raises(SealBroken):
        KEY.open(KEY.seal(b"text", PLACE), other)


def test_what_is_sealed_opens_with_no_other_key_and_not_once_it_is_changed() -> None:
    envelope = KEY.seal(b"text", PLACE)
    with pytest.raises(SealBroken):
        DataKey(KEY.id, new_secret()).open(envelope, PLACE)
    for at in (0, len(envelope.ciphertext) - 1):
        changed = bytearray(envelope.ciphertext)
        changed[at] ^= 1
        with pytest.raises(SealBroken):
            KEY.open(envelope._replace(ciphertext=bytes(changed)), PLACE)


def test_the_same_text_is_never_sealed_the_same_way() -> None:
    assert len({KEY.seal(b"text", PLACE).text for _ in range(50)}) == 50


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_no_json_is_taken_for_an_envelope(value: Any) -> None:
    assert not is_envelope(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x01\x00" + bytes(20), b"\x01\x00" + bytes(34), b"\x02\x00" + bytes(60), b"{}"]
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(SealBroken):
        unpack(data)


def test_what_is_no_base64_is_refused() -> None:
    for text in ("AQ*A", "äöü", "AQA"):
        with pytest.raises(SealBroken):
            packed(text)


@pytest.mark.parametrize("record", PRIVATE, ids=lambda r: r.TOPIC)
async def test_a_sealed_event_holds_its_text_nowhere_and_opens_to_what_it_was(record: PrivateEvent) -> None:
    stored = sealed(record, "acme", KEY.id, KEY)
    texts = [b"no such luck", b"Traceback", "ünïcödé".encode(), b'{"sum":3}', b"maintenance"]
    assert any(text in MAPPER.encode(record).state for text in texts)
    assert not any(text in MAPPER.encode(stored).state for text in texts)
    back = await opened(recorded(stored))
    assert data_of(back) == data_of(record)
    assert isinstance(back, PrivateEvent)
    assert back.sealed == getattr(stored, "sealed", None)


@pytest.mark.parametrize("record", PRIVATE, ids=lambda r: r.TOPIC)
async def test_an_event_whose_key_is_gone_tells_all_but_the_text(record: PrivateEvent) -> None:
    back = await opened(recorded(sealed(record, "acme", KEY.id, KEY)), GONE)
    shown, erased = without_erased(back)
    assert erased is not None
    assert erased.at == GONE.at
    left = {"type": "ValueError", "message": "", "traceback": None} if record.PRIVATE == "error" else None
    assert data_of(shown) == data_of(record) | {record.PRIVATE: left}


@pytest.mark.parametrize("record", PRIVATE, ids=lambda r: r.TOPIC)
async def test_sealed_for_a_key_that_is_gone_it_holds_nothing(record: PrivateEvent) -> None:
    stored = sealed(record, "acme", KEY.id, GONE)
    assert isinstance(stored, PrivateEvent)
    assert stored.sealed is not None
    assert unpack(packed(stored.sealed)) == Envelope(KEY.id, record.originator_version, b"", b"")
    assert without_erased(await opened(recorded(stored), GONE))[1] is not None


async def test_an_event_moved_to_another_task_or_tenant_does_not_open() -> None:
    (record,) = (r for r in PRIVATE if isinstance(r, TaskCompleted))
    stored = sealed(record, "acme", KEY.id, KEY)
    with pytest.raises(SealBroken):
        await opened(recorded(stored.replaced(originator_id=uuid4())))
    with pytest.raises(SealBroken):
        await opened(recorded(stored.replaced(originator_version=7)))
    with pytest.raises(SealBroken):
        await opened(recorded(stored, tenant="other"))


async def test_a_payload_that_looks_like_an_envelope_is_only_a_payload() -> None:
    payload = {"sealed": KEY.seal(b"1", PLACE).text, "payload": None}
    record = TaskCreated(
        originator_id=TASK, originator_version=1, event_uid="u", kind="sum", payload=payload
    )
    for vault in (OFF, Vault(Keys())):
        decoder = await vault.decoder([recorded(record)])
        assert decoder.decode(recorded(record)) == record
    row = fold([Entry(1, GONE.at, record)], {}).inserted[TASK]
    assert not is_envelope(dict(zip(NAMES, values_of(row), strict=True))["payload"])


async def test_a_payload_of_null_is_sealed_too_so_that_its_task_has_a_key() -> None:
    record = TaskCreated(originator_id=TASK, originator_version=1, event_uid="u", kind="sum", payload=None)
    stored = sealed(record, "acme", KEY.id, KEY)
    assert isinstance(stored, TaskCreated)
    assert stored.sealed is not None
    assert data_of(await opened(recorded(stored)))["payload"] is None


def test_of_an_error_the_type_stays_if_it_is_a_name() -> None:
    for type_, left in (
        ("ValueError", "ValueError"),
        ("shop.Refused", "shop.Refused"),
        ("Ann did it", "Error"),
    ):
        record = TaskFailed(
            originator_id=TASK,
            originator_version=2,
            event_uid="u",
            attempt=1,
            cause="error",
            error=TaskError(type=type_, message="m", traceback="t"),
        )
        stored = sealed(record, "acme", KEY.id, KEY)
        assert isinstance(stored, TaskFailed)
        assert stored.error == TaskError(type=left, message="")


def test_our_own_word_for_an_erased_task_is_nobodys_text() -> None:
    record = TaskFailed.trusted(
        originator_id=TASK,
        originator_version=2,
        event_uid="u",
        attempt=1,
        cause="discarded",
        error=ERASED_ERROR,
    )
    assert not has_private(record)
    assert sealed(record, "acme", KEY.id, GONE) == record


async def test_without_a_key_sealed_text_is_refused_and_clear_text_is_read() -> None:
    clear = PRIVATE[0]
    stored = recorded(sealed(clear, "acme", KEY.id, KEY))
    decoder = await OFF.decoder([])
    assert decoder.decode(recorded(clear)) == clear
    with pytest.raises(KeyUnavailable):
        decoder.decode(stored)
    with pytest.raises(KeyUnavailable):
        await OFF.keys([KEY.id])


def test_the_read_table_holds_sealed_text_as_it_is_and_goes_on_from_it() -> None:
    def private(cls: type[EventRecord], version: int, **fields: Any) -> Entry:
        record = cls(originator_id=TASK, originator_version=version, event_uid="u", **fields)
        return Entry(version, GONE.at, sealed(record, "acme", KEY.id, KEY))

    started = TaskStarted(
        originator_id=TASK, originator_version=2, event_uid="u", attempt=1, holder="h", worker="w"
    )
    error = TaskError(type="ValueError", message="for Ann")
    events = [
        private(TaskCreated, 1, kind="sum", payload={"name": "Ann"}, tenant="acme"),
        Entry(2, GONE.at, started),
        private(TaskFailed, 3, attempt=1, cause="error", error=error),
    ]
    row = fold(events, {}).inserted[TASK]
    columns = dict(zip(NAMES, values_of(row), strict=True))
    for field, value in (("payload", {"name": "Ann"}), ("error", error.model_dump())):
        assert is_envelope(columns[field])
        opened = open_column(columns[field], Place("acme", TASK, 0, field), KEY)
        assert isinstance(opened, bytes)
        assert orjson.loads(opened) == value
        assert open_column(columns[field], Place("acme", TASK, 0, field), GONE) == GONE
    loaded = row_of([columns[name] for name in LOADED])
    assert dict(zip(NAMES, values_of(loaded), strict=True))["error"] == columns["error"]
    after = evolve(loaded.state, started.replaced(originator_version=4), at=GONE.at, position=4)
    assert after.sealed_error is None


@pytest.mark.parametrize("text", ["x", "AQAA", base64.b64encode(b'{"a": 1}').decode() * 9])
def test_the_read_table_takes_nothing_for_an_envelope_that_is_none(text: str) -> None:
    """By a ValueError: the projector stops at the event and names it."""
    record = TaskCreated(originator_id=TASK, originator_version=1, event_uid="u", kind="sum", payload=None)
    row = fold([Entry(1, GONE.at, record.replaced(sealed=text))], {}).inserted[TASK]
    with pytest.raises(ValueError):  # noqa: PT011  of whatever kind
        values_of(row)


def test_a_note_opens_for_its_own_attempt_alone() -> None:
    place = note_place("acme", TASK, 2)
    text = sealed_note("half of Ann's file", place, KEY)
    assert text is not None
    assert "Ann" not in text
    assert opened_note(text, place, KEY) == "half of Ann's file"
    assert opened_note(text, note_place("acme", TASK, 3), KEY) is None
    assert opened_note(text, place, GONE) is None
    assert opened_note("in clear", place, KEY) is None
    assert sealed_note("n", place, GONE) is None


def test_a_master_key_unwraps_what_it_wrapped_for_the_same_key_alone() -> None:
    secret, id_ = new_secret(), uuid4()
    old, new = MasterKey.parse(new_master_text()), MasterKey.parse(new_master_text())
    wrapped = old.wrap(id_, secret)
    assert MasterKeys(new, old).unwrap(id_, old.id, wrapped).secret == secret
    for masters, key, master in (
        (MasterKeys(new), id_, old.id),
        (MasterKeys(new, old), uuid4(), old.id),
        (MasterKeys(new, old), id_, new.id),
    ):
        with pytest.raises(SealBroken):
            masters.unwrap(key, master, wrapped)


def test_keys_do_not_show_in_their_text() -> None:
    secret = new_secret()
    assert repr(secret) not in repr(DataKey(uuid4(), secret))
    assert secret.hex() not in repr(vars(MasterKey(secret)))


@pytest.mark.parametrize("text", ["", "too short", base64.b64encode(bytes(31)).decode(), "ä" * 44])
def test_a_file_without_a_master_key_stops_the_process(tmp_path: Path, text: str) -> None:
    file = tmp_path / "master.key"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE") as raised:
        master_keys(EncryptionSettings(master_key_file=file))
    assert not text or text not in str(raised.value)


def test_while_encryption_is_off_no_cipher_is_loaded() -> None:
    script = """
import sys
import command_side.api.app, command_side.worker.main, command_side.dispatcher.main
import projector.main, query_side.api.app
assert "events.vault" in sys.modules
assert "events.ciphers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_master_keys_come_from_files_and_off_is_the_default(tmp_path: Path) -> None:
    assert master_keys(EncryptionSettings()) is None
    files = [tmp_path / "new", tmp_path / "old"]
    for file in files:
        file.write_text(new_master_text())
    found = master_keys(EncryptionSettings(master_key_file=files[0], previous_master_key_file=files[1]))
    assert found is not None
    assert all(found.knows(MasterKey.parse(file.read_text()).id) for file in files)
    with pytest.raises(ConfigurationError, match="PREVIOUS"):
        master_keys(EncryptionSettings(previous_master_key_file=files[1]))
    with pytest.raises(ConfigurationError, match="cannot read"):
        master_keys(EncryptionSettings(master_key_file=tmp_path / "none"))
