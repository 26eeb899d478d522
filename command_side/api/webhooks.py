"""`POST /webhooks`, and what can be done with one."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from command_side.api import openapi
from command_side.api.body import idempotency_key, keyed, read
from command_side.api.context import Api, Webhooks, origin, webhook_id_of
from command_side.api.schemas import (
    Because,
    NewWebhook,
    Redelivery,
    WebhookAnswer,
    WebhookSecretAnswer,
)
from command_side.errors import InvalidCommand, TooManyWebhooks, Violation, WebhooksNotConfigured
from command_side.webhooks import signing
from command_side.webhooks.service import Changed
from command_side.webhooks.targets import parse
from command_side.webhooks.webhook import (
    CreateWebhook,
    DeleteWebhook,
    DisableWebhook,
    EnableWebhook,
    Redeliver,
    RotateSecret,
    SendTest,
    WebhookCommand,
)
from events.position import PositionToken
from taskledger.http import json_response

MAX_WEBHOOKS: Final = 200
"""Each has a loop and up to eight connections of the process that delivers."""
_NOW: Final = ("The webhook as it is now", WebhookAnswer)
_WITH_SECRET: Final = ("With its secret", WebhookSecretAnswer)


class WebhookRoutes:
    def __init__(self, api: Api) -> None:
        self._api = api

    def router(self) -> APIRouter:
        router = APIRouter(tags=["webhooks"])

        def add(
            method: str,
            path: str,
            endpoint: Callable[..., Awaitable[Response]],
            summary: str,
            body: type[BaseModel],
            *,
            status: int = 200,
            answer: tuple[str, type[BaseModel]] = _NOW,
        ) -> None:
            parameters = [openapi.IDEMPOTENCY_KEY] if body is NewWebhook else []
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                summary=summary,
                status_code=status,
                response_model=None,
                responses=openapi.answers(404, 409, 501, **{f"s{status}": answer}),
                openapi_extra=openapi.body(body, *parameters, required=body is not Because),
            )

        one = "/webhooks/{webhook_id}"
        add(
            "POST",
            "/webhooks",
            self.create,
            "Send events",
            NewWebhook,
            status=201,
            answer=_WITH_SECRET,
        )
        add("DELETE", one, self.delete, "Delete a webhook", Because)
        add("POST", f"{one}/disable", self.disable, "Send nothing until it is enabled", Because)
        add("POST", f"{one}/enable", self.enable, "Send again", Because)
        add("POST", f"{one}/test", self.test, "Send a test, whatever it asks for", Because)
        add("POST", f"{one}/redeliver", self.redeliver, "Send events again", Redelivery)
        add(
            "POST",
            f"{one}/rotate-secret",
            self.rotate,
            "Sign with another secret; for a day with the present one, too",
            Because,
            answer=_WITH_SECRET,
        )
        return router

    async def create(self, request: Request) -> Response:
        api, webhooks = self._api, self._webhooks()
        key = idempotency_key(request)
        body, value = await read(request, NewWebhook, limit=api.settings.max_body_bytes)
        await webhooks.guard.check(parse(body.url))
        await api.database.ready()
        command = CreateWebhook(
            url=body.url,
            types=tuple(body.types),
            kinds=tuple(body.kinds),
            queues=tuple(body.queues),
            tags=tuple(body.tags),
            description=body.description,
            after=None if body.after is None else await self._known("/after", body.after),
        )
        by = origin(request)
        if await api.within_budget(api.database.webhooks(by.tenant)) >= MAX_WEBHOOKS:
            raise TooManyWebhooks(MAX_WEBHOOKS)
        changed = await api.within_budget(
            webhooks.service.create(command, by, keyed(key, "create-webhook", value))
        )
        where = f"{api.query_url}/webhooks/{changed.state.id}?min_position={api.token(changed.position)}"
        headers = {"Location": where} | ({"Idempotent-Replayed": "true"} if changed.replayed else {})
        return json_response(self._with_secret(changed), status=201, headers=headers)

    async def delete(self, webhook_id: str, request: Request) -> Response:
        return await self._because(webhook_id, request, DeleteWebhook)

    async def disable(self, webhook_id: str, request: Request) -> Response:
        return await self._because(
            webhook_id, request, lambda reason: DisableWebhook("asked", reason=reason)
        )

    async def enable(self, webhook_id: str, request: Request) -> Response:
        return await self._because(webhook_id, request, EnableWebhook)

    async def test(self, webhook_id: str, request: Request) -> Response:
        return await self._because(webhook_id, request, SendTest)

    async def rotate(self, webhook_id: str, request: Request) -> Response:
        return await self._because(webhook_id, request, RotateSecret, self._with_secret)

    async def redeliver(self, webhook_id: str, request: Request) -> Response:
        api = self._api
        self._webhooks()
        body, _ = await read(request, Redelivery, limit=api.settings.max_body_bytes)
        if len(body.model_dump(exclude_none=True)) != 1:
            raise InvalidCommand("the body does not fit", (Violation("", "One of dead, after, position"),))
        await api.database.ready()
        if body.position is not None:
            upto = await self._known("/position", body.position)
            if upto == 0:
                raise InvalidCommand("the body does not fit", (Violation("/position", "Nothing is there"),))
            command = Redeliver(after=upto - 1, upto=upto)
        elif body.after is not None:
            command = Redeliver(after=await self._known("/after", body.after))
        else:
            command = Redeliver(dead=True)
        return await self._execute(webhook_id, request, command, self._shown)

    async def _because(
        self,
        webhook_id: str,
        request: Request,
        command: Callable[[str | None], WebhookCommand],
        shown: Callable[[Changed], dict[str, Any]] | None = None,
    ) -> Response:
        limit = self._api.settings.max_body_bytes
        body, _ = await read(request, Because, limit=limit, optional=True)
        return await self._execute(webhook_id, request, command(body.reason), shown or self._shown)

    async def _execute(
        self,
        webhook_id: str,
        request: Request,
        command: WebhookCommand,
        shown: Callable[[Changed], dict[str, Any]],
    ) -> Response:
        api, webhooks, id_ = self._api, self._webhooks(), webhook_id_of(webhook_id)
        await api.database.ready()
        work = webhooks.service.execute(id_, command, origin(request))
        return json_response(shown(await api.within_budget(work)))

    async def _known(self, location: str, text: str) -> int:
        """The position of a token of this log that the log has reached; 0 for `start`. Raises
        MalformedPosition, LogRewound, InvalidCommand."""
        if text == "start":
            return 0
        position = PositionToken.parse(text).of_log(self._api.database.tag)
        if position > await self._api.within_budget(self._api.database.head()):
            beyond = Violation(location, "The log has not come so far")
            raise InvalidCommand("the body does not fit", (beyond,))
        return position

    def _webhooks(self) -> Webhooks:
        if self._api.webhooks is None:
            raise WebhooksNotConfigured
        return self._api.webhooks

    def _with_secret(self, changed: Changed) -> dict[str, Any]:
        state = changed.state
        own = signing.secret(self._webhooks().master, state.id, state.generation)
        return {**self._shown(changed), "secret": signing.shown(own)}

    def _shown(self, changed: Changed) -> dict[str, Any]:
        state = changed.state
        return {
            "id": state.id,
            "url": state.url,
            "types": state.types,
            "kinds": state.kinds,
            "queues": state.queues,
            "tags": state.tags,
            "description": state.description,
            "status": state.status,
            "cause": state.cause,
            "position": self._api.token(changed.position),
        }
