"""`make chaos MINUTES=n SEED=s`: every fault again and again under load, for as long as asked.

A seed gives the order of the faults, whom they hit and what the clients do; timing is the machine's own.
Exit code 0: nothing was lost, nothing doubled, and every fault fired.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.campaign import Campaign, Plan
from tests.chaos.nemesis import NEMESES
from tests.chaos.report import findings, table


def endless(seed: int) -> Iterator[str]:
    """Rounds of all faults, each in another order."""
    shuffle = random.Random(seed)
    while True:
        names = sorted(NEMESES)
        shuffle.shuffle(names)
        yield from names


def main() -> int:
    options = _options()
    began = time.monotonic()
    faults = options.faults or endless(options.seed)
    plan = Plan(
        options.seed,
        faults,
        options.lease,
        options.pace,
        until=began + 60 * options.minutes,
        snapshot_seconds=10,
    )
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    _say(began, f"seed {plan.seed}; everything is kept in {folder} until it has passed")
    outcome = Campaign(folder, plan, lambda line: _say(began, line)).run()
    sys.stdout.write(f"\n{table(plan, outcome)}\n")
    if not outcome.passed:
        sys.stdout.write(f"\n{findings(outcome)}\n\nnot passed; again with SEED={plan.seed}\n")
        return 1
    shutil.rmtree(folder)
    sys.stdout.write("\npassed\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--lease", type=float, default=15.0, help="seconds")
    parser.add_argument(
        "--pace", type=float, default=0.08, help="mean seconds between a client's operations"
    )
    parser.add_argument(
        "faults", nargs="*", choices=[[], *sorted(NEMESES)], help="these, once each, in this order"
    )
    return parser.parse_args()


def _say(began: float, line: str) -> None:
    sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
