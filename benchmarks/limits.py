"""What nothing of this kind can be faster than, measured as if it were a subject."""

from typing import Final

from benchmarks.subject import ROOT, Subject

LIMITS: Final = {"accept": [Subject.load(ROOT / "empty")]}
"""Beside which workload."""
