"""Why a question gets no answer, beside what events.errors has.

TaskledgerError
├── QueryRejected
│   ├── TaskNotFound       404  no task has this id, or had it at the time asked for
│   ├── WebhookNotFound    404  no webhook has this id
│   ├── ProjectionNotKept  404  the projector does not keep what is asked for
│   ├── MalformedCursor    400  not a cursor of this list, of these filters, of this log
│   ├── InvalidQuery       422  well-formed, but asks for something that cannot be
│   └── AsOfOutOfReach     422  a time or position of which the log cannot tell any more, or could not yet
└── Unavailable
    ├── NotSealedYet       503  the sealer has not come to what a proof is asked of
    └── TooManyStreams     503  as many live streams are open as this process takes
"""

# ruff: noqa: N818  names say what is wrong, as in events.errors

from dataclasses import dataclass

from events.errors import TaskledgerError, Unavailable


class QueryRejected(TaskledgerError):
    code = "query_rejected"
    status = 400


class TaskNotFound(QueryRejected):
    code = "task_not_found"
    status = 404

    def __init__(self, detail: str = "there is no task with this id") -> None:
        super().__init__(detail)


class WebhookNotFound(QueryRejected):
    code = "webhook_not_found"
    status = 404

    def __init__(self) -> None:
        super().__init__("there is no webhook with this id")


class ProjectionNotKept(QueryRejected):
    code = "projection_not_kept"
    status = 404

    def __init__(self, projection: str) -> None:
        super().__init__(
            f"the projection {projection} is not kept: TASKLEDGER__PROJECTIONS of the projector names it"
        )


class MalformedCursor(QueryRejected):
    code = "malformed_cursor"

    def __init__(self) -> None:
        super().__init__(
            "the cursor does not belong to this list with these filters; start anew without it"
        )


@dataclass(frozen=True, slots=True)
class Violation:
    location: str
    """A JSON Pointer: /query/<parameter>."""
    message: str


class InvalidQuery(QueryRejected):
    code = "invalid_request"
    status = 422

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__("the request does not fit")
        self.violations = (Violation(f"/query/{parameter}", message),)


class AsOfOutOfReach(QueryRejected):
    code = "as_of_out_of_reach"
    status = 422


class NotSealedYet(Unavailable):
    code = "not_sealed_yet"

    def __init__(self, position: int) -> None:
        what = f"position {position}" if position else "anything"
        super().__init__(f"the sealer has not sealed {what} yet: `taskledger sealer` does")


class TooManyStreams(Unavailable):
    code = "too_many_streams"

    def __init__(self) -> None:
        super().__init__("this process takes no more streams now: try another one, or later")
