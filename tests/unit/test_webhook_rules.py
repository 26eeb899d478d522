"""What becomes of a delivery, which events a webhook asks for, and what is sent: the pure parts."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from command_side.errors import WebhookNotFound, WrongState
from command_side.webhooks import messages, signing
from command_side.webhooks.matching import (
    DEFAULT_TYPES,
    TASK_TYPES,
    WEBHOOK_TOPICS,
    Seen,
    Subscription,
    pairs,
    tasks_to_tag,
)
from command_side.webhooks.outcomes import (
    Answer,
    Policy,
    Verdict,
    classify,
    endpoint_after,
    judge,
    retry_after_seconds,
)
from command_side.webhooks.webhook import (
    DeleteWebhook,
    DisableWebhook,
    EnableWebhook,
    Redeliver,
    RotateSecret,
    SendTest,
    WebhookCommand,
    decide,
)
from events.errors import UndecodableEvent
from events.records import EventRecord
from events.task_events import RetryPolicy, TaskCompleted, TaskCreated, TaskError, TaskFailed, TaskStarted
from events.task_state import TaskState, evolve
from events.webhook_events import (
    WebhookCreated,
    WebhookDisabled,
    WebhookState,
    WebhookTested,
    webhook_of,
)

POLICY = Policy(RetryPolicy(base_seconds=5.0, cap_seconds=3600.0), max_attempts=4, disable_after_seconds=60)
HOOK = UUID("0199d1a0-0000-7000-8000-0000000000aa")
TASK = UUID("0199d1a0-0000-7000-8000-0000000000bb")
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DOWN = Answer("status", 500)


STATUSES: dict[str | None, tuple[int, ...]] = {
    None: (200, 201, 204, 299),
    "redirect": (101, 300, 301, 302, 304, 307, 308),
    "status": (400, 404, 429, 500, 503, 599),
    "gone": (410,),
}


@pytest.mark.parametrize(("failure", "statuses"), STATUSES.items())
def test_only_2xx_is_success(failure: str | None, statuses: tuple[int, ...]) -> None:
    assert {classify(status) for status in statuses} == {failure}


@pytest.mark.parametrize(
    ("answer", "attempt", "jitter", "verdict"),
    [
        (Answer(None, 204), 1, 1.0, Verdict("delivered")),
        (Answer(None, 200), 4, 1.0, Verdict("delivered")),
        (DOWN, 1, 1.0, Verdict("pending", 5.0)),
        (DOWN, 2, 1.0, Verdict("pending", 10.0)),
        (DOWN, 3, 0.5, Verdict("pending", 10.0)),
        (DOWN, 1, 0.0, Verdict("pending", 0.0)),
        (DOWN, 4, 0.0, Verdict("dead")),
        (Answer("gone", 410), 1, 1.0, Verdict("dead")),
        (Answer("timeout"), 1, 1.0, Verdict("pending", 5.0)),
        (Answer("not_allowed"), 1, 1.0, Verdict("pending", 5.0)),
        (Answer("status", 429, 77.0), 1, 0.1, Verdict("pending", 77.0)),
        (Answer("status", 429, 1.0), 1, 1.0, Verdict("pending", 5.0)),
        (Answer("status", 429, 1e9), 1, 1.0, Verdict("pending", 3600.0)),
    ],
)
def test_a_failure_is_tried_again_later_and_later_until_it_is_dead(
    answer: Answer, attempt: int, jitter: float, verdict: Verdict
) -> None:
    assert judge(answer, attempt, jitter, POLICY) == verdict


def test_an_endpoint_that_takes_nothing_is_left_in_peace() -> None:
    pauses: list[float] = []
    failures = 0
    for _ in range(10):
        endpoint = endpoint_after(failures, [DOWN, DOWN], 1.0, POLICY)
        assert endpoint is not None
        failures = endpoint.failures
        pauses.append(endpoint.pause_seconds)
    assert failures == 10
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_one_success_among_failures_shows_that_it_is_well() -> None:
    endpoint = endpoint_after(7, [DOWN, Answer(None, 200), DOWN], 1.0, POLICY)
    assert endpoint is not None
    assert (endpoint.failures, endpoint.pause_seconds) == (0, 0)


def test_an_endpoint_is_not_asked_sooner_than_it_says() -> None:
    for answers in ([Answer("status", 429, 9.0)], [Answer(None, 200), Answer("status", 503, 9.0)]):
        endpoint = endpoint_after(0, answers, 1.0, POLICY)
        assert endpoint is not None
        assert endpoint.pause_seconds == 9.0


def test_what_was_never_sent_says_nothing_of_the_endpoint() -> None:
    assert endpoint_after(0, [Answer("unreadable")], 1.0, POLICY) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("", 0.0),
        ("-1", 0.0),
        ("1.5", 0.0),
        ("²", 0.0),
        ("soon", 0.0),
        ("9" * 5000, 999_999_999.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:04:00 GMT", 0.0),
        ("Fri, 99 Jan 2026 03:04:00 GMT", 0.0),
        ("Fri, 02 Jan 99999999999 03:04:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert retry_after_seconds(value, AT) == seconds


def seen(topic: str = "TaskCompleted", **fields: Any) -> Seen:
    values: dict[str, Any] = {
        "tenant": "default",
        "kind": "sum",
        "queue": "default",
        "position": 7,
        **fields,
    }
    return Seen(originator_id=values.pop("task", TASK), originator_version=3, topic=topic, **values)


def subscription(**fields: Any) -> Subscription:
    values: dict[str, Any] = {name: frozenset(fields.get(name, ())) for name in ("kinds", "queues", "tags")}
    types = frozenset(fields.get("types", DEFAULT_TYPES))
    return Subscription(HOOK, fields.get("tenant", "default"), types, **values)


@pytest.mark.parametrize(
    ("wanted", "event", "matches"),
    [
        (subscription(), seen(), True),
        (subscription(), seen("TaskStarted"), False),
        (subscription(types=["TaskStarted"]), seen("TaskStarted"), True),
        (subscription(), seen(tenant="acme"), False),
        (subscription(tenant="acme"), seen(tenant="acme"), True),
        (subscription(kinds=["sum", "sha256"]), seen(), True),
        (subscription(kinds=["sha256"]), seen(), False),
        (subscription(queues=["slow"]), seen(), False),
        (subscription(queues=["slow"], kinds=["sum"]), seen(queue="slow"), True),
    ],
)
def test_types_kinds_queues_and_tenant_must_all_fit(
    wanted: Subscription, event: Seen, matches: bool
) -> None:
    assert bool(pairs([wanted], [event], {})) == matches


def test_a_task_must_have_all_of_the_tags() -> None:
    wanted = subscription(tags=["a", "b"])
    assert tasks_to_tag([wanted], [seen()]) == {TASK}
    assert tasks_to_tag([wanted], [seen("TaskStarted")]) == set()
    assert tasks_to_tag([subscription()], [seen()]) == set()
    assert pairs([wanted], [seen()], {TASK: frozenset("abc")}) == [(HOOK, seen())]
    assert pairs([wanted], [seen()], {TASK: frozenset("a")}) == []
    assert pairs([wanted], [seen()], {}) == []


def test_types_are_those_of_tasks_and_what_settles_them_is_the_default() -> None:
    assert set(DEFAULT_TYPES) < TASK_TYPES
    assert "TaskFailed" in TASK_TYPES
    assert not TASK_TYPES & WEBHOOK_TOPICS
    assert all(topic.startswith("Webhook") for topic in WEBHOOK_TOPICS)


def test_a_signature_is_what_the_specification_asks_for() -> None:
    """The specification's own example."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    found = signing.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, [key])
    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert found["webhook-timestamp"] == "1614265330"


