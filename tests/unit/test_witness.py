"""What a process remembers of its log."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from events.errors import LogRewound
from events.witness import Witness

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
LATER = FIRST + timedelta(seconds=1)


def look(witness: Witness, head: int, at: datetime | None, seen: datetime | None, tag: str = "a") -> str:
    row: tuple[Any, ...] = (tag, head, at, seen)
    return witness.check(row, witness.mark())


def seen(head: int, at: datetime) -> Witness:
    witness = Witness()
    look(witness, head, at, None)
    assert witness.mark().parameters == {"seen": head}
    return witness


def test_a_log_that_grows_is_the_same() -> None:
    witness = Witness()
    assert look(witness, 0, None, None) == "a"
    assert look(witness, 5, FIRST, None) == "a"
    assert look(witness, 9, LATER, FIRST) == "a"
    assert witness.mark().parameters == {"seen": 9}


def test_what_we_stored_or_read_counts() -> None:
    witness = seen(5, FIRST)
    witness.saw(7, LATER)
    with pytest.raises(LogRewound, match="ends at 6, and its event 7 has been seen"):
        look(witness, 6, LATER, None)


def test_an_answer_that_is_older_than_what_we_saw_meanwhile_says_nothing() -> None:
    witness = seen(5, FIRST)
    mark = witness.mark()
    witness.saw(7, LATER)
    assert witness.check(("a", 6, LATER, FIRST), mark) == "a"
    assert witness.mark().parameters == {"seen": 7}


def test_a_log_that_lost_its_end_is_refused_even_when_it_has_grown_again() -> None:
    witness = seen(5, FIRST)
    with pytest.raises(LogRewound, match=r"ends at 3.*taskledger restored"):
        look(witness, 3, FIRST, None)
    with pytest.raises(LogRewound, match="ends at 3"):
        look(witness, 9, LATER, FIRST)


def test_another_event_in_its_place_is_noticed() -> None:
    witness = seen(5, FIRST)
    with pytest.raises(LogRewound, match="event 5 is not the one"):
        look(witness, 9, LATER, LATER)


def test_a_new_tag_begins_anew() -> None:
    witness = seen(5, FIRST)
    witness.condemn("told so")
    with pytest.raises(LogRewound, match="told so"):
        look(witness, 6, LATER, FIRST)
    assert look(witness, 2, FIRST, None, tag="b") == "b"
    assert look(witness, 3, LATER, FIRST, tag="b") == "b"
