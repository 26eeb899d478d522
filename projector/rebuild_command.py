"""`taskledger rebuild`, as somebody at a terminal sees it."""

import sys
from collections.abc import Iterator
from typing import TextIO

from events.errors import ConfigurationError
from projector.kept import READ_TABLES, Kept, of_tally
from projector.meter import Meter
from projector.rebuild import Rebuilt, drop_retired, rebuild, rollback
from projector.resume import Say
from projector.tally import load_tallies
from taskledger.settings import Settings


def run(
    settings: Settings, *, prune: bool = False, go_back: bool = False, projection: str | None = None
) -> int:
    """`taskledger rebuild [--prune|--rollback] [--projection NAME]`. Returns the exit code."""
    dsn = settings.require_postgres()
    kept = READ_TABLES if projection is None else _kept(settings, projection)
    out = sys.stdout
    if go_back:
        out.write(f"generation {rollback(dsn, kept)} is live again\n")
        return 0
    done = rebuild(
        dsn, kept, progress=Meter(sys.stderr) if sys.stderr.isatty() else None, say=_line_to(out)
    )
    out.writelines(f"{line}\n" for line in _compared(done))
    out.write(f"generation {done.generation} is live, at position {done.checkpoint}\n")
    if prune:
        out.writelines(f"generation {number} dropped\n" for number in drop_retired(dsn, kept))
    return 0


def _kept(settings: Settings, projection: str) -> Kept:
    for tally in load_tallies(settings.projections):
        if tally.name == projection:
            return of_tally(tally)
    raise ConfigurationError("TASKLEDGER__PROJECTIONS: none of them has that name")


def _line_to(out: TextIO) -> Say:
    def say(line: str) -> None:
        out.write(f"{line}\n")
        out.flush()

    return say


def _compared(done: Rebuilt) -> Iterator[str]:
    parity = done.parity
    if parity is None:
        return
    where = f"at position {done.compared_at}"
    if not parity.count:
        yield f"the old tables and the new ones were equal {where}: digest {parity.new}"
    else:
        yield (
            f"the old tables were not what the log says {where}: {parity.count:,} rows,"
            f" digest {parity.old} instead of {parity.new}; now they are"
        )
        yield from (f"  {line}" for line in parity.differences)
    yield from (f"  {line}" for line in parity.reasons)
