"""The eventsourcing library's subscription over our log: woken by NOTIFY, and polling all the same."""

import logging
from collections.abc import Sequence
from threading import Event, Thread
from typing import Any, Final

import psycopg
from eventsourcing.persistence import (
    ApplicationRecorder,
    ListenNotifySubscription,
    OperationalError,
)

from events.connections import Connect
from events.statements import LOG_CHANNEL

POLL_SECONDS: Final = 1.0
"""A notification can be lost without a sign, with the connection or in a pooler: it is only a hint."""
_STOP_CHECK_SECONDS: Final = 0.1
_RECONNECT_SECONDS: Final = 0.5

_logger = logging.getLogger(__name__)


class LogSubscription(ListenNotifySubscription[ApplicationRecorder]):
    """Goes on through a lost database: it waits, says so in the log, and misses nothing.

    Two threads, which end with stop(): one reads the log, one listens. Leaving the `with` block
    waits for them, at most for a read's deadline.
    """

    def __init__(
        self, recorder: ApplicationRecorder, connect: Connect, gt: int | None, topics: Sequence[str]
    ) -> None:
        self._connect = connect
        self._stopping = Event()
        super().__init__(recorder, gt=gt, topics=topics)
        self._listen_thread = Thread(target=self._listen, name="log-listener")
        self._listen_thread.start()

    def __exit__(self, *args: object, **kwargs: Any) -> None:
        try:
            super().__exit__(*args, **kwargs)
        finally:
            self._listen_thread.join()

    def stop(self) -> None:
        self._stopping.set()
        super().stop()

    def _loop_on_pull(self) -> None:
        try:
            while not self._has_been_stopped:
                self._pull()
                self._has_been_notified.wait(POLL_SECONDS)
        except BaseException as error:  # noqa: BLE001  raised by the iterator instead: see __next__
            self._thread_error = error
            self.stop()

    def _pull(self) -> None:
        try:
            super()._pull()
        except OperationalError as error:
            _logger.warning("subscription: cannot read the log, trying again: %s", error)

    def _listen(self) -> None:
        while not self._has_been_stopped:
            try:
                self._hear()
            except psycopg.Error as error:
                _logger.warning("subscription: cannot listen, polling: %s", type(error).__name__)
                self._stopping.wait(_RECONNECT_SECONDS)

    def _hear(self) -> None:
        with self._connect() as connection:
            connection.execute(f"listen {LOG_CHANNEL}")
            self._has_been_notified.set()  # for what was appended before we listened
            while not self._has_been_stopped:
                for _ in connection.notifies(timeout=_STOP_CHECK_SECONDS, stop_after=1):
                    self._has_been_notified.set()
