"""The loop that takes work in: entries for the slots that are free, started in the log, handed on."""

import asyncio
from collections.abc import Sequence
from typing import Final

from redis.exceptions import RedisError

from command_side.worker.consumer import Consumer, is_group_lost
from command_side.worker.leases import Pair, Renewal, Renewed
from command_side.worker.outage import Outage
from command_side.worker.runner import Runner
from command_side.worker.starter import Started, Starter
from command_side.worker.streams import Backlog, Entry
from command_side.worker.unless import unless
from events.deadline import pauses
from events.errors import TaskledgerError
from events.ids import DEFAULT_TENANT
from taskledger.telemetry import get_logger

_logger = get_logger(__name__)

_LEAVE_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.1
"""How often an intake that may not start anything looks whether it may again."""


class Intake:
    def __init__(
        self,
        consumer: Consumer,
        starter: Starter,
        runner: Runner,
        renewal: Renewal,
        *,
        queues: Sequence[str],
        redis_outage: Outage,
        database_outage: Outage,
    ) -> None:
        self._consumer = consumer
        self._starter = starter
        self._runner = runner
        self._renewal = renewal
        self._queues = queues
        self._redis_outage = redis_outage
        self._database_outage = database_outage
        self._backlog = Backlog()
        self._paused: set[Pair] = set()
        self._joined = False
        self._pauses = pauses()

    def pairs(self) -> list[Pair]:
        """The (tenant, queue) pairs whose pauses matter here. Called by the renewal thread."""
        return list({*((DEFAULT_TENANT, queue) for queue in self._queues), *self._backlog.paused})

    def observe(self, renewed: Renewed) -> None:
        """Pauses as of the last renewal."""
        self._paused = renewed.paused
        self._backlog.resume(renewed.paused)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. What has been taken in by then is started, or stays pending in Redis."""
        while not stop.is_set():
            if self._runner.free <= 0:
                await unless(stop, self._runner.wait_free())
            if stop.is_set():
                return
            if not self._renewal.fresh:
                await unless(stop, asyncio.sleep(_LOOK_SECONDS))
                continue
            try:
                await self._round(stop)
            except (RedisError, OSError) as error:
                await self._redis_failed(error, stop)
            except TaskledgerError as error:
                self._database_outage.goes_on(f"{type(error).__name__}: {error}")
                await unless(stop, asyncio.sleep(next(self._pauses)))

    async def leave(self) -> None:
        """Gives up this process's place in the group, if Redis can be reached."""
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._consumer.leave()
        except (RedisError, OSError, TimeoutError) as error:
            _logger.info("consumer left behind", reason=type(error).__name__)

    async def _round(self, stop: asyncio.Event) -> None:
        if not self._joined:
            self._backlog.add(await self._consumer.join())
            self._joined = True
        await self._fill(stop)
        self._redis_outage.over()
        entries = self._backlog.take(self._runner.free)
        if not entries:
            return
        try:
            started = await self._starter.start(entries)
        except BaseException:
            self._backlog.retry(entries)
            raise
        self._database_outage.over()
        self._pauses = pauses()
        self._hand_on(started)
        await asyncio.sleep(0)  # handlers begin first
        await self._consumer.settle(started.settled)

    def _hand_on(self, started: Started) -> None:
        for attempt in started.attempts:
            self._runner.start(attempt)
        self._backlog.settle(started.settled)
        for (tenant, queue), entry in started.aside:
            self._backlog.set_aside(tenant, queue, entry)
        self._paused = self._paused | started.paused

    async def _fill(self, stop: asyncio.Event) -> None:
        """Reads until there is something to start, or for one blocking read."""
        paused = {queue for tenant, queue in self._paused if tenant == DEFAULT_TENANT}
        await self._consumer.forget_dead()
        self._backlog.add(await self._consumer.claim(self._runner.free - self._backlog.ready, paused))
        missing = self._runner.free - self._backlog.ready
        if missing > 0:
            self._backlog.add(await self._consumer.read(missing, paused))
        if not self._backlog.ready:
            # Cancelled by `stop`: what a lost reply held stays pending, and others claim it.
            found: list[Entry] | None = await unless(stop, self._consumer.wait(missing, paused))
            self._backlog.add(found or [])

    async def _redis_failed(self, error: Exception, stop: asyncio.Event) -> None:
        """After any error the group may be gone and replies lost: join again."""
        self._joined = False
        if is_group_lost(error):
            _logger.warning("consumer group lost: Redis was emptied")
        else:
            self._redis_outage.goes_on(f"{type(error).__name__}: {error}")
        await unless(stop, asyncio.sleep(next(self._pauses)))
