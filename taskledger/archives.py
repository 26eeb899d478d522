"""`taskledger export` and `taskledger import`: files around events.transfer."""

import os
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final
from uuid import UUID

from events.errors import ArchiveRefused
from events.transfer import export, import_archive
from taskledger.lifecycle import EXIT_FAILED
from taskledger.postgres import SESSION, connect_sync
from taskledger.settings import Settings

_OPTIONS: Final = (
    f"{SESSION} -c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c lock_timeout=0"
)
"""A long log takes as long as it takes."""
_FIRST_AND_LAST: Final = 2
"""Lines of a file that are no events."""


def run_export(settings: Settings, *, task_id: UUID | None, file: Path | None) -> int:
    """To standard output without a file. A file is there once it is whole, and for its owner alone."""
    with (
        connect_sync(
            settings.require_postgres(), name="export", autocommit=True, options=_OPTIONS
        ) as connection,
        # A statement that still sends rows would keep the connection from ending.
        closing(export(connection, task_id)) as lines,
    ):
        if file is None:
            return _print(lines)
        events = _write(file, lines) - _FIRST_AND_LAST
        sys.stdout.write(f"{events} events exported to {file}\n")
    return 0


def _print(lines: Iterable[bytes]) -> int:
    try:
        for line in lines:
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return 0


def run_import(settings: Settings, *, file: Path) -> int:
    """Raises ArchiveRefused with nothing imported."""
    with (
        _opened(file) as lines,
        connect_sync(
            settings.require_postgres(), name="import", autocommit=True, options=_OPTIONS
        ) as connection,
    ):
        imported = import_archive(connection, lines)
    sys.stdout.write(
        f"{imported.events} events imported; the log is {imported.tag} from now on."
        " Now run `taskledger verify` once the projector has caught up\n"
    )
    return 0


def _write(file: Path, lines: Iterable[bytes]) -> int:
    draft = file.with_name(f"{file.name}.partial")
    count = 0
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
            for line in lines:
                output.write(line)
                count += 1
            output.flush()
            os.fsync(output.fileno())
        draft.replace(file)
    except OSError as error:
        raise ArchiveRefused(f"cannot write {file}: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
    return count


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise ArchiveRefused(f"cannot read {file}: {error.strerror}") from None
