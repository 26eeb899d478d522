"""README.md says what is true: its examples are run as they stand, against a running `taskledger up`."""

from pathlib import Path

import pytest

from tests.e2e import examples
from tests.e2e.running import get, shell, up

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[2]


def test_every_example_prints_what_it_says(tmp_path: Path) -> None:
    with up(tmp_path) as process:
        command, query = process.urls
        examples.check(shell(examples.one_script(command, query), folder=tmp_path, within=150))
        dead = get(f"{query}/tasks?status=dead&kind=crash")["tasks"]
        assert [task["status"] for task in dead] == ["dead"]
        history = [e["type"] for e in get(f"{query}/tasks/{dead[0]['id']}/events")["events"]]
        assert history[-1] == "TaskDeadLettered"
        assert get(f"{query}/stats")["by_status"]["completed"] >= 1005


def test_it_is_short_enough_to_be_read() -> None:
    assert len(examples.README.read_text().splitlines()) <= 300


def test_every_file_that_is_linked_is_there() -> None:
    import re

    documents = [examples.README, *ROOT.glob("docs/*.md"), ROOT / "DECISIONS.md"]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
