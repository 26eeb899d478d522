"""Every fault a campaign knows, by name. Each is struck, held and healed by one call, and says whom it hit.

A fault that found nobody to hit raises MissedError: a campaign without it proves less than it says.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from signal import SIGKILL
from typing import Final

from tests.chaos.cluster import Cluster
from tests.chaos.collect import Death
from tests.chaos.failpoints import FAILPOINTS
from tests.chaos.proxy import Proxy
from tests.chaos.servers import Servers
from tests.support import wait_until

KINDS: Final = ("command-api", "query-api", "dispatcher", "projector", "worker")
SESSION_SECONDS: Final = 5.0
"""After which PostgreSQL ends the session of a leader that fell silent."""
REBUILT_WITHIN_SECONDS: Final = 300.0
"""Under load, of a log that grows for as long as the campaign lasts."""
FIRES_WITHIN_SECONDS: Final = 20.0


class MissedError(AssertionError):
    """A planned fault met nobody."""


@dataclass(slots=True)
class World:
    """What there is to break. One thread strikes."""

    servers: Servers
    cluster: Cluster
    random: random.Random
    lease_seconds: float
    deaths: list[Death] = field(default_factory=list[Death])
    """Of workers."""

    def pick(self, kind: str) -> str:
        return self.random.choice([name for name in self.cluster.names if name.startswith(kind)])

    def hold(self, seconds: float) -> None:
        threading.Event().wait(seconds)


Nemesis = Callable[[World], str]


def kill(kind: str, world: World) -> str:
    name = world.pick(kind)
    world.cluster.kill(name)
    if kind == "worker":
        world.deaths.append(Death(name, time.time(), calm=False))
    return name


def kill_in_calm(world: World) -> str:
    """A worker dies, and nothing else happens until its tasks have long been given to others."""
    name = _ready(world, "worker")
    world.cluster.kill(name)
    world.deaths.append(Death(name, time.time(), calm=True))
    world.hold(1.5 * world.lease_seconds + 5)
    return name


def freeze(kind: str, world: World) -> str:
    """SIGSTOP for longer than whatever others wait for it, then SIGCONT."""
    name = world.pick(kind)
    lengths = {"worker": 1.6 * world.lease_seconds + 1, "dispatcher": 1.3 * SESSION_SECONDS}
    lengths["projector"] = lengths["dispatcher"]
    world.cluster.suspend(name)
    world.hold(lengths.get(kind, 2.0))
    world.cluster.resume(name)
    return name


def _ready(world: World, kind: str) -> str:
    """One that has work to leave behind."""
    name = world.pick(kind)
    wait_until(lambda: world.cluster.ready(name), f"{name} to be ready", within=30)
    return name


def _told_to_stop(kind: str, world: World) -> tuple[str, int | None]:
    name = _ready(world, kind)
    return name, world.cluster.terminate(name, within=20)


def terminate(kind: str, world: World) -> str:
    name, code = _told_to_stop(kind, world)
    if code == -SIGKILL and kind == "worker":  # a poison task was faster than we were: no answer
        name, code = _told_to_stop(kind, world)
    if code != 0:
        raise AssertionError(f"{name} ended with {code} after SIGTERM:\n{world.cluster.said(name)[-2000:]}")
    return name


def fail_at(point: str, world: World) -> str:
    """The next process to pass the border dies there."""
    failpoints, (command, *_) = world.cluster.failpoints, FAILPOINTS[point].commands
    before = world.cluster.restarts
    failpoints.arm(point)
    if command == "rebuild":
        world.cluster.run("rebuild", within=REBUILT_WITHIN_SECONDS)
    try:
        if point.startswith("shutdown-"):
            _stop_until(lambda: failpoints.fired(point), command, world)
        wait_until(lambda: failpoints.fired(point), f"{point} to fire", within=FIRES_WITHIN_SECONDS)
    except AssertionError as error:
        failpoints.disarm(point)
        raise MissedError(f"{point}: nobody passed") from error
    if command == "rebuild":
        done = world.cluster.run("rebuild", "--prune", within=REBUILT_WITHIN_SECONDS)
        if done.returncode != 0:
            raise AssertionError(f"the rebuild after one that was killed said:\n{done.stdout}{done.stderr}")
        return command
    return _fallen(world, before)


def _stop_until(fired: Callable[[], bool], kind: str, world: World) -> None:
    """Tells one to stop, and another when something else ended it on its way, such as a task that kills."""
    deadline = time.monotonic() + FIRES_WITHIN_SECONDS
    while time.monotonic() < deadline and not fired():
        _stop(fired, _ready(world, kind), world)


def _stop(fired: Callable[[], bool], name: str, world: World) -> None:
    before = world.cluster.restarts[name]
    world.cluster.terminate(name)
    wait_until(
        lambda: fired() or world.cluster.restarts[name] > before,
        f"the end of {name}",
        within=FIRES_WITHIN_SECONDS,
    )


def _fallen(world: World, before: Mapping[str, int]) -> str:
    """Who ended since then."""

    def found() -> list[str]:
        return [name for name, count in world.cluster.restarts.items() if count > before[name]]

    names: list[str] = wait_until(found, "the end of a process")
    killed = [Death(name, time.time(), calm=False) for name in names if name.startswith("worker")]
    world.deaths.extend(killed)
    return ", ".join(names)


def proxied(server: str, act: Callable[[Proxy], None], seconds: float, world: World) -> str:
    proxy = world.servers.postgres_proxy if server == "postgres" else world.servers.redis_proxy
    try:  # after another fault, clients come back after a pause
        struck: int = wait_until(
            lambda: proxy.connections, f"connections to {server}", within=FIRES_WITHIN_SECONDS
        )
    except AssertionError as error:
        raise MissedError(f"nobody is connected to {server}") from error
    act(proxy)
    try:
        world.hold(seconds)
    finally:
        proxy.heal()
    return f"{struck} connections"


def swallow(server: str, requests: tuple[bytes, ...], world: World) -> str:
    """A request is carried out and its reply never arrives."""
    proxy = world.servers.postgres_proxy if server == "postgres" else world.servers.redis_proxy
    before, request = proxy.swallowed, world.random.choice(requests)
    proxy.swallow_reply(when=request)
    try:
        wait_until(lambda: proxy.swallowed > before, "a reply to swallow", within=FIRES_WITHIN_SECONDS)
    except AssertionError as error:
        raise MissedError(f"no {request!r} was sent to {server}") from error
    finally:
        proxy.heal()
    return request.decode()


def flush_redis(world: World) -> str:
    world.servers.flushall()
    return "FLUSHALL"


def kill_redis(world: World) -> str:
    world.servers.kill_valkey()
    world.hold(0.5)
    world.servers.start_valkey()
    return "SIGKILL"


def empty_redis(world: World) -> str:
    world.servers.empty_valkey()
    return "without its files"


def roll_back_redis(world: World) -> str:
    world.servers.save_valkey()
    world.hold(1.5)
    world.servers.roll_back_valkey()
    return "1.5 s back"


def freeze_redis(world: World) -> str:
    world.servers.suspend_valkey()
    world.hold(2)
    world.servers.resume_valkey()
    return "2 s"


def crash_postgres(world: World) -> str:
    world.servers.crash_postgres()
    world.hold(0.5)
    world.servers.start_postgres()
    return "immediate stop"


def kill_backend(world: World) -> str:
    return f"backend {world.servers.kill_backend()}"


def freeze_postgres(world: World) -> str:
    seconds = 2 * world.lease_seconds if world.lease_seconds < SESSION_SECONDS else SESSION_SECONDS
    world.servers.suspend_postgres()
    world.hold(seconds)
    world.servers.resume_postgres()
    return f"{seconds} s"


def _on_the_wire(server: str) -> dict[str, Nemesis]:
    faults: dict[str, tuple[Callable[[Proxy], None], float]] = {
        "delay": (lambda proxy: proxy.delay(0.03), 2.0),
        "slices": (lambda proxy: proxy.slice(), 1.5),
        "black-hole": (lambda proxy: proxy.black_hole(), 2.5),
        "unheard": (lambda proxy: proxy.black_hole(to_client=False), 2.0),
        "unanswered": (lambda proxy: proxy.black_hole(to_server=False), 2.0),
        "reset": (lambda proxy: proxy.reset(), 0.7),
        "cut": (lambda proxy: proxy.cut_after(1_500), 1.5),
    }
    return {
        f"{server}-{name}": partial(proxied, server, act, seconds)
        for name, (act, seconds) in faults.items()
    }


NEMESES: Final[Mapping[str, Nemesis]] = {
    **{f"kill-{kind}": partial(kill, kind) for kind in KINDS},
    "kill-worker-in-calm": kill_in_calm,
    **{f"freeze-{kind}": partial(freeze, kind) for kind in KINDS},
    **{f"terminate-{kind}": partial(terminate, kind) for kind in KINDS},
    **{f"at-{point}": partial(fail_at, point) for point in FAILPOINTS},
    **_on_the_wire("postgres"),
    **_on_the_wire("redis"),
    "postgres-reply-to-append": partial(swallow, "postgres", (b"api-append",)),
    "postgres-reply-to-worker": partial(swallow, "postgres", (b"worker-append",)),
    "redis-reply": partial(swallow, "redis", (b"EVALSHA", b"XREADGROUP", b"XACK")),
    "redis-flushed": flush_redis,
    "redis-killed": kill_redis,
    "redis-emptied": empty_redis,
    "redis-rolled-back": roll_back_redis,
    "redis-frozen": freeze_redis,
    "postgres-crashed": crash_postgres,
    "postgres-backend-killed": kill_backend,
    "postgres-frozen": freeze_postgres,
}


def deal(seed: int, hands: int) -> list[list[str]]:
    """All faults, shuffled, dealt into as many hands: together they hold each once."""
    names = sorted(NEMESES)
    random.Random(seed).shuffle(names)
    return [names[hand::hands] for hand in range(hands)]
