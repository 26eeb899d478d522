"""How every process reaches PostgreSQL: one place for timeouts, keepalives and names."""

from typing import Any, Final, TypeVar

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

LIBPQ: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    # A peer that vanished without a word is noticed within ten seconds, not in two hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,
}
SESSION: Final = (
    "-c statement_timeout=10s -c lock_timeout=5s -c idle_in_transaction_session_timeout=5s"
    " -c timezone=UTC -c search_path=pg_catalog -c jit=off"
)
"""A client frozen in the middle of something must not hold others up. Long maintenance overrides it."""
KEYED: Final = f"{SESSION} -c enable_seqscan=off -c plan_cache_mode=force_generic_plan"
"""For those whose every statement looks up by key. A plan made while a table was almost empty would scan it
until the next ANALYZE; and a statement over short arrays is else planned anew at each call, since its plan
looks cheaper each time, which takes longer than to run it."""

C = TypeVar("C", bound=Connection[TupleRow])
Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]


async def connect(
    dsn: str, *, name: str, autocommit: bool = True, options: str = KEYED
) -> AsyncConnection[TupleRow]:
    return await AsyncConnection.connect(
        dsn, autocommit=autocommit, application_name=f"taskledger-{name}", options=options, **LIBPQ
    )


def connect_sync(
    dsn: str, *, name: str, autocommit: bool = True, options: str = SESSION
) -> Connection[TupleRow]:
    return connect_as(Connection[TupleRow], dsn, name=name, autocommit=autocommit, options=options)


def connect_as(cls: type[C], dsn: str, *, name: str, autocommit: bool = True, options: str = SESSION) -> C:
    """As connect_sync(), a connection of the caller's own class."""
    return cls.connect(
        dsn, autocommit=autocommit, application_name=f"taskledger-{name}", options=options, **LIBPQ
    )


WAITING_PER_CONNECTION: Final = 64
"""Requests that an API lets wait for each of its connections: about as many as are served in 100 ms."""


def make_pool(dsn: str, *, name: str, size: int, options: str = KEYED, max_waiting: int = 0) -> Pool:
    """Closed: open it with `async with`. Connects in the background, so that a process can start
    before its database does. When more than `max_waiting` wait for a connection (0: any number), the
    next one is refused with psycopg_pool.TooManyRequests."""
    return AsyncConnectionPool(
        dsn,
        kwargs={
            "autocommit": True,
            "application_name": f"taskledger-{name}",
            "options": options,
            **LIBPQ,
        },
        min_size=min(2, size),
        max_size=size,
        max_waiting=max_waiting,
        open=False,
        name=name,
        reconnect_timeout=2**31,
    )
