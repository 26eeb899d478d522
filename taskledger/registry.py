"""Kinds of tasks: the `@task` decorator, and the registry that a process loads from named modules.

The decorator only attaches a definition to its function: there is no global registry, importing a
module of handlers does no I/O, and the same module can serve several registries (tests do that).
"""

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, Final, Literal, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import InitErrorDetails, PydanticCustomError

from events.errors import ConfigurationError
from events.task_events import Priority, RetryPolicy
from taskledger.context import TaskContext

Execution = Literal["async", "thread", "process"]
Function = TypeVar("Function", bound=Callable[..., Any])

MAX_ATTEMPTS: Final = 100
MAX_TIMEOUT_SECONDS: Final = 7 * 86400.0
_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_ATTRIBUTE: Final = "__taskledger_kind__"


@dataclass(frozen=True)
class Kind:
    """One kind of task: how it runs and what goes in and out.

    Queue, priority, attempts, timeout and retry policy are defaults: a client may ask for others.
    """

    name: str
    queue: str
    priority: Priority
    max_attempts: int
    timeout_seconds: float
    execution: Execution
    retry: RetryPolicy | None
    """None: the service's own policy."""
    function: Callable[..., Any] = field(repr=False)
    takes_context: bool
    payload_type: Any = field(repr=False)
    result_type: Any = field(repr=False)

    @property
    def where(self) -> str:
        return f"{self.function.__module__}:{self.function.__qualname__}"

    @cached_property
    def payload_adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.payload_type)

    @cached_property
    def result_adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.result_type)

    @cached_property
    def payload_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of what clients send."""
        return self.payload_adapter.json_schema(mode="validation")

    @cached_property
    def result_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of what the task answers."""
        return self.result_adapter.json_schema(mode="serialization")

    def validate_payload(self, value: Any) -> Any:
        """The payload as its handler gets it, from plain JSON values. Raises pydantic ValidationError.

        Strict, by the rules for JSON: "5" is no number and true is no 1, but a time, a UUID or a
        tuple is written as JSON can write it. Whether unknown fields are refused is the type's choice.
        """
        try:
            encoded = orjson.dumps(value)
        except (orjson.JSONEncodeError, RecursionError):
            raise _not_json(self.name) from None
        return self.payload_adapter.validate_json(encoded, strict=True)


@dataclass(frozen=True)
class Registry:
    """The kinds a process knows, by name, and the modules they came from."""

    modules: tuple[str, ...]
    kinds: Mapping[str, Kind]


def task(
    name: str,
    *,
    queue: str = "default",
    priority: Priority = "normal",
    max_attempts: int = 5,
    timeout_seconds: float = 300.0,
    execution: Literal["process"] | None = None,
    retry: RetryPolicy | None = None,
) -> Callable[[Function], Function]:
    """Makes a function the handler of a kind; the function itself stays as it is.

    The first parameter's annotation is the payload's type (a pydantic model, or whatever a
    TypeAdapter takes), the return annotation the result's; a second parameter gets the TaskContext.
    `async def` runs on the worker's event loop and must not block it; `def` runs in a thread;
    `execution="process"` runs either in a child process that is killed at `timeout_seconds`.
    Raises ConfigurationError for a name, limit or signature that cannot work.
    """
    _check(name, queue, max_attempts, timeout_seconds)

    def attach(function: Function) -> Function:
        payload_type, result_type, takes_context = _signature(name, function)
        mode: Execution = execution or ("async" if inspect.iscoroutinefunction(function) else "thread")
        kind = Kind(
            name=name,
            queue=queue,
            priority=priority,
            max_attempts=max_attempts,
            timeout_seconds=float(timeout_seconds),
            execution=mode,
            retry=retry,
            function=function,
            takes_context=takes_context,
            payload_type=payload_type,
            result_type=result_type,
        )
        setattr(function, _ATTRIBUTE, kind)
        return function

    return attach


def load_registry(modules: Sequence[str]) -> Registry:
    """Imports the modules and collects their kinds.

    Raises ConfigurationError, in one line, for a module that cannot be imported or has no kinds, a
    type that has no JSON Schema, and a name that two handlers claim.
    """
    kinds: dict[str, Kind] = {}
    for name in modules:
        found = _kinds_of(_import(name))
        if not found:
            raise ConfigurationError(f"handlers: module {name} has no function decorated with @task")
        for kind in found:
            known = kinds.setdefault(kind.name, kind)
            if known is not kind:
                raise ConfigurationError(
                    f"handlers: two functions handle the kind {kind.name!r}: {known.where} and {kind.where}"
                )
            _prove_types(kind)
    return Registry(tuple(modules), kinds)


def kind_of(handler: Callable[..., Any]) -> Kind:
    """What `@task` made of a function. Raises ConfigurationError for one that it has not decorated."""
    kind = getattr(handler, _ATTRIBUTE, None)
    if not isinstance(kind, Kind):
        raise ConfigurationError("this is no function decorated with @task")
    return kind


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ConfigurationError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"handlers: cannot import {name}: {type(error).__name__}: {reason}"
        ) from error


def _kinds_of(module: ModuleType) -> list[Kind]:
    found = [getattr(value, _ATTRIBUTE, None) for value in vars(module).values() if callable(value)]
    return [kind for kind in found if isinstance(kind, Kind)]


def _check(name: str, queue: str, max_attempts: int, timeout_seconds: float) -> None:
    for what, value in (("kind", name), ("queue", queue)):
        if not _NAME.fullmatch(value):
            raise ConfigurationError(
                f"handlers: {value!r} cannot name a {what}: it takes a-z, then up to 63 of a-z 0-9 _ . -"
            )
    if not 1 <= max_attempts <= MAX_ATTEMPTS:
        raise ConfigurationError(f"handlers: {name}: max_attempts must be 1 to {MAX_ATTEMPTS}")
    if not 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS:
        raise ConfigurationError(
            f"handlers: {name}: timeout_seconds must be above 0, and {MAX_TIMEOUT_SECONDS:.0f} at most"
        )


def _signature(name: str, function: Callable[..., Any]) -> tuple[Any, Any, bool]:
    """Payload type, result type, and whether the function takes a context."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigurationError(f"handlers: {name}: an annotation names nothing: {error}") from error
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) not in (1, 2) or any(p.kind not in positional for p in parameters):
        raise ConfigurationError(
            f"handlers: {name}: a handler takes a payload and, if it likes, a TaskContext"
        )
    if parameters[0].name not in hints:
        raise ConfigurationError(f"handlers: {name}: the payload has no type annotation")
    takes_context = len(parameters) == 2  # noqa: PLR2004  the payload, and this
    if takes_context and hints.get(parameters[1].name, TaskContext) is not TaskContext:
        raise ConfigurationError(f"handlers: {name}: the second parameter must be a TaskContext")
    return hints[parameters[0].name], hints.get("return", Any), takes_context


def _prove_types(kind: Kind) -> None:
    """Builds what is built at first use, so that a type that cannot work stops the process at start."""
    try:
        _ = kind.payload_schema, kind.result_schema
    except PydanticUserError as error:
        reason = " ".join(error.message.split())
        raise ConfigurationError(f"handlers: {kind.name}: a type cannot be used: {reason}") from error


def _not_json(name: str) -> ValidationError:
    detail: InitErrorDetails = {
        "type": PydanticCustomError("not_json", "the payload is not plain JSON"),
        "loc": (),
        "input": None,
    }
    return ValidationError.from_exception_data(name, [detail], input_type="json", hide_input=True)
