"""Payloads of external kinds: held against the JSON Schema of the settings, if there is one."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, cast

from jsonschema import Draft202012Validator, SchemaError, ValidationError

from command_side.errors import Violation
from events.errors import ConfigurationError
from taskledger.http import MAX_ERRORS, pointer

_PLAIN: Final = (str, int, float, bool)


class ExternalPayload:
    """Raises ConfigurationError for a schema that is none, or that refers to anything outside itself:
    a payload must not make this process fetch addresses."""

    def __init__(self, kind: str, schema: Mapping[str, Any] | None) -> None:
        self._validator: Draft202012Validator | None = None
        if schema is None:
            return
        where = f"TASKLEDGER__EXTERNAL_KINDS: {kind}: payload_schema"
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ConfigurationError(f"{where} is not a JSON Schema: {error.message}") from None
        for reference in _references(schema):
            if not _resolves(schema, reference):
                raise ConfigurationError(f"{where} refers to {reference!r}, which is not within it")
        self._validator = Draft202012Validator(schema)

    def violations(self, payload: Any, at: str) -> tuple[Violation, ...]:
        if self._validator is None:
            return ()
        found = cast("Iterator[ValidationError]", self._validator.iter_errors(payload))
        return tuple(
            Violation(at + pointer(("body", *error.absolute_path)), _message(error))
            for error in islice(found, MAX_ERRORS)
        )


def _message(error: ValidationError) -> str:
    """From the schema alone: the library's own text repeats the payload."""
    expected: Any = error.validator_value
    if error.validator == "required" and isinstance(error.instance, dict):
        present = cast("dict[str, Any]", error.instance)
        return "lacks " + ", ".join(str(name) for name in expected if name not in present)
    if error.validator == "additionalProperties":
        return "has fields that the kind's schema does not know"
    if isinstance(expected, _PLAIN):
        return f"does not fit the kind's schema: {error.validator} {expected}"
    return f"does not fit the kind's schema: {error.validator}"


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in cast("dict[str, Any]", node).items():
            if name in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for item in cast("Sequence[Any]", node):
            yield from _references(item)


def _resolves(schema: Mapping[str, Any], reference: str) -> bool:
    """Whether it is a JSON Pointer into the schema itself."""
    if reference == "#":
        return True
    if not reference.startswith("#/"):
        return False
    node: Any = schema
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or name not in node:
            return False
        node = cast("Mapping[str, Any]", node)[name]
    return True
