"""What every route needs, made once by the composition root."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from fastapi import Request

from command_side.api.body import traceparent
from command_side.api.claims import Claims
from command_side.api.database import Database
from command_side.api.kinds import Kinds
from command_side.api.leases import Leases
from command_side.clock import DatabaseClock
from command_side.errors import TaskNotFound, WebhookNotFound
from command_side.service import CommandService, Origin
from command_side.webhooks.resolver import Guard
from command_side.webhooks.service import WebhookService
from events.deadline import remaining, until
from events.errors import StoreUnavailable
from events.ids import parse_id, parse_task_id
from events.task_state import TaskState
from taskledger.admission import due
from taskledger.settings import CommandApiSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Where there is a secret to sign with."""

    service: WebhookService
    guard: Guard
    master: bytes


@dataclass(frozen=True, slots=True)
class Api:
    settings: CommandApiSettings
    service: CommandService
    clock: DatabaseClock
    database: Database
    kinds: Kinds
    leases: Leases
    claims: Claims | None
    """None where no Redis is configured."""
    webhooks: Webhooks | None
    query_url: str
    """Of the query API: `<query_url>/tasks/<id>` is the task."""

    async def within_budget(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises StoreUnavailable when it takes longer than what is left of the request's time."""
        deadline = due()
        try:
            async with asyncio.timeout(remaining(deadline)):
                with until(deadline):
                    return await work
        except TimeoutError:
            raise StoreUnavailable("the database did not answer in time") from None

    def token(self, position: int) -> str:
        return f"{position}.{self.database.tag}"

    def answer(self, state: TaskState, position: int) -> dict[str, Any]:
        return {
            "id": state.id,
            "version": state.version,
            "status": state.status,
            "attempt": state.attempt,
            "position": self.token(position),
            "retry_at": state.due_at if state.status == "retrying" else None,
            "cancel_requested": state.cancel_requested,
        }

    def started(self, state: TaskState, lease_expires_at: datetime | None) -> dict[str, Any]:
        return {
            "id": state.id,
            "attempt": state.attempt,
            "version": state.version,
            "kind": state.kind,
            "payload": state.payload,
            "queue": state.queue,
            "priority": state.priority,
            "tags": state.tags,
            "max_attempts": state.max_attempts,
            "timeout_seconds": state.timeout_seconds,
            "created_at": state.created_at,
            "lease_expires_at": lease_expires_at,
            "position": self.token(state.position),
            "traceparent": state.traceparent,
        }


def origin(request: Request) -> Origin:
    return Origin(traceparent=traceparent(request))


def task_id_of(text: str) -> UUID:
    """Raises TaskNotFound for what is not the one canonical spelling of an id."""
    task_id = parse_task_id(text)
    if task_id is None:
        raise TaskNotFound
    return task_id


def webhook_id_of(text: str) -> UUID:
    """As task_id_of(). Raises WebhookNotFound."""
    webhook_id = parse_id(text)
    if webhook_id is None:
        raise WebhookNotFound
    return webhook_id
