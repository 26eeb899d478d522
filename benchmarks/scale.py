"""What a long log and a long queue cost."""

import statistics
import time
from typing import Final

import psycopg

from benchmarks.history import EVENTS_A_TASK, fill, pass_dispatcher
from benchmarks.subject import WrongError
from benchmarks.workloads import WARM_UP_TASKS, Figures, Launch, burst, drain, warm_up

SHORTER: Final = 100
"""Times: the log that the long one is compared with."""
BURST: Final = 5_000
TURNS: Final = 3
FOLLOWED_SECONDS: Final = 300.0
"""Followers may take to read a backlog."""


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
    by_process = {
        f"{one}, {name}": _median(figures, one)
        for name, figures in rounds.items()
        for one in figures[0]
        if one.startswith("CPU ms/task: ")
    }
    return {
        "events": EVENTS_A_TASK * tasks,
        "short, completed/s": short,
        "long, completed/s": long,
        "share": long / short,
        **cpu,
        **by_process,
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


def backlog(launch: Launch, tasks: int) -> Figures:
    """So many queued while nobody works; a worker comes when all followers have seen them."""
    with launch(1) as running:
        empty = running.bytes_kept()
        enqueued = running.enqueue(tasks)
        deadline = time.monotonic() + FOLLOWED_SECONDS
        while (followed := (running.counted("by_status", "queued"), running.entries())) != (tasks, tasks):
            if time.monotonic() > deadline:
                raise WrongError(f"of {tasks} tasks, {followed} are readable and in Redis as queued")
            time.sleep(0.2)
        kept = running.bytes_kept()
        rate, _ = drain(running, tasks)
        peaks = running.peaks()
    return {
        "enqueued/s": tasks / enqueued,
        "drained/s": rate,
        "Redis MiB": kept["Redis"] / 2**20,
        **{f"{name} bytes/task": (after - empty[name]) / tasks for name, after in kept.items()},
        **{f"{name}, peak MiB": peak for name, peak in peaks.items()},
    }
