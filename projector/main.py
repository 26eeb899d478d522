"""`taskledger projector`."""

import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from threading import Event
from types import FrameType

from projector.keeper import Keeper
from projector.kept import of_tally
from projector.runner import Projector
from projector.tally import load_tallies
from taskledger.health import Health, health_server
from taskledger.lifecycle import spare_collector
from taskledger.settings import Settings


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT; the batch under way is finished first. Raises ConfigurationError when
    no database is configured, a projection cannot be loaded, or the health port cannot be had."""
    stop = Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    dsn = settings.require_postgres()
    projector = Projector(dsn)
    others = [Projector(dsn, of_tally(tally)) for tally in load_tallies(settings.projections)]
    keeper = Keeper(dsn)
    spare_collector()
    with health_server(settings.health, lambda: _health([projector, *others])), _beside(others, stop):
        keeper.start()
        projector.run(stop)
        keeper.stop()


@contextmanager
def _beside(projectors: Sequence[Projector], stop: Event) -> Generator[None]:
    """Each on a thread and on connections of its own: none waits for another."""
    threads = [threading.Thread(target=p.run, args=(stop,), name="projector") for p in projectors]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _health(projectors: Sequence[Projector]) -> Health:
    statuses = [projector.status() for projector in projectors]
    missing = [s.waiting_for for s in statuses if not s.ready and s.waiting_for is not None]
    return Health(all(projector.heartbeat.alive() for projector in projectors), tuple(missing))