def test_secrets_differ_by_webhook_generation_and_master() -> None:
    other = UUID(int=1)
    found = {
        signing.secret(master, webhook, generation)
        for master in (b"m" * 32, b"n" * 32)
        for webhook in (HOOK, other)
        for generation in (1, 2)
    }
    assert len(found) == 8
    assert all(len(secret) == 32 for secret in found)


def test_while_a_secret_is_exchanged_both_are_used() -> None:
    masters = [b"new" * 12, b"old" * 12]
    first = signing.secrets(masters, HOOK, 1, None, AT)
    assert first == [signing.secret(master, HOOK, 1) for master in masters]
    rotated = signing.secrets(masters[:1], HOOK, 2, AT - timedelta(hours=23), AT)
    assert rotated == [signing.secret(masters[0], HOOK, g) for g in (2, 1)]
    assert signing.secrets(masters[:1], HOOK, 2, AT - timedelta(hours=25), AT) == rotated[:1]
    signed = signing.headers("id", 1, b"{}", rotated)["webhook-signature"].split(" ")
    mac = hmac.new(rotated[1], b"id.1.{}", hashlib.sha256).digest()
    assert signed[1] == f"v1,{base64.b64encode(mac).decode()}"


def test_an_id_names_the_log_as_positions_are_given_again_after_a_restore() -> None:
    ids = {signing.message_id(HOOK, 7, tag) for tag in ("k3v9x0aa", "k3v9x0ab")}
    assert len(ids) == 2
    assert not any("." in message for message in ids)


def task(*later: EventRecord) -> TaskState:
    created = TaskCreated(
        originator_id=TASK, originator_version=1, event_uid="u", kind="sum", payload={"card": "4111"}
    )
    state: TaskState | None = None
    for position, event in enumerate((created, *later), 40):
        state = evolve(state, event, at=AT, position=position)
    assert state is not None
    return state


def event(cls: type[EventRecord], version: int, **fields: Any) -> EventRecord:
    return cls(originator_id=TASK, originator_version=version, event_uid="u", **fields)


