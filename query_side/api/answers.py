"""How an answer is written: the position it was read at, and whether the client has it already."""

import hashlib
from typing import Any, Final
from uuid import UUID

from fastapi import Request
from starlette.responses import Response

from events.ids import parse_task_id
from query_side.errors import TaskNotFound
from query_side.read_model import Snapshot
from taskledger.http import json_response

POSITION_HEADER: Final = "X-Position"


def answer(snapshot: Snapshot, content: Any, *, vary: str | None = None) -> Response:
    """With the checkpoint that the whole answer belongs to, as a token for `min_position`."""
    headers = {POSITION_HEADER: snapshot.token, "Cache-Control": "no-cache"}
    if vary is not None:
        headers["Vary"] = vary
    return json_response(content, headers=headers)


def tagged(request: Request, snapshot: Snapshot, content: Any) -> Response:
    """As answer(), with an ETag of the body; 304 if the client says that it has that one."""
    response = answer(snapshot, content)
    digest = hashlib.blake2b(bytes(response.body), digest_size=16).hexdigest()
    response.headers["ETag"] = f'"{digest}"'
    if _matches(request.headers.getlist("if-none-match"), digest):
        kept = {n: v for n, v in response.headers.items() if n in ("etag", "x-position", "cache-control")}
        return Response(status_code=304, headers=kept)
    return response


def _matches(values: list[str], digest: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for value in values for tag in value.split(",")]
    return "*" in tags or f'"{digest}"' in tags


def plain(content: Any) -> Response:
    return json_response(content, headers={"Cache-Control": "no-cache"})


def known_task(task_id: str) -> UUID:
    """Only the canonical spelling of an id is one: anything else is nobody's."""
    found = parse_task_id(task_id)
    if found is None:
        raise TaskNotFound
    return found
