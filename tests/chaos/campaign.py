"""One campaign: servers, processes, clients, observers, faults in a seeded order, and the verdict."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.chaos import collect
from tests.chaos.checker import Verdict, check
from tests.chaos.cluster import Cluster
from tests.chaos.evidence import Drained, Evidence, FaultRecord
from tests.chaos.handlers import effects
from tests.chaos.history import read_history
from tests.chaos.load import Footprint, Load, create_foreign_tasks
from tests.chaos.nemesis import NEMESES, MissedError, World
from tests.chaos.observers import photograph
from tests.chaos.servers import FAST, Servers
from tests.support import wait_until


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    faults: Iterable[str]
    """Names of NEMESES. May be endless: `until` ends it."""
    lease_seconds: float = 1.5
    pace_seconds: float = 0.04
    until: float = float("inf")
    """Monotonic seconds after which no further fault is struck."""
    copies: Mapping[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("command-api", "query-api", "dispatcher", "projector", "worker"), 2
        )
    )
    plant: str | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    poison: bool = True
    snapshot_seconds: float = 2.0

    @property
    def allowed_seconds(self) -> float:
        """For a task in flight to settle after the last heal: a poison task is lost twice before it is
        dead, the second time alone, and what else was in flight waits behind those that run alone."""
        return 40 + 6 * self.lease_seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    evidence: Evidence
    verdict: Verdict
    seconds: float
    takeovers: list[float]
    """Seconds from a worker's death to the next start of each task it ran, while all else was well."""
    stormy_takeovers: list[float]
    """The same, when other faults struck meanwhile."""
    verified: str
    """What `taskledger verify` had to say; empty if it found nothing."""

    @property
    def passed(self) -> bool:
        return self.verdict.passed and not self.verified


class Campaign:
    """`say` is told what happens as it does."""

    def __init__(self, folder: Path, plan: Plan, say: Callable[[str], None] = lambda _: None) -> None:
        self._folder = folder
        self._plan = plan
        self._say = say
        self._faults: list[FaultRecord] = []

    def run(self) -> Outcome:
        began = time.monotonic()
        folder, plan = self._folder, self._plan
        with ExitStack() as stack:
            servers = stack.enter_context(Servers(folder, postgres=FAST))
            cluster = stack.enter_context(
                Cluster(
                    folder / "cluster",
                    dsn=servers.dsn,
                    redis_url=servers.redis_url,
                    copies=plan.copies,
                    lease_seconds=plan.lease_seconds,
                    env=plan.env,
                    plant=plan.plant,
                )
            )
            foreign = asyncio.run(create_foreign_tasks(servers.direct_dsn))
            before = Footprint.of(servers, cluster)
            world = World(servers, cluster, random.Random(plan.seed), plan.lease_seconds)
            with Load(
                folder / "history.jsonl",
                servers.direct_dsn,
                cluster,
                seed=plan.seed,
                pace_seconds=plan.pace_seconds,
                snapshot_seconds=plan.snapshot_seconds,
                poison=plan.poison,
            ) as load:
                self._say("under load")
                self._strike_all(world, load)
                drained = self._drain(world, load, before)
            return self._judge(world, load, drained, foreign, began)

    def _strike_all(self, world: World, load: Load) -> None:
        load.await_progress(60)
        for name in self._plan.faults:
            if time.monotonic() > self._plan.until:
                return
            self._strike(world, name)
            load.await_progress(30 + 2 * self._plan.lease_seconds)

    def _strike(self, world: World, name: str) -> None:
        at, fired = time.monotonic_ns(), True
        try:
            detail = NEMESES[name](world)
        except MissedError as error:
            fired, detail = False, str(error)
        self._faults.append(FaultRecord(name, planned=True, fired=fired, at_ns=at, detail=detail))
        self._say(f"{name}: {detail}" if fired else f"{name} DID NOT FIRE: {detail}")

    def _drain(self, world: World, load: Load, before: Footprint) -> Drained:
        """The clients submit no more; everything there is settles. Then they stop, too."""
        healed = time.monotonic_ns()
        load.ground.submitting = False
        try:
            wait_until(load.settled, "all to settle", within=self._plan.allowed_seconds)
            settled: int | None = time.monotonic_ns()
        except AssertionError:
            settled = None
        # Entries of tasks that were cancelled stay until somebody reads them, or those of the dead.
        leases = 30 + 3 * self._plan.lease_seconds
        with suppress(AssertionError):  # the checker tells what is left
            wait_until(partial(_streams_are_empty, world.servers), "the streams to be empty", within=leases)
        load.finish()
        after = Footprint.of(world.servers, world.cluster)
        pending, lengths = collect.read_streams(world.servers.direct_redis_url)
        return Drained(
            open_tasks=load.open_tasks(),
            lag=load.lag(),
            pending=pending,
            stream_lengths=lengths,
            connections={
                name: (before.connections.get(name, 0), after.connections.get(name, 0))
                for name in {*before.connections, *after.connections}
            },
            fds={name: (count, after.fds.get(name, 0)) for name, count in before.fds.items()},
            last_heal_ns=healed,
            settled_ns=settled,
            allowed_seconds=self._plan.allowed_seconds,
            lease_seconds=self._plan.lease_seconds,
        )

    def _judge(
        self, world: World, load: Load, drained: Drained, foreign: set[str], began: float
    ) -> Outcome:
        dsn = world.servers.direct_dsn
        log, positions = collect.read_log(dsn)
        if (last := photograph(dsn)) is not None:
            load.camera.snapshots.append(last)
        evidence = Evidence(
            history=read_history(load.history),
            log=log,
            positions=positions,
            keys=collect.read_keys(dsn),
            tailers={tailer.name: tailer.positions for tailer in load.tailers},
            tenant_tailers=frozenset({load.feed.name}),
            snapshots=load.camera.snapshots,
            effects=effects(world.cluster.effects_file),
            faults=self._faults,
            drained=drained,
            foreign_ids=foreign,
            seen_ids=load.ground.seen_ids | load.feed.seen_ids,
        )
        calm, stormy = (collect.takeovers(dsn, world.deaths, calm=calm) for calm in (True, False))
        done = world.cluster.run("verify", within=600)
        verified = done.stdout + done.stderr if done.returncode else ""
        return Outcome(evidence, check(evidence), time.monotonic() - began, calm, stormy, verified)


def _streams_are_empty(servers: Servers) -> bool:
    return not any(collect.read_streams(servers.direct_redis_url)[1].values())
