"""What a follower of the log on the command side does with its tables: statements with one deadline, and a
look at whether the log is still the one it follows."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from events.append import RecordedEvent
from events.connections import unavailable
from events.deadline import after, remaining, within
from events.errors import SchemaNotReady
from events.witness import LOOK, Witness
from taskledger.postgres import Pool

T = TypeVar("T")

BUDGET_SECONDS: Final = 8.0
"""Below the statement timeout of ten seconds, so that an abandoned statement does not linger."""


class FollowerStore:
    """Every call raises StoreUnavailable when the database does not answer in time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._witness = Witness()

    async def check_log(self) -> str:
        """The log's tag. Raises LogRewound if it was restored since we saw it last."""
        mark = self._witness.mark()
        return self._witness.check((await self._fetch(LOOK, mark.parameters))[0], mark)

    def saw(self, event: RecordedEvent) -> None:
        """Of the log; for check_log()."""
        self._witness.saw(event.id, event.recorded_at)

    def condemn_log(self, why: str) -> None:
        """Until it has another tag, check_log() refuses it."""
        self._witness.condemn(why)

    async def _read(self, statement: str, parameters: Sequence[Any], build: Callable[..., T]) -> list[T]:
        return [build(*row) for row in await self._fetch(statement, parameters)]

    async def _fetch(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any]) -> list[TupleRow]:
        async def work(connection: AsyncConnection[TupleRow]) -> list[TupleRow]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(statement.encode(), parameters, prepare=True)
            return await cursor.fetchall()

        return await self._with_connection(work)

    async def _with_connection(self, work: Callable[[AsyncConnection[TupleRow]], Awaitable[T]]) -> T:
        deadline = after(BUDGET_SECONDS)

        async def connected() -> T:
            async with self._pool.connection(timeout=remaining(deadline)) as connection:
                return await work(connection)

        try:
            return await within(deadline, connected())
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise SchemaNotReady("the database has not been migrated") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise unavailable(error) from error
