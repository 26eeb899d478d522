"""Kinds: what @task accepts, what load_registry refuses, and how strictly payloads are read."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from events.errors import ConfigurationError
from events.task_events import RetryPolicy
from taskledger import TaskContext, task
from taskledger.registry import Kind, load_registry


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: UUID
    count: int
    price: float = 0.0
    at: datetime | None = None
    pair: tuple[int, int] = (0, 0)


async def handler(payload: Order) -> int:
    return payload.count


class Modules:
    """Makes modules of handlers that exist for one test."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def make(self, **members: Any) -> str:
        module = ModuleType(f"handlers_{uuid4().hex}")
        vars(module).update(members)
        sys.modules[module.__name__] = module
        self.names.append(module.__name__)
        return module.__name__


@pytest.fixture
def modules() -> Iterator[Modules]:
    made = Modules()
    yield made
    for name in made.names:
        del sys.modules[name]


def only_kind(modules: Modules, function: Any) -> Kind:
    return next(iter(load_registry([modules.make(function=function)]).kinds.values()))


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    assert task("untouched")(handler) is handler


def test_a_kind_says_how_it_runs(modules: Modules) -> None:
    policy = RetryPolicy(base_seconds=2)

    @task(
        "order",
        queue="orders",
        priority="high",
        max_attempts=3,
        timeout_seconds=5,
        execution="process",
        retry=policy,
    )
    def order(payload: Order, ctx: TaskContext) -> list[int]:
        return [payload.count]

    kind = only_kind(modules, order)

    assert (kind.name, kind.queue, kind.priority, kind.max_attempts) == ("order", "orders", "high", 3)
    assert (kind.timeout_seconds, kind.execution, kind.retry) == (5.0, "process", policy)
    assert kind.takes_context
    assert kind.payload_schema["required"] == ["id", "count"]
    assert kind.result_schema == {"items": {"type": "integer"}, "type": "array"}


def test_execution_follows_the_function(modules: Modules) -> None:
    @task("a")
    async def a(payload: Any) -> None: ...

    @task("b")
    def b(payload: Any) -> None: ...

    kinds = load_registry([modules.make(a=a, b=b)]).kinds
    assert (kinds["a"].execution, kinds["b"].execution) == ("async", "thread")


def test_a_function_imported_elsewhere_is_still_one_kind(modules: Modules) -> None:
    decorated = task("shared")(handler)
    names = [modules.make(one=decorated), modules.make(two=decorated)]
    assert list(load_registry(names).kinds) == ["shared"]


def test_two_functions_of_one_name_are_refused_by_both_names(modules: Modules) -> None:
    @task("same")
    async def first(payload: Any) -> None: ...

    @task("same")
    async def second(payload: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"first.*second"):
        load_registry([modules.make(first=first), modules.make(second=second)])


def test_modules_that_cannot_serve_are_refused_in_one_line(modules: Modules) -> None:
    with pytest.raises(ConfigurationError, match="cannot import no_such_module") as refused:
        load_registry(["no_such_module"])
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="no function decorated"):
        load_registry([modules.make(x=1)])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Upper", {}, "cannot name a kind"),
        ("", {}, "cannot name a kind"),
        ("x" * 65, {}, "cannot name a kind"),
        ("x", {"queue": "no spaces"}, "cannot name a queue"),
        ("x", {"max_attempts": 0}, "max_attempts"),
        ("x", {"max_attempts": 101}, "max_attempts"),
        ("x", {"timeout_seconds": 0}, "timeout_seconds"),
        ("x", {"timeout_seconds": float("nan")}, "timeout_seconds"),
        ("x", {"timeout_seconds": 8 * 86400}, "timeout_seconds"),
    ],
)
def test_names_and_limits(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        task(name, **options)


def test_signatures_that_cannot_work() -> None:
    def nothing() -> None: ...

    def untyped(payload) -> None: ...  # type: ignore[no-untyped-def]  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]

    def three(payload: int, ctx: TaskContext, more: int) -> None: ...

    def keyword(*, payload: int) -> None: ...

    def wrong(payload: int, ctx: int) -> None: ...

    def forward(payload: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]

    for function in (nothing, untyped, three, keyword, wrong, forward):  # pyright: ignore[reportUnknownVariableType]
        with pytest.raises(ConfigurationError, match="handlers: bad:"):
            task("bad")(function)  # pyright: ignore[reportUnknownArgumentType]


def test_types_without_a_schema_are_refused_at_start(modules: Modules) -> None:
    class Opaque: ...

    @task("opaque")
    async def opaque(payload: Opaque) -> None: ...

    with pytest.raises(ConfigurationError, match="opaque: a type cannot be used"):
        load_registry([modules.make(opaque=opaque)])


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"count": "5"}, ("count",)),
        ({"count": True}, ("count",)),
        ({"count": 5.5}, ("count",)),
        ({"price": "1.0"}, ("price",)),
        ({"at": 0}, ("at",)),
        ({"pair": [1]}, ("pair", 1)),
        ({"more": 1}, ("more",)),
        ({"id": "not an id"}, ("id",)),
    ],
)
def test_payloads_are_read_strictly(
    modules: Modules, change: dict[str, Any], location: tuple[str | int, ...]
) -> None:
    kind = only_kind(modules, task("order")(handler))
    payload = {"id": str(uuid4()), "count": 5, **change}
    with pytest.raises(ValidationError) as refused:
        kind.validate_payload(payload)
    assert refused.value.errors()[0]["loc"] == location


def test_payloads_by_the_rules_of_json(modules: Modules) -> None:
    kind = only_kind(modules, task("order")(handler))
    order = kind.validate_payload(
        {"id": str(uuid4()), "count": 5, "price": 2, "at": "2026-01-02T03:04:05Z", "pair": [1, 2]}
    )
    assert (order.price, order.pair) == (2.0, (1, 2))
    assert order.at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("value", [{"x": "\ud800"}, {"x": 2**70}, {1: 2}, object()])
def test_what_is_no_json_is_a_validation_error(modules: Modules, value: Any) -> None:
    kind = only_kind(modules, task("order")(handler))
    with pytest.raises(ValidationError):
        kind.validate_payload(value)


def test_progress_is_a_fraction_with_a_short_note() -> None:
    said: list[tuple[float, str | None]] = []
    context = TaskContext(uuid4(), 1, report=lambda fraction, note: said.append((fraction, note)))
    context.progress(1)
    context.progress(0.5, "\x00\ud800" + "n" * 600)
    assert said[0] == (1.0, None)
    note = said[1][1]
    assert note is not None
    assert len(note) == 500
    assert note.startswith("�?n")
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            context.progress(wrong)
    assert not context.cancel_requested
