"""`/docs`: the OpenAPI document as one plain page. No script, no font, nothing from another host."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final, cast

import orjson

JsonObject = Mapping[str, Any]

_METHODS: Final = ("get", "post", "put", "patch", "delete")
_STYLE: Final = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}
pre{overflow:auto;padding:.75rem;border:1px solid #8884}
details{border:1px solid #8884;border-radius:6px;margin:.4rem 0;padding:.4rem .8rem}summary{cursor:pointer}
summary b{display:inline-block;min-width:4.5rem}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;border-top:1px solid #8884;padding:.25rem .75rem .25rem 0}
"""


def render_docs(openapi: JsonObject) -> str:
    info = openapi["info"]
    sections = "".join(_operation(*found) for found in _operations(openapi))
    schemas = openapi.get("components", {}).get("schemas", {})
    named = "".join(_schema(name, schema) for name, schema in sorted(schemas.items()))
    title = escape(str(info["title"]))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{title} <small>{escape(str(info['version']))}</small></h1>"
        f"<p>{escape(str(info.get('description', '')))}</p>"
        '<p>For machines: <a href="/openapi.json">/openapi.json</a></p>'
        f"<h2>Operations</h2>{sections}<h2>Schemas</h2>{named}</html>"
    )


def tidy(openapi: dict[str, Any]) -> dict[str, Any]:
    """Problems are application/problem+json, and FastAPI's own 422 shape is never sent."""
    for _, _, operation in _operations(openapi):
        responses: dict[str, Any] = operation["responses"]
        if "HTTPValidationError" in str(responses.get("422")):
            del responses["422"]
        for response in responses.values():
            content: dict[str, Any] = response.get("content", {})
            if "schemas/Problem" in str(content.get("application/json")):
                content["application/problem+json"] = content.pop("application/json")
    schemas = openapi.get("components", {}).get("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return openapi


def _operations(openapi: JsonObject) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in openapi["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, cast("dict[str, Any]", item[method])


def _operation(path: str, method: str, operation: JsonObject) -> str:
    summary = escape(str(operation.get("summary", "")))
    description = escape(str(operation.get("description", "")))
    rows = "".join(_parameter(p) for p in operation.get("parameters", ()))
    parameters = f"<table><tr><th>parameter<th>in<th>type<th>meaning{rows}</table>" if rows else ""
    body = _content("Body", operation.get("requestBody", {}).get("content", {}))
    answers = "".join(
        f"<p><b>{escape(status)}</b> {escape(str(response.get('description', '')))}</p>"
        + _content("", response.get("content", {}))
        for status, response in operation.get("responses", {}).items()
    )
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> {summary}</summary>"
        f"<p>{description}</p>{parameters}{body}{answers}</details>"
    )


def _parameter(parameter: JsonObject) -> str:
    needed = " (required)" if parameter.get("required") else ""
    return (
        f"<tr><td><code>{escape(str(parameter['name']))}</code>{needed}<td>{escape(str(parameter['in']))}"
        f"<td>{_type(parameter.get('schema', {}))}<td>{escape(str(parameter.get('description', '')))}"
    )


def _content(title: str, content: JsonObject) -> str:
    return "".join(
        f"<p>{title} <code>{escape(media)}</code> {_type(shape.get('schema', {}))}</p>"
        for media, shape in content.items()
    )


def _type(schema: JsonObject) -> str:
    """A name for the shape; what has a schema of its own is a link to it."""
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rsplit("/", 1)[-1])
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return escape(" | ".join(str(value) for value in schema["enum"]))
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    limits = ", ".join(
        f"{name} {schema[name]}"
        for name in ("format", "pattern", "minimum", "maximum", "maxLength", "default")
        if schema.get(name) is not None
    )
    return escape(str(schema.get("type", "any")) + (f" ({limits})" if limits else ""))


def _schema(name: str, schema: JsonObject) -> str:
    text = orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode()
    return (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<pre>{escape(text)}</pre></details>"
    )
