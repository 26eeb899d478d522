"""What brings each planted bug to light: a short campaign with the load and the faults that expose it.

Some bugs break no invariant, because another part makes good what they spoil: the sweeper replaces the
entries that they lose, the log refuses what they repeat. Those show by that part's having to act where no
fault gave it reason to; see unprovoked().
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg
from psycopg.rows import TupleRow

from tests.chaos.campaign import Campaign, Outcome, Plan
from tests.chaos.evidence import Evidence, FaultRecord
from tests.chaos.hand import Hand
from tests.chaos.load import Load
from tests.chaos.nemesis import World
from tests.support import wait_until

ENTRY_REPLACED: Final = "entry replaced"
ATTEMPT_LOST: Final = "attempt lost"
LEASE_SECONDS: Final = 1.0
_LOCK: Final = 7311461898370
"""The append function's."""
_WAITING_APPENDS: Final = """
select count(*) from pg_locks
where locktype = 'advisory' and (classid::bigint << 32) + objid::bigint = %s and not granted
"""
_QUEUED: Final = ("TaskCreated", "TaskQueued", "TaskRequeued")


class Short(Plan):
    """Too few tasks to take long to settle."""

    @property
    def allowed_seconds(self) -> float:
        return 20.0


Strike = Callable[["World", "Load"], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    strike: Strike
    plants: dict[str, set[str]]
    """What it brings to light, and by which findings: any of them will do."""
    provoked: frozenset[str] = frozenset()
    """What the faults give reason to."""
    env: dict[str, str] = field(default_factory=dict[str, str])


class Exposure(Campaign):
    """The scenario, with one of its plants or none."""

    def __init__(self, folder: Path, scenario: Scenario, plant: str | None) -> None:
        plan = Short(
            seed=1,
            faults=(),
            lease_seconds=LEASE_SECONDS,
            pace_seconds=0.03,
            plant=plant,
            poison=False,
            snapshot_seconds=0.5,
            env=scenario.env,
        )
        super().__init__(folder, plan)
        self._scenario = scenario

    def _strike_all(self, world: World, load: Load) -> None:
        load.await_progress(30)
        self._scenario.strike(world, load)
        done = FaultRecord("scenario", planned=True, fired=True, at_ns=time.monotonic_ns(), detail="")
        self._faults.append(done)


def findings(scenario: Scenario, outcome: Outcome) -> set[str]:
    """The invariants that do not hold, and what was done without reason."""
    found = {violation.invariant for violation in outcome.verdict.violations}
    return found | (set(unprovoked(outcome.evidence)) - scenario.provoked)


def unprovoked(evidence: Evidence) -> Iterator[str]:
    """Repairs that only certain faults give reason to. HTTP workers of the harness forget some attempts."""
    before: dict[str, str] = {}
    outside: set[str] = set()
    for event in sorted(evidence.log, key=lambda event: event.position):
        if (event.mark or "").startswith("outside"):
            outside.add(event.task)
        if event.type == "TaskQueued" and event.data["reason"] == "lost" and before[event.task] in _QUEUED:
            yield ENTRY_REPLACED
        if event.type == "TaskFailed" and event.data["cause"] == "lost" and event.task not in outside:
            yield ATTEMPT_LOST
        before[event.task] = event.type


def carry_on(world: World, _: Load) -> None:
    world.hold(4)


def pause_a_queue(world: World, load: Load) -> None:
    """Its tasks wait for longer than an entry may be missing; then it is the last to be told of."""
    hand = Hand(load.ground)
    hand.pause("default")
    world.hold(4 * LEASE_SECONDS)
    hand.resume("default")
    load.await_progress(20)
    load.ground.submitting = False
    wait_until(load.settled, "all to settle", within=20)
    hand.pause("idle")


def complete_late(_: World, load: Load) -> None:
    """An attempt whose lease has run out, while the next one runs."""
    hand = Hand(load.ground)
    for _number in range(2):
        hand.submit("outside", hand.mark("outside"), queue="late")
        late, now = hand.claim("late"), hand.claim("late")
        assert (now[0], now[1]) == (late[0], late[1] + 1)
        hand.complete(*late)
        hand.complete(*now)


def kill_a_projector(world: World, load: Load) -> None:
    strike_at(world, "projector-mid-projection")
    world.hold(1)
    load.await_progress(20)


def freeze_projectors(world: World, load: Load) -> None:
    names = [name for name in world.cluster.names if name.startswith("projector")]
    for _ in range(3):
        for name in names:
            world.cluster.suspend(name)
        world.hold(1)
        for name in names:
            world.cluster.resume(name)
        load.await_progress(20)


def flush_redis_without_workers(world: World, load: Load) -> None:
    """The relay makes it whole before a worker makes its groups anew."""
    names = [name for name in world.cluster.names if name.startswith("worker")]
    for name in names:
        world.cluster.hold(name)
        world.cluster.kill(name)
    world.servers.flushall()
    world.hold(2.5)
    for name in names:
        world.cluster.release(name)
    load.await_progress(20)


def kill_workers_before_start(world: World, load: Load) -> None:
    for _ in range(2):
        strike_at(world, "worker-after-read-before-start")
        load.await_progress(20)


def swallow_replies(world: World, load: Load) -> None:
    """Appends that are stored and never answered."""
    hand, proxy = Hand(load.ground), world.servers.postgres_proxy
    for _ in range(5):
        mark, swallowed = hand.mark("mark"), proxy.swallowed
        proxy.swallow_reply(when=mark.encode())
        hand.submit("mark", mark)
        assert proxy.swallowed > swallowed


def freeze_postgres(world: World, load: Load) -> None:
    """While workers are about to start many tasks, for longer than an append may take."""
    hand = Hand(load.ground)
    hand.pause("default")
    world.hold(3)
    hand.resume("default")
    world.hold(0.3 * LEASE_SECONDS)
    world.servers.suspend_postgres()
    world.hold(6.5)
    world.servers.resume_postgres()
    load.await_progress(30)


def send_twins(world: World, load: Load) -> None:
    """One key, two requests at once, two processes. Both wait for a long append to end, and as nobody
    else asks for anything, no earlier request of their own process holds one of them back."""
    load.ground.submitting = False
    wait_until(load.settled, "all to settle", within=20)
    hand = Hand(load.ground)
    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(world.servers.direct_dsn, autocommit=True) as connection,
    ):
        for _ in range(3):
            connection.execute("select pg_advisory_lock(%s)", [_LOCK])
            mark, key = hand.mark("mark"), uuid4().hex
            twins = [pool.submit(hand.submit, "mark", mark, key=key, url=url) for url in (0, 1)]
            wait_until(lambda: _appends_waiting(connection) >= 2, "both to wait")
            connection.execute("select pg_advisory_unlock_all()")
            for twin in twins:
                twin.result()


