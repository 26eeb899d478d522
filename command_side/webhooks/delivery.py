"""What the process sends with: an event's message made from the log, one attempt, and its verdict."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from command_side.errors import WebhookUrlNotAllowed
from command_side.webhooks import messages, signing
from command_side.webhooks.outcomes import Answer, Policy, judge
from command_side.webhooks.sender import Sender
from command_side.webhooks.store import Due, Result
from command_side.webhooks.targets import parse
from events.append import RecordedEvent
from events.codec import EventMapper
from events.errors import UndecodableEvent, UnknownEvent
from events.log import LogReader
from events.task_state import TaskState, evolve
from events.webhook_events import WebhookState, WebhookTested
from taskledger.metrics import WEBHOOK_ATTEMPTS, WEBHOOK_DEAD
from taskledger.telemetry import get_logger

LOADED_AT_ONCE: Final = 4
"""Endpoints whose messages are made at the same time: histories may be large, messages are not."""
_USER_AGENT: Final = "taskledger-webhooks"

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What all endpoints share."""

    log: LogReader
    mapper: EventMapper
    sender: Sender
    masters: Sequence[bytes]
    policy: Policy
    shape: messages.Shape
    tag: Callable[[], str]
    loading: asyncio.Semaphore
    concurrency: int


async def make_messages(parts: Parts, webhook: WebhookState, due: Sequence[Due]) -> dict[int, bytes]:
    """By position. What cannot be read, as an event of a later release lies before it, has no entry."""
    async with parts.loading:
        streams = await parts.log.read_streams([d.task_id for d in due])
        return {
            d.position: message
            for d in due
            if (message := _message(parts, webhook, d, streams.get(d.task_id, []))) is not None
        }


async def attempt(parts: Parts, webhook: WebhookState, due: Due, message: bytes | None) -> Result:
    """Never raises for what the other side does."""
    answer = Answer("unreadable") if message is None else await _send(parts, webhook, due, message)
    verdict = judge(answer, due.attempt + 1, random.random(), parts.policy)  # noqa: S311  jitter
    WEBHOOK_ATTEMPTS.labels(answer.failure or "delivered").inc()
    if verdict.status == "dead":
        WEBHOOK_DEAD.inc()
    return Result(due, answer, verdict)


async def _send(parts: Parts, webhook: WebhookState, due: Due, message: bytes) -> Answer:
    try:
        target = parse(webhook.url)
    except WebhookUrlNotAllowed:  # by the rules of this release
        return Answer("not_allowed")
    now = time.time()
    rotated_at, at = webhook.rotated_at, datetime.fromtimestamp(now, UTC)
    secrets = signing.secrets(parts.masters, webhook.id, webhook.generation, rotated_at, at)
    message_id = signing.message_id(webhook.id, due.position, parts.tag())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": _USER_AGENT,
        **signing.headers(message_id, int(now), message, secrets),
    }
    return await parts.sender.post(target, headers, message)


def _message(
    parts: Parts, webhook: WebhookState, due: Due, stream: Sequence[RecordedEvent]
) -> bytes | None:
    history = [event for event in stream if event.originator_version <= due.version]
    if not history or history[-1].id != due.position:
        return None
    at, tag = history[-1].recorded_at, parts.tag()
    if due.topic == WebhookTested.TOPIC:
        return messages.sample_message(due.topic, due.position, at=at, webhook=webhook.id, tag=tag)
    state: TaskState | None = None
    try:
        for event in history:
            state = evolve(state, parts.mapper.decode(event), at=event.recorded_at, position=event.id)
        assert state is not None  # noqa: S101  there is an event
        return messages.task_message(
            due.topic, state, at=at, webhook=webhook.id, tag=tag, shape=parts.shape
        )
    except (UnknownEvent, UndecodableEvent):
        return None
    except Exception as error:  # noqa: BLE001  a defect that one task brings out must not stop all webhooks
        # Without its trace, which could show what the task holds.
        _logger.error("no message can be made", position=due.position, error=type(error).__name__)  # noqa: TRY400
        return None
