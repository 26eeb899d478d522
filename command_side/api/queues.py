"""`POST /queues/{queue}/claim`, `/pause` and `/resume`."""

import re
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from command_side.api import openapi
from command_side.api.body import read
from command_side.api.claims import Wanted
from command_side.api.context import Api, origin
from command_side.api.schemas import NAME, Because, Claim, ClaimAnswer, QueueAnswer
from command_side.errors import InvalidCommand, Violation
from events.deadline import until
from events.errors import BrokerUnavailable
from taskledger.admission import due
from taskledger.http import json_response

_NAME: Final = re.compile(NAME)


class QueueRoutes:
    def __init__(self, api: Api) -> None:
        self._api = api

    def router(self) -> APIRouter:
        router = APIRouter(tags=["queues"])
        router.add_api_route(
            "/queues/{queue}/claim",
            self.claim,
            methods=["POST"],
            summary="Start tasks of external kinds",
            response_model=None,
            responses=openapi.answers(s200=("Already started; none after the wait", ClaimAnswer)),
            openapi_extra=openapi.body(Claim),
        )
        for name, endpoint, summary in (
            ("pause", self.pause, "No task of the queue starts until it is resumed"),
            ("resume", self.resume, "Let the queue's tasks start again"),
        ):
            router.add_api_route(
                f"/queues/{{queue}}/{name}",
                endpoint,
                methods=["POST"],
                summary=summary,
                response_model=None,
                responses=openapi.answers(409, s200=("The queue as it is now", QueueAnswer)),
                openapi_extra=openapi.body(Because, required=False),
            )
        return router

    async def claim(self, queue: str, request: Request) -> Response:
        api = self._api
        name = _checked(queue)
        body, _ = await read(request, Claim, limit=api.settings.max_body_bytes)
        kinds = api.kinds.claimable(body.kinds)
        if api.claims is None:
            raise BrokerUnavailable("no Redis is configured")
        await api.database.ready()
        wanted = Wanted(name, kinds, body.worker, body.limit, body.lease_seconds, origin(request))
        with until(due() + body.wait_seconds):
            claimed = await api.claims.claim(wanted, body.wait_seconds, request.is_disconnected)
        tasks = [api.started(state, claimed.lease_expires_at) for state in claimed.tasks]
        return json_response({"tasks": tasks})

    async def pause(self, queue: str, request: Request) -> Response:
        return await self._set_paused(queue, request, paused=True)

    async def resume(self, queue: str, request: Request) -> Response:
        return await self._set_paused(queue, request, paused=False)

    async def _set_paused(self, queue: str, request: Request, *, paused: bool) -> Response:
        api = self._api
        name = _checked(queue)
        body, _ = await read(request, Because, limit=api.settings.max_body_bytes, optional=True)
        await api.database.ready()
        position = await api.within_budget(
            api.service.set_paused(name, paused=paused, origin=origin(request), reason=body.reason)
        )
        return json_response({"queue": name, "paused": paused, "position": api.token(position)})


def _checked(queue: str) -> str:
    if not _NAME.fullmatch(queue):
        raise InvalidCommand(
            "no queue can have this name", (Violation("/path/queue", f"must match {NAME}"),)
        )
    return queue