def _appends_waiting(connection: psycopg.Connection[TupleRow]) -> int:
    row = connection.execute(_WAITING_APPENDS, [_LOCK]).fetchone()
    return 0 if row is None else int(row[0])


def stall_a_worker(world: World, load: Load) -> None:
    """A handler blocks the loop for three leases, beside others."""
    hand = Hand(load.ground)
    for _ in range(6):
        hand.submit("slow", hand.mark("slow"), seconds=1)
    hand.submit("stalling", hand.mark("stalling"), seconds=3 * LEASE_SECONDS)
    world.hold(4 * LEASE_SECONDS)
    load.await_progress(20)


def strike_at(world: World, failpoint: str) -> None:
    world.cluster.failpoints.arm(failpoint)
    wait_until(lambda: world.cluster.failpoints.fired(failpoint), f"{failpoint} to fire", within=20)


_LOST: Final = frozenset({ATTEMPT_LOST})

SCENARIOS: Final[Mapping[str, Scenario]] = {
    "no fault": Scenario(
        carry_on,
        {
            "append-without-lock": {"I7"},
            "streams-trimmed": {ENTRY_REPLACED},
            "fold-ignores-retries": {"I9"},
            "sweeper-off": {"L1"},
            "tenants-unfiltered": {"I13"},
            "entries-kept": {"L4"},
        },
    ),
    "paused queue": Scenario(
        pause_a_queue, {"automatic-entry-ids": {ENTRY_REPLACED}, "topics-filtered": {"L2"}}
    ),
    "late HTTP worker": Scenario(complete_late, {"attempt-unchecked": {"I6"}}),
    "killed projector": Scenario(kill_a_projector, {"view-apart-from-checkpoint": {"I9"}}),
    "frozen projectors": Scenario(freeze_projectors, {"token-against-head": {"I10"}}),
    "flushed Redis": Scenario(
        flush_redis_without_workers, {"group-at-the-end": {ENTRY_REPLACED, "L1"}}, _LOST
    ),
    "worker killed before a start": Scenario(
        kill_workers_before_start, {"settled-before-start": {ENTRY_REPLACED}}, _LOST
    ),
    "swallowed replies": Scenario(swallow_replies, {"conflict-always": {"I2"}}),
    "frozen PostgreSQL": Scenario(freeze_postgres, {"settled-on-timeout": {ENTRY_REPLACED}}),
    "twins": Scenario(send_twins, {"key-before-lock": {"I4"}}),
    "stalled worker": Scenario(stall_a_worker, {"beat-from-the-loop": {ATTEMPT_LOST}}),
}
