"""The whole at a glance: counts, rates, queues, workers, kinds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, get_args

from events.ids import DEFAULT_TENANT
from events.position import PositionToken
from events.task_state import Status
from query_side.consistency import Consistency
from query_side.read_model import ReadModel, Row, Snapshot, statement
from query_side.shapes import Json
from taskledger.registry import Registry
from taskledger.settings import ExternalKind

STATUSES: Final[tuple[str, ...]] = get_args(Status)
_RATES: Final = ("created", "started", "completed", "failed", "dead", "cancelled")


class Overview:
    """As of the checkpoint, which is not below `min_position`: raises as Consistency.at()."""

    def __init__(self, model: ReadModel, consistency: Consistency) -> None:
        self._model = model
        self._consistency = consistency

    async def stats(self, min_position: PositionToken | None = None) -> tuple[Snapshot, Json]:
        """Counts; rates in events a second over the last whole minutes."""
        fetch = partial(self._model.fetch, statement("counts"), {"tenant": DEFAULT_TENANT})
        snapshot, counts = await self._consistency.at(min_position, fetch)
        _, windows = await self._model.fetch(
            statement("activity"), {"time": None}, order="order by found.minutes"
        )
        head = max(int(windows[0]["head"]), snapshot.checkpoint)
        return snapshot, stats_json(counts, windows, snapshot, head=head)

    async def queues(self, min_position: PositionToken | None = None) -> tuple[Snapshot, list[Json]]:
        fetch = partial(
            self._model.fetch,
            statement("queues"),
            {"tenant": DEFAULT_TENANT},
            order="order by found.queue",
        )
        snapshot, rows = await self._consistency.at(min_position, fetch)
        return snapshot, [_queue(row) for row in rows]

    async def workers(self, min_position: PositionToken | None = None) -> tuple[Snapshot, list[Json]]:
        """Worker processes whose lease has not run out."""
        fetch = partial(self._model.fetch, statement("workers"), order="order by found.holder")
        snapshot, rows = await self._consistency.at(min_position, fetch)
        shown = ("holder", "info", "lease_seconds", "renewed_at")
        return snapshot, [{name: row[name] for name in shown} for row in rows]


def stats_json(counts: Sequence[Row], windows: Sequence[Row], snapshot: Snapshot, *, head: int) -> Json:
    """`counts`: tasks by queue, kind and status; `windows`: what happened in the last whole minutes."""
    return {
        "total": sum(row["tasks"] for row in counts),
        "by_status": dict.fromkeys(STATUSES, 0) | _totals(counts),
        "by_kind": _grouped(counts, "kind"),
        "by_queue": _grouped(counts, "queue"),
        "rates": {f"{row['minutes']}m": _per_second(row) for row in windows},
        "position": snapshot.token,
        "head": snapshot.token_of(head),
        "lag": head - snapshot.checkpoint,
    }


def _queue(row: Row) -> Json:
    counts = dict.fromkeys(STATUSES, 0) | dict(zip(row["statuses"], row["tasks"], strict=True))
    return {
        "queue": row["queue"],
        "depth": counts["queued"],
        "counts": counts,
        "oldest_queued_at": row["oldest_queued_at"],
        "oldest_age_seconds": row["oldest_age_seconds"],
        "paused": row["paused"],
        "paused_at": row["paused_at"],
        "paused_by": row["paused_by"],
        "paused_reason": row["paused_reason"],
    }


def _totals(rows: Sequence[Row]) -> dict[str, int]:
    totals: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        totals[row["status"]] += row["tasks"]
    return dict(totals)


def _grouped(rows: Sequence[Row], by: str) -> dict[str, dict[str, int]]:
    names = sorted({str(row[by]) for row in rows})
    return {name: _totals([row for row in rows if row[by] == name]) for name in names}


def _per_second(row: Row) -> dict[str, float]:
    return {name: round(row[name] / (60 * row["minutes"]), 3) for name in _RATES}


def kinds(registry: Registry, external: Mapping[str, ExternalKind]) -> list[Json]:
    """What this process knows: handlers it has loaded, and the kinds whose workers claim over HTTP."""
    known: dict[str, Json] = {
        name: {
            "kind": name,
            "external": False,
            "queue": kind.queue,
            "priority": kind.priority,
            "max_attempts": kind.max_attempts,
            "timeout_seconds": kind.timeout_seconds,
            "payload_schema": kind.payload_schema,
            "result_schema": kind.result_schema,
        }
        for name, kind in registry.kinds.items()
    }
    for name, kind in external.items():
        known[name] = {
            "kind": name,
            "external": True,
            "queue": kind.queue,
            "priority": None,
            "max_attempts": None,
            "timeout_seconds": None,
            "payload_schema": kind.payload_schema,
            "result_schema": None,
        }
    return [known[name] for name in sorted(known)]