STARTED = event(TaskStarted, 2, attempt=1, holder="h", worker="w")
SHAPE = messages.Shape("https://tasks.example/tasks", 100)


def sent(state: TaskState, shape: messages.Shape = SHAPE) -> Any:
    message = messages.task_message("TaskX", state, at=AT, webhook=HOOK, tag="k3v9x0aa", shape=shape)
    return json.loads(message)


def test_a_message_holds_the_task_and_not_its_payload() -> None:
    message = sent(task(STARTED, event(TaskCompleted, 3, attempt=1, result={"sum": 3})))
    assert message == {
        "type": "TaskX",
        "timestamp": "2026-01-02T03:04:05Z",
        "webhook": str(HOOK),
        "data": {
            "id": str(TASK),
            "kind": "sum",
            "queue": "default",
            "tags": [],
            "status": "completed",
            "attempt": 1,
            "version": 3,
            "position": "42.k3v9x0aa",
            "created_at": "2026-01-02T03:04:05Z",
            "finished_at": "2026-01-02T03:04:05Z",
            "result": {"sum": 3},
            "error": None,
            "omitted": [],
            "url": f"https://tasks.example/tasks/{TASK}?min_position=42.k3v9x0aa",
        },
    }


def test_a_large_result_is_left_out_and_said_to_be() -> None:
    large = task(STARTED, event(TaskCompleted, 3, attempt=1, result="x" * 99))
    assert sent(large)["data"]["result"] is None
    assert sent(large)["data"]["omitted"] == ["result"]
    assert sent(large, messages.Shape("", 101))["data"]["result"] == "x" * 99


def test_an_error_comes_without_its_traceback() -> None:
    error = TaskError(type="ValueError", message="no such luck", traceback="File /srv/secret.py")
    failed = task(STARTED, event(TaskFailed, 3, attempt=1, cause="error", error=error, retry_at=AT))
    assert sent(failed)["data"]["error"] == {"type": "ValueError", "message": "no such luck"}


def webhook(*later: tuple[type[EventRecord], dict[str, Any]]) -> WebhookState:
    common: dict[str, Any] = {"originator_id": HOOK, "event_uid": "u", "tenant": "default"}
    history: list[EventRecord] = [
        WebhookCreated(originator_version=1, url="https://x.example", types=("TaskCompleted",), **common)
    ]
    for version, (cls, fields) in enumerate(later, 2):
        history.append(cls(originator_version=version, **common, **fields))
    state = webhook_of((e, AT, n) for n, e in enumerate(history, 40))
    assert state is not None
    return state


def after(*commands: WebhookCommand) -> WebhookState:
    """Given when: each decided on what the ones before have made."""
    done: list[tuple[type[EventRecord], dict[str, Any]]] = []
    for command in commands:
        decided = decide(webhook(*done), command)
        if decided is not None:
            done.append(decided)
    return webhook(*done)


def test_the_life_of_a_webhook() -> None:
    assert after().status == "enabled"
    disabled = after(DisableWebhook("gone"), DisableWebhook("asked"))
    assert (disabled.status, disabled.cause, disabled.version) == ("disabled", "gone", 2)
    enabled = after(DisableWebhook("failing"), EnableWebhook(), EnableWebhook())
    assert (enabled.status, enabled.cause, enabled.version) == ("enabled", None, 3)
    rotated = after(RotateSecret(), RotateSecret())
    assert (rotated.generation, rotated.rotated_at) == (3, AT)
    same = after(SendTest(), Redeliver(dead=True), Redeliver(after=3, upto=5))
    assert (same.status, same.version, same.position) == ("enabled", 4, 43)
    assert after(DeleteWebhook(), DeleteWebhook()).version == 2


@pytest.mark.parametrize("command", [SendTest(), Redeliver(dead=True)])
def test_a_disabled_one_sends_nothing(command: WebhookCommand) -> None:
    with pytest.raises(WrongState):
        after(DisableWebhook(), command)


@pytest.mark.parametrize(
    "command", [DisableWebhook(), EnableWebhook(), RotateSecret(), SendTest(), Redeliver(dead=True)]
)
def test_a_deleted_one_is_gone(command: WebhookCommand) -> None:
    with pytest.raises(WebhookNotFound):
        after(DeleteWebhook(), command)


def test_a_history_with_a_hole_is_no_history() -> None:
    common: dict[str, Any] = {"originator_id": HOOK, "event_uid": "u", "tenant": "default"}
    first = WebhookCreated(originator_version=1, url="https://x", types=("TaskCompleted",), **common)
    third = WebhookDisabled(originator_version=3, cause="gone", **common)
    with pytest.raises(UndecodableEvent):
        webhook_of([(first, AT, 1), (third, AT, 2)])
    assert webhook_of([(WebhookTested(originator_version=1, **common), AT, 1)]) is None
    assert webhook_of([]) is None
