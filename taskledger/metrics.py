"""What a process counts, for `GET /metrics`.

The metrics are this module's constants, in a registry of our own: whoever does a thing counts it where
it is done. Labels take values from sets that we choose, never what a client names (queues, kinds): those
have no bound. A gauge shows from its first `set` on, so that a process tells nothing that is not its own.
"""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it so

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

CHECKPOINT: Final = Gauge(
    "taskledger_checkpoint_position",
    "Position of the last event that a follower of the log has dealt with.",
    ["follower"],
    registry=REGISTRY,
)
"""Followers: `tasks/<generation>` of the projector; of the dispatcher `outstanding`, its fold, and
`relay`, what it has published to Redis; `webhooks`, what it has set to be delivered."""
LAG: Final = Gauge(
    "taskledger_lag_events",
    "Events in the log beyond that position.",
    ["follower"],
    registry=REGISTRY,
)
HALTED: Final = Gauge(
    "taskledger_follower_halted",
    "1 while a follower stands at an event that it can neither apply nor pass over.",
    ["follower"],
    registry=REGISTRY,
)
PARKED: Final = Gauge(
    "taskledger_events_parked",
    "Events that an operator has parked: the read tables pass over them.",
    ["projection"],
    registry=REGISTRY,
)
FINISHES_SUPERSEDED: Final = Counter(
    "taskledger_finishes_superseded",
    "Finishes of an attempt that were refused because it was no longer the running one.",
    registry=REGISTRY,
)
LEASES_LOST: Final = Counter(
    "taskledger_leases_lost",
    "Times that this worker could not renew its lease within its length.",
    registry=REGISTRY,
)
ATTEMPTS_TAKEN_OVER: Final = Counter(
    "taskledger_attempts_taken_over",
    "Running attempts that the sweeper ended because their holder was silent for its lease.",
    registry=REGISTRY,
)
WEBHOOK_ATTEMPTS: Final = Counter(
    "taskledger_webhook_attempts",
    "Attempts to deliver an event to a webhook, by what came of it: `delivered`, or why not.",
    ["outcome"],
    registry=REGISTRY,
)
WEBHOOK_DEAD: Final = Counter(
    "taskledger_webhook_deliveries_dead",
    "Deliveries that were given up.",
    registry=REGISTRY,
)
WEBHOOKS_DISABLED: Final = Counter(
    "taskledger_webhooks_disabled",
    "Webhooks that were disabled because their endpoint is gone, or failed for days.",
    registry=REGISTRY,
)
STREAMS: Final = Gauge(
    "taskledger_streams_open",
    "Live event streams that this query API has open.",
    registry=REGISTRY,
)
REFUSALS: Final = Counter(
    "taskledger_api_refusals",
    "Answers with a problem document, by its code.",
    ["code"],
    registry=REGISTRY,
)


def exposition(accept: str = "") -> tuple[bytes, str]:
    """All metrics as text, and the media type of that, as the `Accept` header asks for it."""
    encode, media_type = choose_encoder(accept)
    return encode(REGISTRY), media_type
