"""Each planted bug is seen for what it is; what brings it to light does no harm without it."""

from pathlib import Path

import pytest

from tests.chaos.planted import SCENARIOS, Exposure, findings
from tests.chaos.plants import PLANTS
from tests.chaos.report import findings as told

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("chaos"), pytest.mark.timeout(180)]

CASES = [(scenario, plant) for scenario, one in SCENARIOS.items() for plant in one.plants]


@pytest.mark.parametrize(("name", "plant"), CASES)
def test_a_planted_bug_is_seen(tmp_path: Path, name: str, plant: str) -> None:
    scenario = SCENARIOS[name]
    outcome = Exposure(tmp_path, scenario, plant).run()
    assert findings(scenario, outcome) & scenario.plants[plant], told(outcome)


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_found_without_a_bug(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    outcome = Exposure(tmp_path, scenario, None).run()
    assert not findings(scenario, outcome), told(outcome)
    assert outcome.verdict.passed, told(outcome)


def test_every_planted_bug_has_a_scenario() -> None:
    assert sorted(plant for _, plant in CASES) == sorted(PLANTS)
