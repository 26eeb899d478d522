"""How processes are kept running: when they are started again, and what is told of their end."""

from collections.abc import Callable, Iterator

import pytest

from taskledger.children import LONGEST_PAUSE_SECONDS, Child, Ended, Restarts
from taskledger.lifecycle import EXIT_REFUSED, EXIT_REPLACE
from taskledger.supervisor import gist
from tests.support import wait_until


def test_a_process_that_keeps_failing_is_started_ever_more_rarely() -> None:
    restarts = Restarts()
    pauses = [restarts.after(1, 0.1) for _ in range(12)]
    assert pauses[:4] == [0.25, 0.5, 1.0, 2.0]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    assert restarts.failures == 12


def test_one_that_ran_well_before_begins_anew() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.after(1, 0.1)
    assert restarts.after(1, 3600) == 0.25


def test_a_planned_replacement_is_started_at_once_unless_it_spins() -> None:
    restarts = Restarts()
    assert (restarts.after(EXIT_REPLACE, 60), restarts.failures) == (0.0, 0)
    assert restarts.after(EXIT_REPLACE, 0.1) > 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("taskledger: TASKLEDGER__X: no", "TASKLEDGER__X: no"),
        (
            '{"event": "unforeseen error", "exception": "Trace\\n a\\nKeyError: 1"}',
            "unforeseen error: KeyError: 1",
        ),
        ("Killed", "Killed"),
        ("[1]", "[1]"),
        ("", "it said nothing"),
    ],
)
def test_the_gist_of_a_last_line(line: str, told: str) -> None:
    assert gist(line) == told


class Watched:
    """A child of the command, and what it did."""

    def __init__(self, *command: str) -> None:
        self.lines: list[tuple[str, str]] = []
        self.ends: list[Ended] = []
        self.child = Child(
            "it",
            command,
            env={"PATH": "/usr/bin:/bin"},
            on_line=lambda label, line: self.lines.append((label, line)),
            on_end=self.ends.append,
        )


@pytest.fixture
def watch() -> Iterator[Callable[..., Watched]]:
    started: list[Watched] = []

    def start(*command: str) -> Watched:
        watched = Watched(*command)
        watched.child.start()
        started.append(watched)
        return watched

    yield start
    for watched in started:
        watched.child.kill()
        assert watched.child.join(10)


def test_output_is_passed_on_line_by_line_and_the_end_is_told(watch: Callable[..., Watched]) -> None:
    watched = watch("version")
    wait_until(lambda: len(watched.ends) >= 2, "the second end")
    first, second = watched.ends[:2]
    assert (first.label, first.code, first.failures) == ("it", 0, 1)
    assert second.failures == 2
    assert watched.lines[0] == ("it", first.last_line)
    assert first.last_line[0].isdigit()


def test_the_line_of_a_refusal_reaches_the_supervisor(watch: Callable[..., Watched]) -> None:
    watched = watch("check", "ftp://nowhere")
    wait_until(lambda: watched.ends, "the end")
    assert watched.ends[0].code == EXIT_REFUSED
    assert watched.ends[0].last_line == "taskledger: ftp://nowhere is no http:// address"


def test_a_stopped_child_is_not_started_again(watch: Callable[..., Watched]) -> None:
    watched = watch("worker", "--help")
    watched.child.terminate()
    assert watched.child.join(10)
    assert watched.ends == []
