"""Webhooks and their deliveries: what the process that delivers has written down of them."""

from collections.abc import Mapping
from typing import Final, Literal
from uuid import UUID

import psycopg

from events.errors import SchemaNotReady
from events.ids import DEFAULT_TENANT
from events.position import PositionToken
from events.statements import HIGHEST
from query_side.consistency import polled
from query_side.errors import WebhookNotFound
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json

DeliveryStatus = Literal["pending", "delivered", "dead"]

_TESTED: Final = "WebhookTested"


class Webhooks:
    def __init__(self, model: ReadModel) -> None:
        self._model = model

    async def listed(self, min_position: PositionToken | None = None) -> tuple[Snapshot, list[Json]]:
        """Raises LogRewound, and ReadModelLagging where the process that delivers has not come to the
        position in time."""
        snapshot, rows = await self._at(min_position, "webhooks", {"id": None})
        return snapshot, [_webhook(row, snapshot.tag) for row in rows]

    async def get(self, webhook: UUID, min_position: PositionToken | None) -> tuple[Snapshot, Json]:
        """Raises WebhookNotFound, and as listed()."""
        snapshot, rows = await self._at(min_position, "webhooks", {"id": webhook})
        if not rows:
            raise WebhookNotFound
        return snapshot, _webhook(rows[0], snapshot.tag)

    async def deliveries(
        self, webhook: UUID, status: DeliveryStatus | None, before: PositionToken | None, limit: int
    ) -> tuple[Snapshot, list[Json], str | None]:
        """By falling position, and where to go on if there is more. Raises WebhookNotFound, LogRewound."""
        condition = "true" if status is None else f"status = '{status}'"
        parameters = {
            "id": webhook,
            "before": HIGHEST if before is None else before.position,
            "limit": limit + 1,
        }
        snapshot, rows = await self._read("deliveries", parameters, condition=condition, known=True)
        if before is not None:
            before.of_log(snapshot.tag)
        shown = [_delivery(row, snapshot.tag) for row in rows[:limit]]
        return snapshot, shown, shown[-1]["position"] if len(rows) > limit else None

    async def _at(
        self, token: PositionToken | None, name: str, parameters: Json
    ) -> tuple[Snapshot, list[Row]]:
        return await polled(token, lambda: self._read(name, parameters), "the process `webhooks`")

    async def _read(
        self, name: str, parameters: Json, *, condition: str = "", known: bool = False
    ) -> tuple[Snapshot, list[Row]]:
        text = statement(name).format(condition=condition)
        try:
            rows = await self._model.read(text, {**parameters, "tenant": DEFAULT_TENANT})
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise SchemaNotReady("the database has not been migrated: run `taskledger migrate`") from error
        if known and not rows[0]["known"]:
            raise WebhookNotFound
        snapshot = Snapshot(int(rows[0]["checkpoint"]), str(rows[0]["tag"]))
        return snapshot, [row for row in rows if row["present"]]


def _webhook(row: Mapping[str, object], tag: str) -> Json:
    shown = (
        *("url", "types", "kinds", "queues", "tags", "description", "status", "cause", "version"),
        *("created_at", "changed_at", "rotated_at", "failures", "failing_since", "paused_until"),
        *("last_attempt_at", "last_success_at", "last_status", "last_error", "pending", "dead"),
        "oldest_pending_seconds",
    )
    return {
        "id": row["webhook_id"],
        **{name: row[name] for name in shown},
        "position": str(PositionToken(_int(row["position"]), tag)),
        "replaying": row["replay_after"] is not None or row["revive_upto"] is not None,
        "lag": max(0, _int(row["head"]) - _int(row["checkpoint"])),
    }


def _delivery(row: Mapping[str, object], tag: str) -> Json:
    shown = (
        *("status", "attempt", "created_at", "last_attempt_at", "settled_at", "last_status", "last_error"),
    )
    return {
        "position": str(PositionToken(_int(row["position"]), tag)),
        "type": row["topic"],
        "task_id": None if row["topic"] == _TESTED else row["task_id"],
        **{name: row[name] for name in shown},
        "next_at": row["next_at"] if row["status"] == "pending" and row["attempt"] else None,
    }


def _int(value: object) -> int:
    assert isinstance(value, int)  # noqa: S101  a bigint that is not null
    return value
