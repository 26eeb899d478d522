from uuid import UUID

import pytest

from events.ids import as_uuid, new_task_id, new_uid, parse_task_id, queue_id

SOME_ID = "0199d1a0-7c1e-7abc-8def-0123456789ab"


def test_task_ids_are_uuid7_and_rise() -> None:
    ids = [new_task_id() for _ in range(1_000)]
    assert {i.version for i in ids} == {7}
    assert ids == sorted(ids)
    assert len(set(ids)) == 1_000


def test_the_id_of_a_queue_is_fixed_for_ever() -> None:
    # Every stored log holds ids derived this way: this value must never change.
    assert queue_id("default", "default") == UUID("25589453-9001-52e5-bad3-84f5a548d130")


def test_queues_of_other_tenants_are_other_queues() -> None:
    ids = {queue_id(tenant, queue) for tenant in ("a", "b") for queue in ("x", "y")}
    assert len(ids) == 4
    assert queue_id("a", "x") == queue_id("a", "x")


def test_uids_are_short_and_never_the_same() -> None:
    uids = {new_uid() for _ in range(1_000)}
    assert len(uids) == 1_000
    assert {len(uid) for uid in uids} == {16}


def test_the_canonical_spelling_of_a_task_id() -> None:
    assert parse_task_id(SOME_ID) == UUID(SOME_ID)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        SOME_ID.upper(),
        SOME_ID.replace("-", ""),
        f"{{{SOME_ID}}}",
        f"urn:uuid:{SOME_ID}",
        f" {SOME_ID}",
        SOME_ID[:-1],
        f"{SOME_ID[:-1]}g",
        f"{SOME_ID[:-1]}\n",
        SOME_ID.replace("-", "0"),
        "-" * 36,
    ],
)
def test_any_other_spelling_is_none(text: str) -> None:
    assert parse_task_id(text) is None


def test_the_librarys_ids_become_uuids() -> None:
    assert as_uuid(SOME_ID) == UUID(SOME_ID)
    assert as_uuid(UUID(SOME_ID)) == UUID(SOME_ID)
    with pytest.raises(ValueError, match="badly formed"):
        as_uuid("x")
