"""Which kinds there are, what their payloads must look like, and what a request leaves to them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from pydantic import ValidationError

from command_side.api.body import violations_of
from command_side.api.external import ExternalPayload
from command_side.api.schemas import MAX_DELAY_SECONDS, NewTask
from command_side.commands import CreateTask
from command_side.errors import InvalidCommand, UnknownKind, Violation
from events.errors import ConfigurationError
from events.task_events import Priority, RetryPolicy
from taskledger.http import MAX_ERRORS
from taskledger.registry import Kind, Registry
from taskledger.settings import ExternalKind

_LONGEST: Final = timedelta(seconds=MAX_DELAY_SECONDS)
_NOT_ENCRYPTED: Final = (
    "could not be erased later: encryption is off (TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE is not set)"
)


class _Payload(Protocol):
    def violations(self, payload: Any, at: str) -> tuple[Violation, ...]: ...


@dataclass(frozen=True, slots=True)
class _HandlerPayload:
    kind: Kind

    def violations(self, payload: Any, at: str) -> tuple[Violation, ...]:
        try:
            self.kind.validate_payload(payload)
        except ValidationError as error:
            return violations_of(error, at)
        return ()


@dataclass(frozen=True, slots=True)
class _Defaults:
    payload: _Payload
    queue: str
    priority: Priority = "normal"
    max_attempts: int = 5
    timeout_seconds: float = 300.0
    retry: RetryPolicy | None = None


class Kinds:
    """Raises ConfigurationError for a name both of a handler and an external kind, or a schema that
    is none."""

    def __init__(
        self, registry: Registry, external: Mapping[str, ExternalKind], *, encrypts: bool = False
    ) -> None:
        self._encrypts = encrypts
        self.external: Final = tuple(external)
        self._known: dict[str, _Defaults] = {
            name: _Defaults(
                _HandlerPayload(kind),
                kind.queue,
                kind.priority,
                kind.max_attempts,
                kind.timeout_seconds,
                kind.retry,
            )
            for name, kind in registry.kinds.items()
        }
        for name, kind in external.items():
            if name in self._known:
                raise ConfigurationError(
                    f"TASKLEDGER__EXTERNAL_KINDS: a handler already runs the kind {name!r}"
                )
            self._known[name] = _Defaults(ExternalPayload(name, kind.payload_schema), kind.queue)

    def commands(self, bodies: Iterable[tuple[str, NewTask]], now: datetime) -> list[CreateTask]:
        """One command a body, in order; each comes with its place in the request.

        Raises UnknownKind if that is all that is wrong, else InvalidCommand; both name up to 100 places.
        """
        commands: list[CreateTask] = []
        unknown: list[Violation] = []
        invalid: list[Violation] = []
        for at, body in bodies:
            defaults = self._known.get(body.kind)
            if defaults is None:
                unknown.append(Violation(f"{at}/kind", "no handler and no external kind has this name"))
                continue
            wrong = [
                *_schedule_violations(body, now, at),
                *defaults.payload.violations(body.payload, f"{at}/payload"),
            ]
            if body.subject is not None and not self._encrypts:
                wrong.append(Violation(f"{at}/subject", _NOT_ENCRYPTED))
            invalid.extend(wrong)
            if not (wrong or unknown or invalid):
                commands.append(_command(body, defaults, now))
            if len(unknown) + len(invalid) >= MAX_ERRORS:
                break
        if invalid:
            raise InvalidCommand("the request does not fit", (*invalid, *unknown))
        if unknown:
            raise UnknownKind("the kind is not known", tuple(unknown))
        return commands

    def claimable(self, asked: Sequence[str] | None) -> tuple[str, ...]:
        """The external kinds asked for, or all. Raises UnknownKind for what no client may claim."""
        if asked is None:
            if not self.external:
                raise UnknownKind("no kind is worked on over HTTP: TASKLEDGER__EXTERNAL_KINDS is empty")
            return self.external
        wrong = [
            Violation(f"/kinds/{n}", "no external kind has this name")
            for n, name in enumerate(asked)
            if name not in self.external
        ]
        if wrong:
            raise UnknownKind("only external kinds can be claimed", tuple(wrong))
        return tuple(asked)


def _schedule_violations(body: NewTask, now: datetime, at: str) -> list[Violation]:
    if body.run_at is None:
        return []
    if body.delay_seconds is not None:
        return [Violation(f"{at}/delay_seconds", "cannot be given together with run_at")]
    if body.run_at > now + _LONGEST:
        return [Violation(f"{at}/run_at", "lies more than ten years ahead")]
    return []


def _command(body: NewTask, defaults: _Defaults, now: datetime) -> CreateTask:
    given = body.model_fields_set
    run_at = body.run_at
    if body.delay_seconds:
        run_at = now + timedelta(seconds=body.delay_seconds)
    return CreateTask(
        kind=body.kind,
        payload=body.payload,
        queue=body.queue if "queue" in given else defaults.queue,
        priority=body.priority if "priority" in given else defaults.priority,
        run_at=run_at,
        max_attempts=body.max_attempts if "max_attempts" in given else defaults.max_attempts,
        timeout_seconds=body.timeout_seconds if "timeout_seconds" in given else defaults.timeout_seconds,
        retry=defaults.retry,
        tags=tuple(body.tags),
        subject=body.subject,
    )
