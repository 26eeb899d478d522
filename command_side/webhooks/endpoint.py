"""One webhook's deliveries: what is due is sent, a few at a time, and what came of it is recorded.

Each webhook has a loop of its own, so that an endpoint that is slow, or gone, holds up nobody else's. What
was sent and not recorded, as the process was killed in between, is sent again under the same id.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final
from uuid import UUID

from command_side.terms import Outage
from command_side.webhooks.delivery import Parts, attempt, make_messages
from command_side.webhooks.outcomes import endpoint_after
from command_side.webhooks.store import Due, Kept, Result, WebhookStore
from events.deadline import until
from events.errors import Overloaded, SchemaNotReady, Unavailable
from events.webhook_events import DisabledCause, WebhookState
from taskledger.telemetry import get_logger

LOOK_SECONDS: Final = 30.0
"""The follower wakes the loop for what is new; it looks this often anyway."""
LEAVE_SECONDS: Final = 1.0
"""What a last record may take at the end of a term: without it there are more repeats."""

Disable = Callable[[WebhookState, DisabledCause], Awaitable[None]]
"""Appends that the webhook is disabled. Raises Unavailable, Overloaded."""

_logger = get_logger(__name__)


class EndpointLoop:
    def __init__(
        self, kept: Kept, store: WebhookStore, parts: Parts, disable: Disable, database: Outage
    ) -> None:
        self._store = store
        self._parts = parts
        self._disable = disable
        self._database = database
        self._wake = asyncio.Event()
        self._unrecorded: Sequence[Result] = ()
        """Attempts that were made and are not written down: until they are, nothing more is sent, so that a
        database which takes no writes does not make us send the same over and over."""
        self._take(kept)

    def change(self, kept: Kept) -> None:
        """To what an event of the webhook has made of it. A pause is over then."""
        self._take(kept)
        self.wake()

    def wake(self) -> None:
        """There is something new to be delivered."""
        self._wake.set()

    async def run(self) -> None:
        """Until it is cancelled. Attempts that have ended by then are recorded."""
        while True:
            self._wake.clear()
            try:
                wait = await self.turn()
                self._database.is_over()
            except (Unavailable, Overloaded, SchemaNotReady) as error:
                await asyncio.sleep(self._database.goes_on(str(error)))
                continue
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), min(wait, LOOK_SECONDS))

    async def turn(self) -> float:
        """Sends what is due, as much as may be under way at once. Returns how long to wait then."""
        await self._record()
        if (left := self._paused_until - time.monotonic()) > 0:
            return left
        limit = 1 if self._failures else self._parts.concurrency
        found = await self._store.due(self._webhook.id, limit)
        due = [d for d in found if d.wait_seconds <= 0]
        if due:
            await self._deliver(due)
            return 0.0
        return found[0].wait_seconds if found else LOOK_SECONDS

    def _take(self, kept: Kept) -> None:
        self._webhook = kept.state
        self._failures = kept.failures
        self._paused_until = time.monotonic() + kept.paused_seconds

    async def _deliver(self, due: Sequence[Due]) -> None:
        messages = await make_messages(self._parts, self._webhook, due)
        webhook = self._webhook
        attempts = [
            asyncio.create_task(attempt(self._parts, webhook, d, messages.get(d.position))) for d in due
        ]
        try:
            await asyncio.wait(attempts)
        except asyncio.CancelledError:
            await self._leave(attempts)
            raise
        self._unrecorded = [a.result() for a in attempts]
        await self._record()

    async def _leave(self, attempts: Sequence[asyncio.Task[Result]]) -> None:
        self._unrecorded = [a.result() for a in attempts if a.done()]
        for a in attempts:
            a.cancel()
        await asyncio.wait(attempts)
        with (
            until(time.monotonic() + LEAVE_SECONDS),
            contextlib.suppress(Unavailable, Overloaded, SchemaNotReady),
        ):
            await self._record()

    async def _record(self) -> None:
        if not (results := self._unrecorded):
            return
        policy = self._parts.policy
        answers = [result.answer for result in results]
        endpoint = endpoint_after(self._failures, answers, random.random(), policy)  # noqa: S311  jitter
        failing_seconds = await self._store.record(self._webhook.id, results, endpoint)
        self._unrecorded = ()
        if endpoint is None:
            return
        self._failures = endpoint.failures
        self._paused_until = time.monotonic() + endpoint.pause_seconds
        if any(answer.failure == "gone" for answer in answers):
            await self._give_up("gone")
        elif self._failures and failing_seconds >= policy.disable_after_seconds:
            await self._give_up("failing")

    async def _give_up(self, cause: DisabledCause) -> None:
        _logger.warning("webhook disabled", webhook=str(self._webhook.id), cause=cause)
        await self._disable(self._webhook, cause)
        self._paused_until = time.monotonic() + LOOK_SECONDS  # the event ends this loop


Begin = Callable[[Kept], tuple[EndpointLoop, asyncio.Task[None]]]


class EndpointLoops:
    """Those of one term, by webhook."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._loops: dict[UUID, tuple[EndpointLoop, asyncio.Task[None]]] = {}

    def keep(self, kept: Sequence[Kept], changed: Collection[UUID]) -> None:
        """A loop for each of these webhooks, and no other; those that have changed are told."""
        present = {k.state.id: k for k in kept}
        for webhook in self._loops.keys() - present.keys():
            self._loops.pop(webhook)[1].cancel()
        for webhook, k in present.items():
            if webhook not in self._loops:
                self._loops[webhook] = self._begin(k)
            elif webhook in changed:
                self._loops[webhook][0].change(k)

    def wake(self, webhooks: Iterable[UUID]) -> None:
        for webhook in webhooks:
            if webhook in self._loops:
                self._loops[webhook][0].wake()
