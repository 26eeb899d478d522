"""Profiles. `pytest tests/properties --hypothesis-profile=long --timeout=0` looks on for a night."""

from hypothesis import HealthCheck, settings

_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
"""The machine is shared and histories are long; neither says anything about the code."""

settings.register_profile(
    "long", deadline=None, max_examples=5_000, stateful_step_count=120, suppress_health_check=_SLOW
)
