"""GET /webhooks, /webhooks/{id}, /webhooks/{id}/deliveries."""

from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from events.ids import parse_id
from query_side.api import schemas
from query_side.api.answers import answer
from query_side.api.params import LimitParam, PositionParam, only, token
from query_side.errors import WebhookNotFound
from query_side.webhooks import DeliveryStatus, Webhooks

_DEFAULT_LIMIT: Final = 50
BeforeParam = Annotated[str | None, Query(max_length=40, description="`next` of the page before.")]


def webhook_routes(webhooks: Webhooks) -> APIRouter:
    router = APIRouter(tags=["webhooks"])

    @router.get(
        "/webhooks",
        responses={200: {"model": schemas.Webhooks}},
        summary="Who is told of what, and how that goes",
        dependencies=[Depends(only("min_position"))],
    )
    async def list_webhooks(min_position: PositionParam = None) -> Response:
        snapshot, found = await webhooks.listed(token(min_position))
        return answer(snapshot, {"webhooks": found})

    @router.get(
        "/webhooks/{webhook_id}",
        responses={200: {"model": schemas.Webhook}},
        summary="One webhook",
        dependencies=[Depends(only("min_position"))],
    )
    async def get_webhook(webhook_id: str, min_position: PositionParam = None) -> Response:
        return answer(*await webhooks.get(_known(webhook_id), token(min_position)))

    @router.get(
        "/webhooks/{webhook_id}/deliveries",
        responses={200: {"model": schemas.Deliveries}},
        summary="What was, is and was not delivered, newest event first",
        dependencies=[Depends(only("status", "before", "limit"))],
    )
    async def deliveries(
        webhook_id: str,
        status: Annotated[DeliveryStatus | None, Query()] = None,
        before: BeforeParam = None,
        limit: LimitParam = _DEFAULT_LIMIT,
    ) -> Response:
        snapshot, found, following = await webhooks.deliveries(
            _known(webhook_id), status, token(before), limit
        )
        return answer(snapshot, {"deliveries": found, "next": following})

    return router


def _known(webhook_id: str) -> UUID:
    found = parse_id(webhook_id)
    if found is None:
        raise WebhookNotFound
    return found
