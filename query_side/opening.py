"""Opens what is sealed in rows of the read tables: they hold it as the log does."""

from collections.abc import Sequence
from typing import Final

from events.envelopes import Erased, Place, is_envelope, unpack
from events.vault import Vault, note_place, open_column, opened_note
from query_side.read_model import Row

_SEALED: Final = ("payload", "result", "error")


async def open_rows(vault: Vault, rows: Sequence[Row]) -> None:
    """Puts JSON in the place of each envelope, and None where its key was destroyed; `erased_at` then says
    when. Raises KeyUnavailable and SealBroken."""
    found = [(row, name) for row in rows for name in _SEALED if is_envelope(row[name])]
    if not found:
        return
    keys = await vault.keys({unpack(row[name]).key for row, name in found})
    for row, name in found:
        if name == "payload" and row["note"] is not None:
            at = note_place(row["tenant"], row["id"], row["attempt"])
            row["note"] = opened_note(row["note"], at, keys[unpack(row[name]).key])
        place = Place(row["tenant"], row["id"], 0, name)
        value = open_column(row[name], place, keys[unpack(row[name]).key])
        if isinstance(value, Erased):
            row["erased_at"] = value.at
        row[name] = None if isinstance(value, Erased) else value
