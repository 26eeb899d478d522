"""The database's clock, as a process far from it knows it."""

from datetime import timedelta

import pytest

from command_side.clock import KEPT_SECONDS, DatabaseClock
from tests.unit.aggregate import NOW


class Local:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_it_is_unknown_before_it_was_read() -> None:
    clock = DatabaseClock()
    assert not clock.known
    with pytest.raises(RuntimeError):
        clock.now()


def test_it_runs_on_from_what_the_database_told() -> None:
    local = Local()
    clock = DatabaseClock(local)
    clock.observe(NOW)
    local.time += 2.5
    assert clock.now() == NOW + timedelta(seconds=2.5)


def test_a_reply_that_took_long_does_not_set_it_back() -> None:
    local = Local()
    clock = DatabaseClock(local)
    clock.observe(NOW)
    local.time += 3
    clock.observe(NOW + timedelta(seconds=1))
    assert clock.now() == NOW + timedelta(seconds=3)


def test_a_reply_that_came_faster_sets_it_forward() -> None:
    local = Local()
    clock = DatabaseClock(local)
    clock.observe(NOW)
    clock.observe(NOW + timedelta(seconds=1))
    assert clock.now() == NOW + timedelta(seconds=1)


def test_a_database_that_was_set_back_is_believed_after_a_while() -> None:
    local = Local()
    clock = DatabaseClock(local)
    clock.observe(NOW + timedelta(hours=1))
    local.time += KEPT_SECONDS + 1
    clock.observe(NOW)
    assert clock.now() == NOW
