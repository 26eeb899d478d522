"""Rounds into a table, a JSON document and a chart."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

Rounds = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]
"""Workload, subject, one dictionary of figures a round."""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


def cell(values: Sequence[float]) -> str:
    """Median (least-most)."""
    spread = f" ({_number(min(values))}–{_number(max(values))})" if len(values) > 1 else ""
    return _number(statistics.median(values)) + spread


def table(workload: str, by_subject: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    columns = list(dict.fromkeys(name for rounds in by_subject.values() for one in rounds for name in one))
    columns = [name for name in columns if not name.startswith("CPU ms/task: ")]
    lines = [f"### {workload}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for subject, rounds in by_subject.items():
        cells = [
            cell([one[name] for one in rounds if name in one])
            if any(name in one for one in rounds)
            else "–"
            for name in columns
        ]
        lines.append(f"| {subject} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cpu_table(by_subject: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Where the CPU time of a task went, by process."""
    lines = ["### CPU ms per task, by process", "", "| | |", "|---|---|"]
    for subject, rounds in by_subject.items():
        names = [name for name in rounds[0] if name.startswith("CPU ms/task: ")]
        parts = [
            f"{name.removeprefix('CPU ms/task: ')} {statistics.median(one[name] for one in rounds):.2f}"
            for name in names
        ]
        lines.append(f"| {subject} | {', '.join(parts)} |")
    return "\n".join(lines)


def markdown(header: str, results: Rounds) -> str:
    parts = [header]
    for workload, by_subject in results.items():
        if not by_subject:
            continue
        parts.append(table(workload, by_subject))
        if workload == "single":
            parts.append(cpu_table(by_subject))
    return "\n\n".join(parts) + "\n"


def as_json(machine: Mapping[str, Any], results: Rounds) -> str:
    return json.dumps({"machine": machine, "rounds": results}, indent=1) + "\n"


_LETTER: Final = 7.0
"""About as wide as one of the chart's, in its pixels."""


def chart(title: str, medians: Mapping[str, float]) -> str:
    """Bars, the first in colour. SVG."""
    ordered = sorted(medians.items(), key=lambda item: -item[1])
    most, first = max(medians.values()), next(iter(medians))
    left = 20 + _LETTER * max(map(len, medians))
    bars: list[str] = []
    for row, (name, value) in enumerate(ordered):
        y, width = 40 + 26 * row, 420 * value / most
        colour = "#2563eb" if name == first else "#9ca3af"
        bars.append(
            f'<text x="{left - 10:.0f}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{left:.0f}" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>'
            f'<text x="{left + 6 + width:.1f}" y="{y + 14}">{_number(value)}</text>'
        )
    size = f'width="{left + 490:.0f}" height="{50 + 26 * len(ordered)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
        'font-family="sans-serif" font-size="13" fill="#111827">'
        '<rect width="100%" height="100%" fill="#ffffff"/>'
        f'<text x="10" y="22" font-size="15">{escape(title)}</text>{"".join(bars)}</svg>\n'
    )
