"""Every fault once, in three campaigns: nothing is lost, nothing doubled, and all the rest holds.

CHAOS_SEED deals the faults anew; a failing campaign says with which seed.
"""

import os
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign, Plan
from tests.chaos.nemesis import NEMESES, deal
from tests.chaos.report import findings, table

SEED = int(os.environ.get("CHAOS_SEED", "1"))
CAMPAIGNS = 3

pytestmark = [
    pytest.mark.xdist_group("chaos"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc"),
]


@pytest.mark.parametrize("hand", range(CAMPAIGNS))
def test_nothing_is_lost_and_nothing_doubled_whatever_breaks(tmp_path: Path, hand: int) -> None:
    plan = Plan(seed=SEED + hand, faults=deal(SEED, CAMPAIGNS)[hand])
    told: list[str] = []
    outcome = Campaign(tmp_path, plan, told.append).run()
    story = "\n".join([f"CHAOS_SEED={SEED}", *told, table(plan, outcome), findings(outcome)])
    assert outcome.passed, story


def test_the_campaigns_have_every_fault_once() -> None:
    dealt = [fault for hand in deal(SEED, CAMPAIGNS) for fault in hand]
    assert sorted(dealt) == sorted(NEMESES)
