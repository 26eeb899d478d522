"""Signatures as https://www.standardwebhooks.com asks for them. Pure.

A webhook's secret is derived from the operator's and its own id, so it is stored nowhere.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

PREFIX: Final = "whsec_"
ROTATION: Final = timedelta(hours=24)
"""How long the secret before the last rotation is used as well."""


def secret(master: bytes, webhook: UUID, generation: int) -> bytes:
    return hmac.digest(master, f"taskledger webhook {webhook} {generation}".encode(), hashlib.sha256)


def shown(secret: bytes) -> str:
    """As receivers' libraries take it."""
    return PREFIX + base64.b64encode(secret).decode()


def secrets(
    masters: Sequence[bytes], webhook: UUID, generation: int, rotated_at: datetime | None, now: datetime
) -> list[bytes]:
    """All that are valid now, the newest first: while one is exchanged, receivers may know either."""
    generations = [generation]
    if rotated_at is not None and now - rotated_at < ROTATION:
        generations.append(generation - 1)
    return [secret(master, webhook, g) for g in generations for master in masters]


def headers(message_id: str, timestamp: int, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def message_id(webhook: UUID, position: int, tag: str) -> str:
    """The same at each attempt, so that a receiver can tell a repeat. With the log's tag: after a restore
    positions are given again, to other events."""
    return f"{webhook.hex}_{position}_{tag}"
