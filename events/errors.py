"""The error tree. Every error a caller can meet has a stable `code` and says whether a retry can help.

TaskledgerError
├── CommandRejected            the command cannot be carried out as asked (HTTP 4xx)
│   └── …                      the rejections of the command side: see command_side.errors
├── Unavailable                nothing is wrong with the request; try again (HTTP 503)
│   ├── StoreUnavailable       PostgreSQL does not answer within the deadline, or the outcome is unknown
│   │   └── StorageFull        it answers, but has no room left to store anything
│   ├── BrokerUnavailable      Redis does not answer
│   ├── KeyUnavailable         the text is encrypted, and this process cannot get at its key
│   ├── RequestExpired         the request had waited longer than its budget before it was read
│   └── ReadModelLagging       the projector has not reached the position asked for
├── Overloaded                 more work is waiting than the process accepts (HTTP 429)
├── ConcurrencyConflict        the task changed five times while we decided (HTTP 409)
├── LogRewound                 a position of another log, or one from before a restore (HTTP 409)
├── MalformedPosition          what should be a position token is none (HTTP 400)
├── MalformedHead              what should be a head of the tree over the log is none (HTTP 400)
├── ArchiveRefused             a file that cannot be imported, or a log that takes none
├── LogError                   the log holds something this release cannot use; followers stop and say so
│   ├── UnknownEvent           a `Task…` topic, or a version of one, that this release does not know
│   └── UndecodableEvent       a known topic whose state cannot be read
│       └── SealBroken         its sealed text belongs to another place, or was tampered with
├── CheckpointConflict         another writer moved the checkpoint: this one is no longer the leader
├── SchemaNotReady             the database has not been migrated to what this release needs
└── ConfigurationError         a setting or a server setting stops the process at start, in one line
    └── EmbeddedServerError    an embedded server cannot be started where it was asked to live
"""

# ruff: noqa: N818  names say what is wrong; that they are errors shows where they are raised

from typing import ClassVar


class TaskledgerError(Exception):
    """Root of all our errors. `str(error)` is fit for a client: it never echoes input or secrets."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False


class CommandRejected(TaskledgerError):
    code = "command_rejected"
    status = 409


class Unavailable(TaskledgerError):
    code = "unavailable"
    status = 503
    retryable = True


class StoreUnavailable(Unavailable):
    """The database did not answer within the deadline. For a command the outcome may be unknown:
    it may be in the log. Retrying with the same idempotency key finds out."""

    code = "store_unavailable"


class StorageFull(StoreUnavailable):
    code = "storage_full"


class BrokerUnavailable(Unavailable):
    code = "broker_unavailable"


class KeyUnavailable(Unavailable):
    code = "key_unavailable"


class RequestExpired(Unavailable):
    """Nothing was done. Its client has most likely given up: doing it now would be a surprise."""

    code = "expired"


class ReadModelLagging(Unavailable):
    code = "read_model_lagging"


class Overloaded(TaskledgerError):
    code = "overloaded"
    status = 429
    retryable = True


class ConcurrencyConflict(TaskledgerError):
    code = "wrong_state"
    status = 409
    retryable = True


class LogRewound(TaskledgerError):
    code = "log_rewound"
    status = 409


class MalformedPosition(TaskledgerError):
    code = "malformed_position"
    status = 400


class MalformedHead(TaskledgerError):
    code = "malformed_head"
    status = 400


class ArchiveRefused(TaskledgerError):
    code = "archive_refused"


class LogError(TaskledgerError):
    code = "log_error"


class UnknownEvent(LogError):
    """Raised at decoding. The reader must stop before this event: passing over it would be a wrong fold."""

    code = "unknown_event"


class UndecodableEvent(LogError):
    code = "undecodable_event"


class SealBroken(UndecodableEvent):
    code = "seal_broken"


class CheckpointConflict(TaskledgerError):
    code = "checkpoint_conflict"


class SchemaNotReady(TaskledgerError):
    code = "schema_not_ready"
    retryable = True


class ConfigurationError(TaskledgerError):
    code = "configuration_error"


class EmbeddedServerError(ConfigurationError):
    code = "embedded_server_error"
