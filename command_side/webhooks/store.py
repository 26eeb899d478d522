"""The webhooks process's tables in PostgreSQL, and what it reads of the log."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from eventsourcing.persistence import StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from command_side.store import FollowerStore
from command_side.webhooks import statements
from command_side.webhooks.matching import Seen
from command_side.webhooks.outcomes import Answer, Endpoint, Verdict
from events.errors import CheckpointConflict
from events.webhook_events import WebhookRedeliveryRequested, WebhookState, WebhookTested

_STATE: Final = tuple(statements.COLUMNS.split(", "))


@dataclass(frozen=True, slots=True)
class Kept:
    """A webhook that is enabled, and what is kept of its endpoint."""

    state: WebhookState
    replay: tuple[int, int] | None
    """(after, upto]: events that are to be matched anew."""
    revive_upto: int | None
    failures: int
    paused_seconds: float


class Due(NamedTuple):
    position: int
    task_id: UUID
    version: int
    topic: str
    attempt: int
    """How many there were."""
    wait_seconds: float
    """Until its time has come; not above 0: it has."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one attempt, to be recorded."""

    due: Due
    answer: Answer
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Move:
    """Of the checkpoint. `at`: when the event there was recorded, if it is known."""

    before: int
    to: int
    at: datetime | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        return {"from": self.before, "to": self.to, "at": self.at}


class WebhookStore(FollowerStore):
    @property
    def head(self) -> tuple[int, datetime | None]:
        """The log's last event, as check_log() has seen it: its position and when it was recorded."""
        mark = self._witness.mark()
        return mark.position, mark.at

    async def checkpoint(self) -> int:
        return int((await self._fetch(statements.CHECKPOINT, ()))[0][0])

    async def webhooks(self) -> list[Kept]:
        """Those that are enabled."""
        return [_kept(row) for row in await self._fetch(statements.WEBHOOKS, ())]

    async def events(self, after: int, upto: int, topics: Collection[str], limit: int) -> list[Seen]:
        rows = await self._fetch(statements.EVENTS, (after, upto, sorted(topics), limit))
        return [Seen(*row) for row in rows]

    async def beginnings(self, tasks: Sequence[UUID]) -> list[StoredEvent]:
        """The first event of each."""
        return await self._read(statements.BEGINNINGS, (list(tasks),), StoredEvent)

    async def advance(self, move: Move, pairs: Sequence[tuple[UUID, Seen]]) -> None:
        """Moves the checkpoint and adds the deliveries, or nothing and CheckpointConflict."""
        parameters = {"webhook": [webhook for webhook, _ in pairs], **_columns([seen for _, seen in pairs])}
        moved = await self._fetch(statements.ADVANCE, {**parameters, **move.parameters})
        _expect_moved(int(moved[0][0]), move)

    async def apply(
        self,
        move: Move,
        state: WebhookState,
        *,
        replay: tuple[int, int] | None,
        wish: WebhookTested | WebhookRedeliveryRequested | None,
    ) -> None:
        """Moves the checkpoint over an event of a webhook, with all that follows from it. As advance()."""
        fields = {**asdict(state), "webhook_id": state.id} | {
            name: list(getattr(state, name)) for name in ("types", "kinds", "queues", "tags")
        }
        parameters = {name: fields[name] for name in _STATE} | move.parameters
        extra: list[tuple[str, Sequence[Any]]] = [(statements.RESUME, (state.id,))]
        if replay is not None:
            extra.append((statements.REPLAY, (*replay, state.id)))
        if isinstance(wish, WebhookTested):
            sent = (state.id, move.to, state.id, wish.originator_version, wish.TOPIC)
            extra.append((statements.SEND_TEST, sent))
        elif wish is not None and wish.dead:
            extra.append((statements.WISH_REVIVAL, (move.to, state.id)))

        async def work(connection: AsyncConnection[TupleRow]) -> int:
            async with connection.transaction():
                moved = await connection.execute(statements.PUT.encode(), parameters, binary=True)
                if moved.rowcount != 1:
                    return 0
                for statement, values in extra:
                    await connection.execute(statement.encode(), values)
                return 1

        _expect_moved(await self._with_connection(work), move)

    async def replayed(self, webhook: UUID, after: int, to: int, seen: Sequence[Seen]) -> None:
        """Adds what a webhook asks for of the events in (after, to], or sets it to be sent again."""
        parameters = {"webhook_id": webhook, "from": after, "to": to, **_columns(seen)}
        await self._fetch(statements.REPLAYED, parameters)

    async def revive(self, webhook: UUID, upto: int, limit: int) -> int:
        """How many dead deliveries are pending again; less than `limit`: all of them."""
        parameters = {"webhook_id": webhook, "upto": upto, "limit": limit}
        return int((await self._fetch(statements.REVIVE, parameters))[0][0])

    async def due(self, webhook: UUID, limit: int) -> list[Due]:
        """What is to be sent next, of each task one at most, by time; those that are not due yet, too."""
        return await self._read(statements.DUE, (webhook, limit), Due)

    async def record(self, webhook: UUID, results: Sequence[Result], endpoint: Endpoint | None) -> float:
        """Returns for how many seconds nothing has succeeded. Without an endpoint nothing was sent."""
        rows = await self._fetch(
            statements.RECORD,
            {
                "webhook_id": webhook,
                "position": [r.due.position for r in results],
                "attempt": [r.due.attempt + 1 for r in results],
                "status": [r.verdict.status for r in results],
                "http_status": [r.answer.status for r in results],
                "error": [r.answer.failure for r in results],
                "wait_seconds": [r.verdict.wait_seconds for r in results],
                "sent": endpoint is not None,
                "failures": endpoint.failures if endpoint else 0,
                "pause_seconds": endpoint.pause_seconds if endpoint else 0.0,
                "succeeded": any(r.answer.failure is None for r in results),
                "last_status": endpoint.last.status if endpoint else None,
                "last_error": endpoint.last.failure if endpoint else None,
            },
        )
        return float(rows[0][0] or 0.0) if rows else 0.0

    async def purge(self, limit: int) -> int:
        """Deletes at most `limit` rows of each sort that are kept no longer; returns how many of the most
        numerous."""

        async def work(connection: AsyncConnection[TupleRow]) -> int:
            counts = [
                (await connection.execute(statement.encode(), (limit,))).rowcount
                for statement in statements.PURGE
            ]
            return max(counts)

        return await self._with_connection(work)


def _columns(seen: Sequence[Seen]) -> dict[str, Any]:
    return {
        "position": [event.position for event in seen],
        "task": [event.originator_id for event in seen],
        "version": [event.originator_version for event in seen],
        "topic": [event.topic for event in seen],
    }


def _kept(row: TupleRow) -> Kept:
    fields = dict(zip(_STATE, row, strict=False))
    replay_after, replay_upto, revive_upto, failures, paused_seconds = row[len(_STATE) :]
    fields["id"] = fields.pop("webhook_id")
    for name in ("types", "kinds", "queues", "tags"):
        fields[name] = tuple(fields[name])
    replay = None if replay_after is None else (replay_after, replay_upto)
    return Kept(WebhookState(**fields), replay, revive_upto, failures, paused_seconds or 0.0)


def _expect_moved(count: int, move: Move) -> None:
    if count != 1:
        raise CheckpointConflict(f"the checkpoint of {statements.NAME} is no longer {move.before}")
