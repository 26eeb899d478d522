"""When a holder is dead. Times are made up: nothing waits here."""

from command_side.dispatcher.leases import Beat, HolderWatch

LEASE = 15.0


class Looks:
    """A sweeper that looks each half second, over holders whose counters a test sets."""

    def __init__(self) -> None:
        self.watch = HolderWatch(LEASE, 0.5)
        self.now = 100.0
        self.holders: dict[str, Beat | None] = {}

    def once(self, *, took: float = 0.0) -> set[str]:
        self.now += 0.5
        started = self.now
        self.now += took
        return self.watch.observe(started, self.now, self.holders)

    def lasting(self, seconds: float) -> set[str]:
        """Everybody found dead meanwhile."""
        dead: set[str] = set()
        until = self.now + seconds
        while self.now < until:
            dead |= self.once()
        return dead


def beat(counter: int, lease_seconds: float = LEASE) -> Beat:
    return Beat(counter, lease_seconds)


def test_a_silent_holder_is_dead_after_its_lease_and_not_before() -> None:
    looks = Looks()
    looks.holders["h"] = beat(1)
    assert looks.lasting(LEASE) == set()
    assert looks.lasting(1) == {"h"}


def test_a_holder_that_renews_is_never_dead() -> None:
    looks = Looks()
    for counter in range(20):
        looks.holders["h"] = beat(counter)
        assert looks.lasting(LEASE - 1) == set()


def test_a_missing_lease_counts_as_silence() -> None:
    looks = Looks()
    looks.holders["h"] = None
    assert looks.lasting(LEASE) == set()
    assert looks.lasting(1) == {"h"}


def test_a_lease_that_vanishes_gives_its_holder_the_same_time_again() -> None:
    looks = Looks()
    looks.holders["h"] = beat(1)
    looks.lasting(LEASE - 1)
    looks.holders["h"] = None
    assert looks.lasting(LEASE) == set()
    looks.holders["h"] = beat(1)
    assert looks.lasting(LEASE) == set(), "it came back, with the counter it had"
    assert looks.lasting(1) == {"h"}


def test_a_holder_has_the_time_that_its_own_lease_says() -> None:
    looks = Looks()
    looks.holders.update(short=beat(1, 2.0), long=beat(1, 60.0))
    assert looks.lasting(3) == {"short"}
    assert looks.lasting(50) == {"short"}
    assert looks.lasting(10) == {"short", "long"}


def test_a_long_lease_that_vanishes_stays_long() -> None:
    looks = Looks()
    looks.holders["h"] = beat(1, 60.0)
    looks.lasting(10)
    looks.holders["h"] = None
    assert looks.lasting(59) == set()


def test_a_pause_of_the_database_takes_nothing_away() -> None:
    looks = Looks()
    looks.holders["h"] = beat(1)
    looks.lasting(LEASE - 1)
    assert looks.once(took=60) == set(), "the look itself hung; the holder could not renew either"
    assert looks.lasting(LEASE - 1) == set()
    looks.holders["h"] = beat(2)
    assert looks.lasting(LEASE - 1) == set()


def test_a_frozen_dispatcher_takes_nothing_away() -> None:
    looks = Looks()
    looks.holders["h"] = beat(1)
    looks.lasting(LEASE - 1)
    looks.now += 60
    assert looks.once() == set()
    assert looks.lasting(LEASE - 1) == set()
    assert looks.lasting(2) == {"h"}


def test_a_failed_look_begins_the_wait_anew() -> None:
    looks = Looks()
    looks.holders["h"] = beat(1)
    looks.lasting(LEASE - 1)
    looks.watch.restart()
    assert looks.lasting(LEASE) == set()
    assert looks.lasting(1) == {"h"}


def test_a_gap_that_a_long_lease_bears_restarts_a_short_one() -> None:
    looks = Looks()
    looks.holders.update(short=beat(1, 3.0), long=beat(1, LEASE))
    looks.lasting(2.5)
    looks.now += 2
    assert looks.once() == set()
    assert looks.lasting(LEASE - 5) == {"short"}
    assert looks.lasting(1) == {"short", "long"}, "for the long one nothing was interrupted"


def test_only_holders_that_matter_are_remembered() -> None:
    looks = Looks()
    looks.holders["h"] = beat(1)
    looks.lasting(LEASE - 1)
    looks.holders.clear()
    looks.once()
    looks.holders["h"] = beat(1)
    assert looks.lasting(LEASE) == set()
