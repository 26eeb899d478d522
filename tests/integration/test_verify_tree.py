"""One changed byte is found and its position named, whoever changed it and whatever else was put right."""

from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from benchmarks.history import fill
from events.errors import ConfigurationError, MalformedHead
from events.heads import Head, note_of
from events.merkle import EMPTY_ROOT
from events.migrate import draw_tag
from projector.verify import inspect, run
from tests.integration.projection import execute, project
from tests.integration.query import settings_for
from tests.integration.sealing import Key, newest, seal
from tests.support import Service

KEY = Key()


async def sealed_log(service: Service) -> int:
    """Three tiles of events and some, projected and sealed up to what is returned; one more is not."""
    fill(service.dsn, 260)
    project(service.dsn)
    head = seal(service.dsn, KEY)
    assert head > 3 * 256
    await service.create()
    return head


def differences(dsn: str, key: Key = KEY) -> list[str]:
    return inspect(dsn, [key.public]).differences


async def test_a_sealed_log_has_no_difference(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = await sealed_log(service)
    public = tmp_path / "key.pub"
    public.write_bytes(KEY.pem)
    assert run(settings_for(service.dsn), public_key=public) == 0
    assert f"{head} of {head + 1} events are sealed, signed\n" in capsys.readouterr().out
    assert run(settings_for(service.dsn, data_dir=tmp_path)) == 0
    assert f"{head} of {head + 1} events are sealed, signature not checked\n" in capsys.readouterr().out


FLIPS: Sequence[tuple[str, str]] = [
    ("state", "set_byte(state, 0, get_byte(state, 0) # 1)"),
    ("state", "set_byte(state, octet_length(state) - 1, get_byte(state, octet_length(state) - 1) # 128)"),
    ("topic", "topic || ' '"),
    ("recorded_at", "recorded_at + interval '1 us'"),
    ("tenant", "'defaulu'"),
    ("kind", "kind || 'x'"),
    ("queue", "'default\u00e9'"),
    ("originator_id", "gen_random_uuid()"),
    ("originator_version", "originator_version + 1000"),
]


async def test_one_byte_that_a_superuser_flips_is_found_at_its_position(service: Service) -> None:
    """In any column, at the ends of the log and of tiles, and nowhere else."""
    head = await sealed_log(service)
    positions = (1, 2, 256, 257, 300, 512, 513, head - 1, head)
    for position, (column, flipped) in zip(positions, FLIPS, strict=True):
        change = (
            f"update taskledger.task_events set {column} = {flipped} where notification_id = {position}"
        )
        assert execute(service.dsn, change) == 1
    found = [line for line in differences(service.dsn) if "sealed" in line]
    assert found == [f"log: position {p}: the event is not the one that was sealed" for p in positions]


async def test_events_that_changed_places_are_found(service: Service) -> None:
    await sealed_log(service)
    execute(
        service.dsn,
        "update taskledger.task_events set notification_id = 703 - notification_id"
        " where notification_id in (351, 352)",
    )
    found = [line for line in differences(service.dsn) if "sealed" in line]
    assert found == [
        "log: position 351: the event is not the one that was sealed",
        "log: position 352: the event is not the one that was sealed",
    ]


async def test_a_tail_that_was_cut_off_is_found(service: Service) -> None:
    head = await sealed_log(service)
    execute(service.dsn, f"delete from taskledger.task_events where notification_id >= {head}")
    found = differences(service.dsn)
    assert f"log: it ends at position {head - 1}, and {head} events of it were sealed" in found
    assert f"log: position {head}: there is no event, where one was sealed" in found


async def test_a_hole_is_found(service: Service) -> None:
    await sealed_log(service)
    execute(service.dsn, "delete from taskledger.task_events where notification_id = 512")
    assert "log: position 512: there is no event, where one was sealed" in differences(service.dsn)


ALTERED_TREES: Sequence[tuple[str, str]] = [
    (
        (
            "update taskledger_proof.tiles set hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1)"
            " where level = 0 and number = 1"
        ),
        "tree: tile 0/1 is not what the events give",
    ),
    (
        (
            "update taskledger_proof.tiles set hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1)"
            " where level = 0 and number = 3"
        ),
        "tree: tile 0/3 is not what the events give",
    ),
    (
        (
            "update taskledger_proof.tiles set hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1)"
            " where level = 1"
        ),
        "tree: tile 1/0 is not what is below it",
    ),
    (
        "delete from taskledger_proof.tiles where level = 0 and number = 2",
        "tree: tile 0/2 is not what the events give",
    ),
    ("delete from taskledger_proof.tiles where level = 1", "tree: tile 1/0 is not what is below it"),
    (
        (
            "insert into taskledger_proof.tiles"
            " select 0, 77, hashes from taskledger_proof.tiles where level > 0"
        ),
        "tree: tile 0/77 lies beyond its",
    ),
    (
        (
            "insert into taskledger_proof.tiles"
            " select 2, 0, hashes from taskledger_proof.tiles where level > 0"
        ),
        "tree: tile 2/0 lies beyond its",
    ),
    ("delete from taskledger_proof.heads", "events, its newest head 0"),
    ("update taskledger_proof.heads set note = 'x'", "it cannot be read"),
    (
        "update taskledger_proof.heads set note = split_part(note, E'\\n\\n', 1) || E'\\n\\n'",
        "it is not signed with the key at hand",
    ),
    ("update taskledger.checkpoints set position = position - 1 where name = 'sealed'", "its newest head"),
]


@pytest.mark.parametrize(("statement", "difference"), ALTERED_TREES)
async def test_a_tree_that_was_altered_is_found_and_no_event_accused(
    service: Service, statement: str, difference: str
) -> None:
    await sealed_log(service)
    assert execute(service.dsn, statement) > 0
    found = differences(service.dsn)
    assert any(difference in line for line in found), found
    assert not any(line.startswith("log: position") for line in found), found


async def test_a_history_that_was_rewritten_with_its_tree_is_found_by_the_signed_heads(
    service: Service,
) -> None:
    """Whoever owns the database can make everything in it agree, but not sign it."""
    await service.create()
    seal(service.dsn, KEY)
    execute(service.dsn, "update taskledger_proof.heads set hour = hour - interval '1 h'")
    await sealed_log(service)
    seal(service.dsn, KEY)
    head = newest(service.dsn).head.size
    execute(service.dsn, "create table public.heads as select * from taskledger_proof.heads")
    execute(service.dsn, "update taskledger.task_events set tenant = 'other' where notification_id = 300")
    forget_the_tree(service.dsn)
    seal(service.dsn, Key())  # without the key
    assert differences(service.dsn) == [f"head over {head} events: it is not signed with the key at hand"]

    execute(service.dsn, "delete from taskledger_proof.heads")
    execute(service.dsn, "insert into taskledger_proof.heads select * from public.heads")
    (found,) = differences(service.dsn)
    assert f"root is not the tree's; positions 2 to {head} are not what they were" in found


def forget_the_tree(dsn: str) -> None:
    execute(dsn, "truncate taskledger_proof.tiles, taskledger_proof.heads")
    execute(dsn, "delete from taskledger.checkpoints where name = 'sealed'")


async def test_a_head_that_was_kept_elsewhere_finds_a_history_that_was_replaced(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = await sealed_log(service)
    kept = tmp_path / "head.json"
    note = note_of(newest(service.dsn).head, KEY.signer)
    kept.write_bytes(orjson.dumps({"note": note}))
    seal(service.dsn, KEY)
    settings = settings_for(service.dsn, data_dir=tmp_path)
    assert run(settings, head=kept) == 0
    kept.write_text(note)
    assert run(settings, head=kept) == 0

    execute(service.dsn, f"delete from taskledger.task_events where notification_id > {head - 100}")
    forget_the_tree(service.dsn)
    seal(service.dsn)
    capsys.readouterr()
    assert run(settings, head=kept) == 1
    said = capsys.readouterr().out
    assert f"the head that was kept, over {head} events: the tree has only {head - 100}" in said


@pytest.mark.parametrize(("text", "error"), [("{}", ConfigurationError), ("x", MalformedHead)])
def test_a_file_that_holds_no_head_is_refused(
    dsn: str, tmp_path: Path, text: str, error: type[Exception]
) -> None:
    path = tmp_path / "head"
    path.write_text(text)
    with pytest.raises(error):
        run(settings_for(dsn), head=path)
    with pytest.raises(ConfigurationError):
        run(settings_for(dsn), head=tmp_path / "nothing")


async def test_a_forged_kept_head_is_told(service: Service) -> None:
    await sealed_log(service)
    head = newest(service.dsn).head
    forged = Head(head.tag, head.size, EMPTY_ROOT, head.sealed_at)
    note = type(newest(service.dsn)).parse(note_of(forged, Key().signer))
    found = inspect(service.dsn, [KEY.public], note).differences
    assert len(found) == 2
    assert "not signed" in found[0]
    assert "its root is not the tree's" in found[1]


async def test_a_restore_that_was_told_changes_nothing_that_was_sealed(service: Service) -> None:
    """Heads from before carry the log's old tag and hold for what came back."""
    await sealed_log(service)
    kept = newest(service.dsn)
    draw_tag(service.dsn)
    seal(service.dsn, KEY)
    assert newest(service.dsn).head.tag != kept.head.tag
    assert inspect(service.dsn, [KEY.public], kept).differences == []
