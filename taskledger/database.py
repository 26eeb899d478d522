"""What `migrate` and `up` do before anything else runs: reach the servers, bring the schema up."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg
import sqlalchemy.exc
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from events.errors import ConfigurationError
from events.migrate import draw_tag, migrate
from taskledger.postgres import connect_sync
from taskledger.redis import SOCKET_TIMEOUT_SECONDS
from taskledger.telemetry import get_logger

PATIENCE_SECONDS: Final = 30.0
OLDEST_POSTGRES: Final = 15
_PAUSE_SECONDS: Final = 0.5

_logger = get_logger(__name__)
_Answer = TypeVar("_Answer")


def migrate_when_reachable(dsn: str, *, patience_seconds: float = PATIENCE_SECONDS) -> str:
    """Returns the revision reached. Waits for a server that is still starting, and says so.

    Raises ConfigurationError when it does not answer in time, is too old, or refuses us.
    """
    version = _patiently("PostgreSQL", "TASKLEDGER__POSTGRES__DSN", patience_seconds, lambda: _version(dsn))
    if version < OLDEST_POSTGRES:
        raise ConfigurationError(
            f"TASKLEDGER__POSTGRES__DSN leads to PostgreSQL {version}; it takes {OLDEST_POSTGRES} or later"
        )
    try:
        return migrate(dsn)
    except (psycopg.OperationalError, psycopg.errors.InsufficientPrivilege) as error:
        raise _refused(error) from error
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.OperationalError | psycopg.errors.InsufficientPrivilege):
            raise _refused(error.orig) from error
        raise


def draw_tag_when_reachable(dsn: str, *, patience_seconds: float = PATIENCE_SECONDS) -> tuple[str, str]:
    """The log's tag before and after. Raises as migrate_when_reachable(), and SchemaNotReady."""
    _patiently("PostgreSQL", "TASKLEDGER__POSTGRES__DSN", patience_seconds, lambda: _version(dsn))
    try:
        return draw_tag(dsn)
    except (psycopg.OperationalError, psycopg.errors.InsufficientPrivilege) as error:
        raise ConfigurationError(f"the log's tag cannot be changed: {_first_line(error)}") from error


def await_redis(url: str, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Raises ConfigurationError when it does not answer in time, or refuses us."""
    _patiently("Redis", "TASKLEDGER__REDIS__URL", patience_seconds, lambda: _ping(url))


def _version(dsn: str) -> int:
    with connect_sync(dsn, name="migrate") as connection:
        return connection.info.server_version // 10_000


def _ping(url: str) -> None:
    with Redis.from_url(  # pyright: ignore[reportUnknownMemberType] (untyped keywords)
        url, socket_connect_timeout=SOCKET_TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
    ) as client:
        client.ping()  # pyright: ignore[reportUnknownMemberType] (untyped keywords)


def _patiently(
    server: str, setting: str, patience_seconds: float, question: Callable[[], _Answer]
) -> _Answer:
    deadline = time.monotonic() + patience_seconds
    told = False
    while True:
        try:
            return question()
        except (psycopg.OperationalError, RedisError, OSError) as error:
            reason = _first_line(error)
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"{server} does not answer ({reason}); {setting} says where it is"
                ) from None
        if not told:
            _logger.warning("waiting for a server", server=server, reason=reason)
            told = True
        time.sleep(_PAUSE_SECONDS)


def _refused(error: Exception) -> ConfigurationError:
    return ConfigurationError(f"the database cannot be migrated: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
