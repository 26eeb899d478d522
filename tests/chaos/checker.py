"""Holds a campaign's evidence against what the service promises. Linear in the size of the evidence.

A run that could not have shown a fault is invalid, which is not the same as passed.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from tests.chaos import liveness, safety, views
from tests.chaos.evidence import Evidence
from tests.chaos.facts import Facts, Violation

__all__ = ["INVARIANTS", "Counts", "Verdict", "Violation", "check"]

ANSWERED_SHARE: Final = 0.9
"""Of all operations, how many must have a definite answer for a run to say anything."""
SHOWN: Final = 20
"""Violations of one invariant that are told one by one."""

INVARIANTS: Final[dict[str, Callable[[Facts], Iterator[str]]]] = {
    "I1": safety.i1_acknowledged_is_logged,
    "I2": safety.i2_logged_was_attempted,
    "I3": safety.i3_wholly_in_or_out,
    "I4": safety.i4_one_task_a_key,
    "I5": safety.i5_one_end,
    "I6": safety.i6_legal_history,
    "I7": safety.i7_one_order,
    "I8": views.i8_real_time_order,
    "I9": views.i9_reads_equal_the_fold,
    "I10": views.i10_tokens_are_honoured,
    "I11": views.i11_sessions_never_go_back,
    "I12": views.i12_effects_are_fenced,
    "I13": views.i13_tenants_are_apart,
    "L1": liveness.l1_everything_ends,
    "L2": liveness.l2_projection_caught_up,
    "L3": liveness.l3_nothing_is_stuck,
    "L4": liveness.l4_nothing_leaks,
}


@dataclass(frozen=True, slots=True)
class Counts:
    """For the summary. Tasks are counted by their mark."""

    attempted: int
    acknowledged: int
    recovered: int
    """Never acknowledged, yet in the log: unknown outcomes that had come about."""
    lost: int
    doubled: int
    operations: int
    unanswered: int
    """Operations whose outcome their client never learnt."""
    executions: int
    repeated: int
    """Executions beyond the first of each task: retries, and attempts given to another worker."""


@dataclass(frozen=True, slots=True)
class Verdict:
    invalid: list[str]
    """Why the run proves nothing."""
    violations: list[Violation]
    counts: Counts
    totals: Counter[str] = field(default_factory=Counter[str])
    """Violations by invariant; `violations` shows the first of many."""

    @property
    def passed(self) -> bool:
        return not self.invalid and not self.violations


def check(evidence: Evidence) -> Verdict:
    """Violations are told of an invalid run too: a fault that is seen is a fault."""
    facts = Facts(evidence)
    violations: list[Violation] = []
    totals: Counter[str] = Counter()
    for name, invariant in INVARIANTS.items():
        found = invariant(facts)
        violations.extend(Violation(name, detail) for detail in islice(found, SHOWN))
        told = sum(violation.invariant == name for violation in violations)
        more = sum(1 for _ in found)
        if told:
            totals[name] = told + more
        if more:
            violations.append(Violation(name, f"… and {more} more"))
    return Verdict(list(_invalid(facts)), violations, _counts(facts), totals)


def _invalid(facts: Facts) -> Iterator[str]:
    evidence = facts.evidence
    for fault in evidence.faults:
        if fault.planned and not fault.fired:
            yield f"the fault {fault.name} did not fire: {fault.detail}"
    yield from facts.torn
    if not evidence.history:
        yield "the history is empty"
        return
    definite = sum(operation.outcome in ("ok", "fail") for operation in facts.operations)
    if definite < ANSWERED_SHARE * len(facts.operations):
        yield f"only {definite} of {len(facts.operations)} operations have a definite answer"
    if not any(operation.created for operation in facts.operations):
        yield "no task was ever acknowledged"


def _counts(facts: Facts) -> Counts:
    created, intents = facts.creations, facts.intents
    acknowledged = {mark for mark, intent in intents.items() if intent.is_acknowledged}
    executions = Counter(effect.task for effect in facts.evidence.effects)
    return Counts(
        attempted=len(intents),
        acknowledged=len(acknowledged),
        recovered=sum(mark in created for mark in intents.keys() - acknowledged),
        lost=sum(mark not in created for mark in acknowledged),
        doubled=sum(len(created.get(mark, ())) > intent.at_most for mark, intent in intents.items()),
        operations=len(facts.operations),
        unanswered=sum(operation.outcome == "info" for operation in facts.operations),
        executions=executions.total(),
        repeated=executions.total() - len(executions),
    )
