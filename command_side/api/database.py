"""What the API knows of its database: whether it answers, its clock, and which log it holds."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout, TooManyRequests

from command_side.clock import DatabaseClock
from command_side.webhooks.statements import COUNT
from events.connections import unavailable
from events.deadline import after, remaining, within
from events.errors import LogRewound, SchemaNotReady, StoreUnavailable
from events.migrate import newest_revision
from events.statements import HEAD
from events.witness import LOOK, Witness
from taskledger.admission import EDGE_SECONDS, due
from taskledger.postgres import Pool
from taskledger.telemetry import get_logger

REFRESH_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 0.25
PROBE_SECONDS: Final = 1.0

_PROBE: Final = """
select clock_timestamp(), i.tag, r.version_num
from taskledger.log_identity i, taskledger.alembic_version r
"""
_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
_NOT_READY: Final = (StoreUnavailable, SchemaNotReady, LogRewound)

_logger = get_logger(__name__)


async def fetch(
    pool: Pool,
    statement: str,
    parameters: Sequence[Any] | Mapping[str, Any] = (),
    *,
    seconds: float = EDGE_SECONDS,
) -> list[TupleRow]:
    """The rows of a statement that may run twice: it is tried again on another connection when the
    first turns out to be dead. Raises StoreUnavailable, SchemaNotReady."""
    deadline = after(seconds)
    try:
        try:
            return await within(deadline, _fetch(pool, statement, parameters, deadline))
        except _LOST:
            return await within(deadline, _fetch(pool, statement, parameters, deadline))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise SchemaNotReady("the database has not been migrated") from error
    except _LOST as error:
        raise unavailable(error) from error
    except psycopg.Error as error:
        raise StoreUnavailable(f"the database refuses a statement ({error.sqlstate})") from error


async def _fetch(
    pool: Pool, statement: str, parameters: Sequence[Any] | Mapping[str, Any], deadline: float
) -> list[TupleRow]:
    try:
        async with pool.connection(timeout=max(0.001, remaining(deadline))) as connection:
            cursor = connection.cursor(binary=True)
            await cursor.execute(statement.encode(), parameters, prepare=True)
            return await cursor.fetchall()
    except (PoolTimeout, TooManyRequests) as error:
        raise StoreUnavailable("no database connection came free in time") from error


class Database:
    """Watches in the background. The process serves before its database does, and says so."""

    def __init__(self, pool: Pool, clock: DatabaseClock, witness: Witness) -> None:
        self._pool = pool
        self._clock = clock
        self._tag = ""
        self._witness = witness
        self._needed = newest_revision()
        self._known = asyncio.Event()
        self._trouble = ""

    @property
    def tag(self) -> str:
        """The log's tag as of the last look; call ready() before."""
        return self._tag

    async def ready(self) -> None:
        """Returns at once from the first answer of the database on. Raises StoreUnavailable if there
        was none yet and none comes within the budget."""
        if self._known.is_set():
            return
        try:
            await asyncio.wait_for(self._known.wait(), remaining(due()))
        except TimeoutError:
            raise StoreUnavailable(self._trouble or "the database has not answered yet") from None

    async def head(self) -> int:
        """The log's last position. Raises StoreUnavailable, SchemaNotReady."""
        return int((await fetch(self._pool, HEAD))[0][0])

    async def webhooks(self, tenant: str) -> int:
        """How many there are, as far as they are known to the process that delivers."""
        return int((await fetch(self._pool, COUNT, (tenant,)))[0][0])

    async def missing(self) -> list[str]:
        try:
            await self._probe()
        except _NOT_READY as error:
            return [f"PostgreSQL: {error}"]
        return []

    async def watch(self) -> None:
        """For ever. Says what is wrong once, and that it is over once."""
        while True:
            try:
                await self._probe()
            except _NOT_READY as error:
                if self._trouble != str(error):
                    self._trouble = str(error)
                    _logger.warning("waiting for the database", reason=self._trouble)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if self._trouble:
                    self._trouble = ""
                    _logger.info("the database answers")
                await asyncio.sleep(REFRESH_SECONDS)

    async def _probe(self) -> None:
        rows = await fetch(self._pool, _PROBE, seconds=PROBE_SECONDS)
        if not rows or rows[0][2] < self._needed:
            raise SchemaNotReady("the database must be migrated first: run `taskledger migrate`")
        mark = self._witness.mark()
        looked = await fetch(self._pool, LOOK, mark.parameters, seconds=PROBE_SECONDS)
        self._witness.check(looked[0], mark)
        now, self._tag, _ = rows[0]
        self._clock.observe(now)
        self._known.set()
