"""What a long log costs."""

import statistics
from typing import Final

import psycopg

from benchmarks.history import EVENTS_A_TASK, fill, pass_dispatcher
from benchmarks.workloads import WARM_UP_TASKS, Figures, Launch, burst, warm_up

SHORTER: Final = 100
"""Times: the log that the long one is compared with."""
BURST: Final = 5_000
TURNS: Final = 3


def growth(launch: Launch, tasks: int) -> Figures:
    """Single submits onto a log of so many finished tasks, and onto one of a hundredth of them, in turn."""
    finished = {"short": tasks // SHORTER, "long": tasks}
    for name, count in finished.items():
        _fill(launch, name, count)
    rounds: dict[str, list[Figures]] = {name: [] for name in finished}
    for _ in range(TURNS):
        for name, figures in rounds.items():
            with launch(1, database=name, fresh=False) as running:
                running.await_completed(finished[name])
                running.work()
                warm_up(running, finished[name])
                figures.append(burst(running, finished[name] + WARM_UP_TASKS, BURST))
            finished[name] += WARM_UP_TASKS + BURST
    short, long = (_median(figures, "completed/s") for figures in rounds.values())
    cpu = {f"{name}, CPU ms/task": _median(figures, "CPU ms/task") for name, figures in rounds.items()}
    return {
        "events": EVENTS_A_TASK * tasks,
        "short, completed/s": short,
        "long, completed/s": long,
        "share": long / short,
        **cpu,
    }


def _fill(launch: Launch, database: str, tasks: int) -> None:
    """With what everybody had made of such a log."""
    with launch(0, database=database).prepared() as running:
        fill(running.dsn, tasks)
        pass_dispatcher(running.dsn)
        running.rebuild()
        with psycopg.connect(running.dsn, autocommit=True) as connection:
            connection.execute("vacuum analyze")


def _median(rounds: list[Figures], name: str) -> float:
    return statistics.median(one[name] for one in rounds)
