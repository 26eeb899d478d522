"""`taskledger projector`."""

import signal
from threading import Event
from types import FrameType

from projector.keeper import Keeper
from projector.runner import Projector
from taskledger.health import Health, health_server
from taskledger.lifecycle import spare_collector
from taskledger.settings import Settings


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT; the batch under way is finished first. Raises ConfigurationError when
    no database is configured, or the health port cannot be had."""
    stop = Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    projector = Projector(settings.require_postgres())
    keeper = Keeper(settings.require_postgres())
    spare_collector()
    with health_server(settings.health, lambda: _health(projector)):
        keeper.start()
        projector.run(stop)
        keeper.stop()


def _health(projector: Projector) -> Health:
    status = projector.status()
    missing = () if status.ready or status.waiting_for is None else (status.waiting_for,)
    return Health(projector.heartbeat.alive(), missing)
