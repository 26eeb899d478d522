"""`make bench`: every workload on every subject in turn, again in each round.

make bench ARGS='single bulk --subjects ours,pgqueuer --rounds 1' runs a part of it.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks import report, workloads
from benchmarks.limits import LIMITS
from benchmarks.processes import ProcessEndedError
from benchmarks.rebuild import rebuild
from benchmarks.scale import backlog, growth
from benchmarks.servers import DATABASE, POSTGRES, Servers, running
from benchmarks.subject import ROOT, Running, Subject, WrongError, all_subjects

Work = Callable[[workloads.Launch, int], workloads.Figures]
WORKLOADS: dict[str, tuple[Work, int]] = {
    "accept": (workloads.accept, 10_000),
    "single": (workloads.single, 5_000),
    "bulk": (partial(workloads.bulk, workers=1), 20_000),
    "bulk-2": (partial(workloads.bulk, workers=2), 20_000),
    "latency": (workloads.latency, 200),
    "rebuild": (rebuild, 333_334),
    "growth": (growth, 1_666_667),
    "backlog": (backlog, 1_000_000),
}
"""With how many tasks."""
OURS: Final = {"accept", "rebuild", "growth", "backlog"}
"""Of the peers none has a log, and `accept` is held against an endpoint that does nothing."""
ONCE: Final = {"growth", "backlog"}
"""Whatever the rounds: each takes minutes; `growth` repeats within itself."""


def main() -> int:
    options = _options()
    subjects = all_subjects()
    chosen = {name: subjects[name] for name in options.subjects or subjects}
    pythons = {name: one.install(options.environments) for name, one in chosen.items()}
    results: dict[str, dict[str, list[workloads.Figures]]] = {name: {} for name in options.parts}
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, running(Path(folder)) as servers:
        for number in range(options.rounds):
            for part in [part for part in options.parts if number == 0 or part not in ONCE]:
                for name, one in [*_able(chosen, part), *_limits_of(part)]:
                    launch = partial(_launch, one, pythons.get(name), servers, Path(folder, "logs", name))
                    began, what = time.monotonic(), f"round {number + 1}, {part}, {one.title}"
                    try:
                        figures = WORKLOADS[part][0](launch, options.tasks or WORKLOADS[part][1])
                    except (WrongError, ProcessEndedError) as error:
                        failures.append(f"{what}: {error}")
                        _say(failures[-1])
                        continue
                    results[part].setdefault(one.title, []).append(figures)
                    _say(f"{what}: {_line(figures, began)}")
            _write(options.out, number + 1, results, failures)
    return 1 if failures else 0


def _able(chosen: dict[str, Subject], part: str) -> list[tuple[str, Subject]]:
    return [(name, one) for name, one in chosen.items() if part not in OURS or one.name == "ours"]


def _limits_of(part: str) -> list[tuple[str, Subject]]:
    """What nothing can be faster than, measured beside it."""
    return [(one.name, one) for one in LIMITS.get(part, [])]


def _launch(
    subject: Subject,
    python: Path | None,
    servers: Servers,
    logs: Path,
    workers: int,
    *,
    database: str = DATABASE,
    fresh: bool = True,
) -> Running:
    executable = python or Path(sys.executable)
    return Running(subject, executable, servers.of(database), logs, workers, fresh=fresh)


def _line(figures: workloads.Figures, began: float) -> str:
    shown = [
        f"{name} {value:,.2f}" for name, value in figures.items() if not name.startswith("CPU ms/task: ")
    ]
    return f"{', '.join(shown)} ({time.monotonic() - began:.0f} s)"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _machine(rounds: int) -> dict[str, Any]:
    packages = ("fastapi", "uvicorn", "psycopg", "redis", "eventsourcing")
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postgresql settings": {**POSTGRES, "fsync": "on", "synchronous_commit": "on"},
        "packages": {name: version(name) for name in packages},
        "rounds": rounds,
    }


def _write(
    out: Path, rounds: int, results: dict[str, dict[str, list[workloads.Figures]]], failures: list[str]
) -> None:
    """After each round: a run that is cut short leaves what it has."""
    out.mkdir(parents=True, exist_ok=True)
    machine = _machine(rounds)
    header = (
        f"Median (least–most) of {rounds} rounds, all subjects in turn in each; {machine['cores']} cores, "
        f"everything on them; Python {machine['python']}; fsync and synchronous_commit on."
    )
    failed = [f"No figure: {failure.splitlines()[0]}" for failure in failures]
    text = "\n\n".join([report.markdown(header, results).rstrip(), *failed]) + "\n"
    (out / "results.md").write_text(text)
    (out / "results.json").write_text(report.as_json(machine, results))
    if results.get("single"):
        medians = {
            title: statistics.median(one["completed/s"] for one in figures)
            for title, figures in results["single"].items()
        }
        title = "HTTP tasks a second, submitted one by one, until all are readable as completed"
        (out / "chart.svg").write_text(report.chart(title, medians))
    _say(f"\n{text}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(WORKLOADS)}; all if none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, help="instead of what each workload has")
    parser.add_argument(
        "--subjects", type=lambda text: text.split(","), help="folders, with commas between"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--environments", type=Path, default=Path(".taskledger/bench"))
    options = parser.parse_args()
    options.parts = options.parts or list(WORKLOADS)
    if unknown := set(options.parts) - set(WORKLOADS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
