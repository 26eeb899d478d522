"""The tree grows with the log, one sealer at a time, and its heads say what was sealed."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from events.errors import CheckpointConflict, ConfigurationError, LogRewound, MalformedHead
from events.heads import Head, Note, note_of
from events.leaf import leaf_of
from events.merkle import EMPTY_ROOT, leaf_hash
from projector import seal as seal_module
from projector.seal import TreeBuilder
from projector.tree import read_leaves
from taskledger.postgres import connect_sync
from taskledger.settings import ProofSettings, Settings
from taskledger.signing_key import key_file, load_public, load_signer, make_key, public_file
from tests.integration.projection import execute, many_histories
from tests.integration.sealing import Key, newest, seal, sealing
from tests.support import Service, wait_until
from tests.unit.test_merkle import naive


async def stored(service: Service) -> list[bytes]:
    return [leaf_of(event) for event in await service.log.read_after(0, limit=100_000)]


async def test_the_tree_is_the_one_over_the_events_as_they_are_stored(service: Service) -> None:
    await many_histories(service, count=30)
    key = Key()
    size = seal(service.dsn, key)
    assert size == await service.log.head()
    note = newest(service.dsn)
    assert note.head.root == naive(await stored(service))
    assert (note.head.size, note.head.tag) == (size, await service.log.tag())
    assert key.public.has_signed(note)
    assert not Key().public.has_signed(note)


async def test_a_row_of_a_copy_is_the_leaf(service: Service) -> None:
    """What PostgreSQL writes and what we say a leaf is, over texts that are more than ASCII."""
    await service.commands.set_paused("mail", paused=True, reason="grüße")
    await many_histories(service, count=5)
    with connect_sync(service.dsn, name="test") as connection:
        found = [leaf for _, leaf in read_leaves(connection, 0, await service.log.head())]
    assert found == [leaf_hash(leaf) for leaf in await stored(service)]


async def test_it_grows_in_steps_and_over_tiles(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_module, "BATCH_EVENTS", 100)
    await service.create()
    execute(
        service.dsn,
        "insert into taskledger.task_events select n, n, recorded_at, originator_id, topic, tenant, kind,"
        " queue, convert_to(n::text, 'UTF8') from taskledger.task_events, generate_series(2, 700) n",
    )
    assert seal(service.dsn) == 700
    await service.commands.set_paused("mail", paused=True)
    assert seal(service.dsn) == 701
    leaves = await stored(service)
    assert newest(service.dsn).head.root == naive(leaves)
    with connect_sync(service.dsn, name="test") as connection:
        sizes = connection.execute(
            "select level, number, octet_length(hashes) / 32 from taskledger_proof.tiles order by 1, 2"
        ).fetchall()
    assert sizes == [(0, 0, 256), (0, 1, 256), (0, 2, 189), (1, 0, 2)]


async def test_a_batch_ends_where_its_states_are_large(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_module, "BATCH_BYTES", 500)
    for _ in range(9):
        await service.create(payload={"text": "x" * 300})
    with connect_sync(service.dsn, name="test") as connection:
        builder = TreeBuilder(connection)
        assert builder.step(await service.log.tag(), 9) == 2
    assert seal(service.dsn) == 9
    assert newest(service.dsn).head.root == naive(await stored(service))


async def test_two_builders_do_not_write_the_same_events(service: Service) -> None:
    await service.create()
    tag = await service.log.tag()
    with (
        connect_sync(service.dsn, name="one") as first,
        connect_sync(service.dsn, name="two") as second,
    ):
        late = TreeBuilder(second)
        assert TreeBuilder(first).step(tag, 1) == 1
        await service.create()
        with pytest.raises(CheckpointConflict):
            late.step(tag, 2)
    assert seal(service.dsn) == 2
    assert newest(service.dsn).head.root == naive(await stored(service))


async def test_it_does_not_seal_over_a_gap(service: Service) -> None:
    await many_histories(service, count=3)
    execute(service.dsn, "delete from taskledger.task_events where notification_id = 3")
    with pytest.raises(LogRewound, match="no event 3 before"):
        seal(service.dsn)
    assert newest(service.dsn).head.size == 2


async def test_the_newest_head_and_one_an_hour_are_kept(service: Service) -> None:
    for _ in range(3):
        await service.create()
        seal(service.dsn)
    execute(
        service.dsn,
        "update taskledger_proof.heads set hour = hour - interval '1 h', size = 3 where size = 3",
    )
    await service.create()
    seal(service.dsn)
    with connect_sync(service.dsn, name="test") as connection:
        sizes = connection.execute("select size from taskledger_proof.heads order by hour").fetchall()
    assert sizes == [(3,), (4,)]


async def test_one_leads_the_other_takes_over_and_it_recovers_from_a_lost_session(service: Service) -> None:
    key = Key()
    with sealing(service.dsn, key) as first, sealing(service.dsn, key) as second:
        await service.create()
        wait_until(lambda: max(first.size, second.size) == 1, "the event to be sealed")
        assert [first.leads, second.leads].count(True) == 1
        execute(
            service.dsn,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'taskledger-sealer' and datname = current_database()",
        )
        await service.create()
        wait_until(lambda: newest(service.dsn).head.size == 2, "the next one to be sealed", within=20)
    assert key.public.has_signed(newest(service.dsn))


async def test_a_log_that_is_not_the_one_it_sealed_is_refused_and_said(service: Service) -> None:
    await service.create()
    with sealing(service.dsn) as sealer:
        wait_until(lambda: sealer.size == 1, "the event to be sealed")
        execute(service.dsn, "update taskledger.task_events set recorded_at = recorded_at + '1 s'")
        # In this session it is told by the witness, in the next one by the checkpoint.
        wait_until(lambda: re.search("restored|another event", sealer.waiting_for or ""), "it to say so")
    assert sealer.waiting_for is not None


async def test_it_waits_for_the_schema_and_for_the_server(empty_dsn: str) -> None:
    with sealing(empty_dsn) as sealer:
        wait_until(lambda: "migrate" in (sealer.waiting_for or ""), "it to say what it waits for")
    with sealing("host=127.0.0.1 port=1") as sealer:
        wait_until(lambda: "PostgreSQL: " in (sealer.waiting_for or ""), "it to say what it waits for")


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert key_file(settings) is None
    path = make_key(settings)
    assert path == make_key(settings) == key_file(settings)
    assert path.stat().st_mode & 0o777 == 0o600
    signer = load_signer(path)
    assert load_public(public_file(path)).raw == signer.key.raw
    assert signer.key.verify(signer.sign(b"text"), b"text")
    assert not signer.key.verify(signer.sign(b"text"), b"other")


def test_a_key_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "key"
    settings = Settings(proof=ProofSettings(signing_key_file=path))
    with pytest.raises(ConfigurationError, match="PROOF__SIGNING_KEY_FILE: cannot read"):
        load_signer(path)
    path.write_text("hunter2")
    with pytest.raises(ConfigurationError, match="PROOF__SIGNING_KEY_FILE") as caught:
        load_signer(path)
    assert "hunter2" not in str(caught.value)
    assert make_key(settings) == path
    assert path.read_text() == "hunter2"
    with pytest.raises(ConfigurationError, match="holds no public"):
        load_public(path)


HEAD = Head("k3v9x0aa", 7, EMPTY_ROOT, datetime(2026, 11, 26, 8, 9, 10, 123456, UTC))


def test_a_head_is_read_as_it_was_written() -> None:
    key = Key()
    for note in (note_of(HEAD, key.signer), note_of(HEAD, None)):
        assert Note.parse(note).head == HEAD
    assert key.public.has_signed(Note.parse(note_of(HEAD, key.signer)))
    assert not key.public.has_signed(Note.parse(note_of(HEAD, None)))
    assert note_of(HEAD, None).splitlines()[:2] == ["taskledger/k3v9x0aa", "7"]


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("\n7\n", "\n07\n"),
        ("\n7\n", "\n"),
        ("taskledger/", "other/"),
        ("123456Z", "1234560Z"),
        ("sealed 2026", "sealed 0000"),
        ("— ", "- "),
        ("\n— ", "\nx\n— "),
    ],
)
def test_a_head_that_is_none_is_refused(part: str, damaged: str) -> None:
    note = note_of(HEAD, Key().signer)
    assert part in note
    with pytest.raises(MalformedHead):
        Note.parse(note.replace(part, damaged))


def test_a_head_whose_size_was_changed_is_not_signed() -> None:
    key = Key()
    note = note_of(HEAD, key.signer).replace("\n7\n", "\n8\n")
    assert not key.public.has_signed(Note.parse(note))
