"""Encryption as the settings ask for it: the master keys, a vault with its keyring, and the ear it has for
erasures. Off unless TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE is set; then no cryptography is even loaded."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from events.connections import answered
from events.errors import ConfigurationError, SchemaNotReady, StoreUnavailable
from events.vault import OFF, Key, Vault
from taskledger.postgres import connect_sync
from taskledger.settings import EncryptionSettings, Settings, secret_of
from taskledger.telemetry import get_logger

if TYPE_CHECKING:
    from events.ciphers import MasterKey, MasterKeys
    from events.keyring import PostgresKeyring

SETTING: Final = "TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE"
_PREVIOUS: Final = "TASKLEDGER__ENCRYPTION__PREVIOUS_MASTER_KEY_FILE"
_LISTEN_SECONDS: Final = 3.0
_QUIET_SECONDS: Final = 5.0
"""After so long without a word the connection is asked whether it still lives."""
_MAX_PAUSE_SECONDS: Final = 2.0

_logger = get_logger(__name__)


def master_keys(settings: EncryptionSettings) -> "MasterKeys | None":
    """None where encryption is off. Raises ConfigurationError for a file that holds no master key."""
    present = _master_key(SETTING, settings.master_key_file)
    previous = _master_key(_PREVIOUS, settings.previous_master_key_file)
    if present is None:
        if previous is not None:
            raise ConfigurationError(f"{_PREVIOUS}: not without {SETTING}")
        return None
    from events.ciphers import MasterKeys

    return MasterKeys(present, previous)


def _master_key(setting: str, file: Path | None) -> "MasterKey | None":
    text = secret_of(setting, file)
    if text is None:
        return None
    from events.ciphers import MasterKey

    try:
        return MasterKey.parse(text)
    except ValueError:
        raise ConfigurationError(
            f"{setting}: {file} does not hold 32 bytes in base64; `taskledger keys new` makes such a file"
        ) from None


def refuse_wrong_key(settings: Settings) -> None:
    """At start. Raises ConfigurationError for a master key that is not the database's. A database that
    cannot be asked now is asked later: see Encryption.missing()."""
    masters = master_keys(settings.encryption)
    if masters is None:
        return
    from events.erasure import check_master

    try:
        with connect_sync(settings.require_postgres(), name="keys") as connection:
            check_master(connection, masters)
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return


class Encryption:
    """Of one process. `fetch` runs a statement and gives its rows: see events.keyring.Fetch."""

    def __init__(
        self,
        settings: EncryptionSettings,
        fetch: Callable[[str, Sequence[Any]], Awaitable[Sequence[Sequence[Any]]]],
        connect: Callable[[], Awaitable[AsyncConnection[TupleRow]]],
    ) -> None:
        """Raises ConfigurationError."""
        self._masters = masters = master_keys(settings)
        self.vault = OFF
        self._connect = connect
        self._keyring: PostgresKeyring | None = None
        self.on_erased: Callable[[], None] = _nothing
        """Called when keys may have been erased: what was made of opened text is to be forgotten."""
        if masters is not None:
            from events import keyring

            self._keyring = keyring.PostgresKeyring(fetch, masters)
            self.vault = Vault(self._keyring)

    def keys_now(self, connection: Connection[TupleRow], ids: Collection[UUID]) -> Mapping[UUID, Key]:
        """For a thread with a connection of its own: see events.keyring. None where encryption is off."""
        if self._masters is None:
            return {}
        from events.keyring import keys_now

        return keys_now(connection, self._masters, ids)

    async def missing(self) -> list[str]:
        """For readiness."""
        try:
            if self._keyring is None or await self._keyring.check():
                return []
        except (StoreUnavailable, SchemaNotReady):
            return []  # of which others tell
        return [f"encryption: {SETTING} is not the master key of this database"]

    async def watch(self) -> None:
        """Until cancelled: forgets keys as soon as any are erased. Without the database they are forgotten
        by themselves."""
        if self._keyring is None:
            return
        from events.keyring import KEYS_CHANNEL

        pause = 0.1
        while True:
            try:
                async with await self._connect() as connection:
                    await answered(connection, f"listen {KEYS_CHANNEL}".encode(), seconds=_LISTEN_SECONDS)
                    self._forget(self._keyring)
                    pause = 0.1
                    await self._follow(connection, self._keyring)
            except (psycopg.Error, OSError) as error:
                _logger.debug("listening for erasures again", reason=type(error).__name__)
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311  jitter
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _follow(self, connection: AsyncConnection[TupleRow], keyring: "PostgresKeyring") -> None:
        while True:
            heard = False
            async for _ in connection.notifies(timeout=_QUIET_SECONDS, stop_after=1):
                self._forget(keyring)
                heard = True
            if not heard:
                await answered(connection, b"select 1", seconds=_LISTEN_SECONDS)

    def _forget(self, keyring: "PostgresKeyring") -> None:
        keyring.forget()
        self.on_erased()


def _nothing() -> None:
    """Where nothing is kept that was opened."""
