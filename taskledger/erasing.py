"""`taskledger erase` and `taskledger keys …`: see events.erasure."""

import getpass
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from events import erasure
from events.ciphers import MasterKeys, new_master_text
from events.errors import ConfigurationError
from events.ids import DEFAULT_TENANT
from events.migrate import check_schema
from taskledger.encryption import SETTING, master_keys
from taskledger.postgres import SESSION, connect_sync
from taskledger.settings import Settings

_PATIENT: Final = f"{SESSION} -c statement_timeout=0 -c lock_timeout=1s"
"""To write the table of keys afresh takes as long as it takes. But whoever asks for a key queues behind the
one who waits to do so: hence not for long, and again."""
_TRIES: Final = 5
_PAUSE_SECONDS: Final = 2.0
T = TypeVar("T")


def erase(
    settings: Settings, *, tenant: str | None, subject: str | None, reason: str, by: str | None
) -> int:
    """Returns the exit code: 1 where there was nothing to erase."""
    masters = _masters(settings)
    owner = tenant or DEFAULT_TENANT

    def work(connection: Connection[TupleRow]) -> int:
        erased = erasure.erase(
            connection, masters, tenant=owner, subject=subject, by=by or _login(), reason=reason
        )
        if erased is None:
            _say("nothing is stored under that name, or it was erased before")
            return 1
        keys = "1 key" if erased.keys == 1 else f"{erased.keys} keys"
        _say(f"erased: {keys}, recorded at position {erased.position}")
        return _scrub(connection)

    return _with_connection(settings, work)


def scrub(settings: Settings) -> int:
    """Again what erase() does after the erasure, where it could not be done then."""
    return _with_connection(settings, _scrub)


def rewrap(settings: Settings) -> int:
    masters = _masters(settings)

    def work(connection: Connection[TupleRow]) -> int:
        count = erasure.rewrap(connection, masters)
        _say(f"{count} keys wrapped anew; the previous master key is needed no longer")
        return _scrub(connection)

    return _with_connection(settings, work)


def new(file: Path) -> int:
    """Makes a master key. Raises ConfigurationError where the file exists: keys may be wrapped with it."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(new_master_text())
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    _say(f"a new master key is in {file}: keep a copy where the database's backups are not")
    return 0


def _masters(settings: Settings) -> MasterKeys:
    masters = master_keys(settings.encryption)
    if masters is None:
        raise ConfigurationError(f"{SETTING} is not set: nothing is encrypted, so nothing can be erased")
    return masters


def _with_connection(settings: Settings, work: Callable[[Connection[TupleRow]], T]) -> T:
    with connect_sync(settings.require_postgres(), name="erase", options=_PATIENT) as connection:
        check_schema(connection)
        return work(connection)


def _scrub(connection: Connection[TupleRow]) -> int:
    left = ["the table of keys is in use: run `taskledger keys scrub` later"]
    for number in range(_TRIES):
        try:
            left = erasure.scrub(connection)
            break
        except psycopg.errors.LockNotAvailable:
            time.sleep(_PAUSE_SECONDS if number + 1 < _TRIES else 0)
    for line in left:
        _say(f"left: {line}")
    if not left:
        _say("no file of the database holds it any more, not in its wrapped form either")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an id without a name, as containers have
        return str(os.getuid())
