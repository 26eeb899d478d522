"""Exponential backoff with full jitter. Pure: the random part comes from the caller."""

from events.task_events import RetryPolicy

DEFAULT_POLICY = RetryPolicy()


def backoff_seconds(policy: RetryPolicy | None, failures: int, jitter: float) -> float:
    """How long to wait after the given number of counted failures (1 for the first).

    Full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/): tasks
    that failed together do not come back together.
    """
    policy = policy or DEFAULT_POLICY
    exponent = min(failures - 1, 63)  # 2**63 s is beyond any cap, and floats stay finite
    return jitter * min(policy.cap_seconds, policy.base_seconds * 2.0**exponent)
