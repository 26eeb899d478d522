"""What the OpenAPI document says of bodies that the routes read themselves."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from taskledger.http import Problem

_REF: Final = "#/components/schemas/{model}"

IDEMPOTENCY_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Sent again with the same body: the first answer again, and no second task.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}

_MEANING: Final = {
    400: "Malformed JSON or header",
    404: "No such task",
    408: "The body did not arrive in time",
    409: "The task's state or attempt does not allow it",
    413: "The body is too large",
    415: "The body is not application/json",
    422: "Well-formed, but not acceptable; `errors` names the places",
    429: "Too much is waiting; see Retry-After",
    501: "There is no secret to sign with",
    503: "A server does not answer; see Retry-After",
}
_ALWAYS: Final = (400, 408, 413, 415, 422, 429, 503)


def answers(*extra: int, **documented: tuple[str, type[BaseModel]]) -> dict[int | str, dict[str, Any]]:
    """`answers(404, s200=("Done", Model))`: the statuses of a route and their models."""
    responses: dict[int | str, dict[str, Any]] = {
        int(status[1:]): {"description": description, "model": model}
        for status, (description, model) in documented.items()
    }
    for status in sorted({*_ALWAYS, *extra}):
        responses[status] = {"description": _MEANING[status], "model": Problem}
    return responses


def body(model: type[BaseModel], *parameters: dict[str, Any], required: bool = True) -> dict[str, Any]:
    """For `openapi_extra`."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    extra: dict[str, Any] = {
        "requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}
    }
    if parameters:
        extra["parameters"] = list(parameters)
    return extra


def describe(app: FastAPI, models: tuple[type[BaseModel], ...]) -> None:
    """Adds the models' schemas to the document. Call it before taskledger.http.install()."""
    generate: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _, found = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
        schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in found["$defs"].items():
            schemas.setdefault(name, schema)
        return document

    app.__dict__["openapi"] = openapi  # FastAPI's documented way to change it is this assignment
