"""A campaign's summary, as a table to read and to paste."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from tests.chaos.campaign import Outcome, Plan

_GROUPS: Final = {
    "kill-": "processes killed (SIGKILL)",
    "freeze-": "processes frozen (SIGSTOP, SIGCONT)",
    "terminate-": "processes stopped (SIGTERM)",
    "at-": "processes killed at a named border",
    "postgres-": "faults of PostgreSQL and of the way there",
    "redis-": "faults of Redis and of the way there",
}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of all; nan without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def table(plan: Plan, outcome: Outcome) -> str:
    """In Markdown."""
    lines = [
        "| what | figure |",
        "|---|---|",
        *(f"| {what} | {figure} |" for what, figure in _rows(plan, outcome)),
    ]
    return "\n".join(lines)


def findings(outcome: Outcome) -> str:
    """Why a campaign did not pass; empty if it did."""
    verdict = outcome.verdict
    lines = [f"INVALID: {reason}" for reason in verdict.invalid]
    lines += [f"{violation.invariant}: {violation.detail}" for violation in verdict.violations]
    return "\n".join([*lines, outcome.verified])


def _rows(plan: Plan, outcome: Outcome) -> Iterator[tuple[str, str]]:
    counts, evidence = outcome.verdict.counts, outcome.evidence
    yield "seed, length", f"{plan.seed}, {outcome.seconds / 60:.1f} min"
    fired = Counter(_group(fault.name) for fault in evidence.faults if fault.fired)
    for group in _GROUPS.values():
        yield group, f"{fired[group]:,}"
    yield "operations by clients, without an answer", f"{counts.operations:,}, {counts.unanswered:,}"
    yield "tasks acknowledged", f"{counts.acknowledged:,}"
    yield "tasks never acknowledged, yet there", f"{counts.recovered:,}"
    yield "events, handler executions", f"{len(evidence.log):,}, {counts.executions:,}"
    yield "**tasks lost**", f"**{counts.lost}**"
    yield "**tasks doubled**", f"**{counts.doubled}**"
    yield "violations of any invariant", f"{outcome.verdict.totals.total()}"
    taken = f"a dead worker's task runs again (lease {plan.lease_seconds:g} s)"
    yield f"{taken}, p50, p99, of how many", _spread(outcome.takeovers)
    yield "the same while other faults strike", _spread(outcome.stormy_takeovers)


def _spread(seconds: Sequence[float]) -> str:
    return f"{percentile(seconds, 0.5):.1f} s, {percentile(seconds, 0.99):.1f} s, {len(seconds):,}"


def _group(name: str) -> str:
    return next(group for prefix, group in _GROUPS.items() if name.startswith(prefix))
