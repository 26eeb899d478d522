"""A task service whose only truth is an event log. What a module of handlers imports."""

from taskledger.context import Discard, RetryLater, TaskContext
from taskledger.registry import task

__all__ = ["Discard", "RetryLater", "TaskContext", "task"]
