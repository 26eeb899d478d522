"""The feed of the log, once and live: what it shows, to whom, and from where it goes on."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from command_side.commands import CancelTask, CompleteTask, DiscardTask, FailTask, RequeueTask, StartTask
from events.ids import new_task_id, queue_id
from query_side import feed, live, ring, tail
from query_side.feed import LogFeed
from tests.integration.projection import ERROR, append_raw, execute, many_histories
from tests.integration.streaming import STREAM, Feeds, feeds, position
from tests.support import Service, eventually


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Feeds]:
    async with feeds(dsn, query_api={"heartbeat_seconds": 0.2}) as found:
        yield found


async def _everything(api: Feeds, **filters: Any) -> list[dict[str, Any]]:
    """The JSON feed, page by page to its head."""
    found, after = [], "start"
    while True:
        answer = await api.http.get("/events", params={"after": after, "limit": 200, **filters})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["events"]
        if page["next"] == page["head"]:
            return found
        assert position(page["next"]) > position(after) if after != "start" else True
        after = page["next"]


async def test_a_stream_gives_what_was_and_then_what_comes(service: Service, api: Feeds) -> None:
    await many_histories(service, 10)
    async with api.stream() as stream:
        before = len(await _everything(api))
        await stream.until(before)
        await many_histories(service, 10, seed=2)
        wanted = await _everything(api)
        assert len(wanted) > before
        events = await stream.until(len(wanted))
    assert [event.data for event in events] == wanted
    assert [event.id for event in events] == [event["position"] for event in wanted]
    assert [event.type for event in events] == [event["type"] for event in wanted]
    assert stream.parser.retry is not None
    assert stream.parser.retry >= 1000
    assert stream.response.headers["x-position"] == f"0.{await service.log.tag()}"
    assert stream.response.headers["cache-control"] == "no-store"
    assert stream.response.headers["vary"] == "Accept"


FILTERS: list[dict[str, Any]] = [
    {"kind": "k1"},
    {"queue": "q1"},
    {"type": "TaskCreated"},
    {"type": ["TaskCompleted", "QueuePaused"]},
    {"tag": "t0"},
    {"tag": ["t0", "t2"]},
    {"kind": "k2", "queue": "q0", "tag": "t0", "type": ["TaskStarted", "TaskFailed"]},
]


async def test_filters_hold_in_both_forms_and_from_the_log_as_from_the_tail(
    service: Service, api: Feeds
) -> None:
    await many_histories(service, 12)
    async with api.streams(*FILTERS) as streams:
        await many_histories(service, 12, seed=2)
        everything = await _everything(api)
        tags = {e["task_id"]: e["data"]["tags"] for e in everything if e["type"] == "TaskCreated"}
        for filters, stream in zip(FILTERS, streams, strict=True):
            wanted = [event for event in everything if _wanted(event, filters, tags)]
            assert 0 < len(wanted) < len(everything)
            assert await _everything(api, **filters) == wanted
            assert [e.data for e in await stream.until(len(wanted))] == wanted, filters


def _wanted(event: dict[str, Any], filters: dict[str, Any], tags: dict[str, list[str]]) -> bool:
    asked = filters.get("tag", [])
    return (
        ({asked} if isinstance(asked, str) else set(asked)) <= set(tags.get(event["task_id"], []))
        and filters.get("kind", event["kind"]) == event["kind"]
        and filters.get("queue", event["queue"]) == event["queue"]
        and event["type"] in filters.get("type", event["type"])
    )


async def test_a_page_of_the_feed_ends_where_it_has_looked(
    service: Service, api: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that hardly anything matches reads no more of the log at once than another."""
    monkeypatch.setattr("query_side.feed.STRETCH", 7)
    monkeypatch.setattr("query_side.feed.TAGGED", 3)
    await many_histories(service, 8)
    rare = await service.create(kind="rare", tags=("rare",))
    first = (await api.http.get("/events", params={"kind": "rare"})).json()
    assert (first["events"], position(first["next"])) == ([], 7)
    for filters in ({"kind": "rare"}, {"tag": "rare"}):
        assert [event["task_id"] for event in await _everything(api, **filters)] == [str(rare.id)]
    async with api.stream(tag="rare") as stream:
        (event,) = await stream.until(1)
        assert event.position == rare.position


async def test_a_stream_resumes_after_any_position(service: Service, api: Feeds) -> None:
    await many_histories(service, 5)
    everything = await _everything(api)
    tag = await service.log.tag()
    for number in (0, 1, len(everything) // 2, len(everything)):
        at = f"{number}.{tag}"
        ways: list[dict[str, Any]] = [{"after": at}, {"last_id": at}, {"after": "start", "last_id": at}]
        for arguments in ways:
            async with api.stream(**arguments) as stream:
                assert stream.response.headers["x-position"] == at
                rest = await stream.until(len(everything) - number)
                assert [event.data for event in rest] == everything[number:]


async def test_from_now_on_is_a_place_to_come_back_to(service: Service, api: Feeds) -> None:
    """Before it has seen any event a client knows from where: what comes while it is away is not lost."""
    await service.create()
    async with api.stream(after="now") as stream:
        await eventually(lambda: _has_id(stream.parser.ids, 1))
        assert stream.events == []
    missed = await service.create()
    async with api.stream(after="now", last_id=stream.parser.last_id) as stream:
        (event,) = await stream.until(1)
        assert event.position == missed.position


async def _has_id(ids: list[str], number: int) -> bool:
    return bool(ids) and position(ids[-1]) == number


async def test_a_sign_of_life_carries_the_position_on(service: Service, api: Feeds) -> None:
    """A stream that sees nothing need not be read again from its beginning."""
    async with api.stream(kind="rare") as stream:
        last = [await service.create() for _ in range(3)][-1]
        await eventually(lambda: _has_id(stream.parser.ids, last.position))
        rare = await service.create(kind="rare")
        (event,) = await stream.until(1)
        assert event.position == rare.position
        assert stream.parser.comments >= 1
    numbers = [position(token) for token in stream.parser.ids]
    assert numbers == sorted(numbers)


async def test_a_stream_of_a_task_ends_when_nothing_can_follow(service: Service, api: Feeds) -> None:
    done, dead = await service.create(), await service.create(max_attempts=1)
    path = f"/tasks/{done.id}/events"
    async with api.stream(path) as of_done, api.stream(f"/tasks/{dead.id}/events") as of_dead:
        for task in (done, dead):
            await service.execute(task.id, StartTask(holder="h", worker="w"))
        await service.execute(done.id, CompleteTask(1, {"sum": 3}))
        await service.execute(dead.id, FailTask(attempt=1, cause="error", error=ERROR))
        await of_done.end()
        assert of_done.types == ["TaskCreated", "TaskStarted", "TaskCompleted"]
        assert [event.data["task_id"] for event in of_done.events] == [str(done.id)] * 3
        await of_dead.until(4)
        await service.execute(dead.id, RequeueTask())
        await service.execute(dead.id, CancelTask())
        await of_dead.until(6)
        assert not of_dead.ended
        await service.execute(dead.id, DiscardTask())
        await of_dead.end()
        assert of_dead.types[-1] == "TaskDiscarded"
    async with api.stream(path) as again:
        await again.end()
        assert again.events == of_done.events
    async with api.stream(path, last_id=of_done.events[0].id) as rest:
        await rest.end()
        assert rest.events == of_done.events[1:]
    for at in (of_done.events[-1].id, of_dead.events[-1].id):
        over = await api.http.get(path, headers={**STREAM, "Last-Event-ID": at})
        assert (over.status_code, over.content) == (204, b"")
    listed = (await api.http.get(path, params={"after": of_done.events[0].id})).json()["events"]
    assert [event["type"] for event in listed] == ["TaskStarted", "TaskCompleted"]


async def test_events_that_this_release_does_not_know_are_shown_as_they_are(
    service: Service, api: Feeds
) -> None:
    task = await service.create()
    async with api.stream() as stream:
        await append_raw(service, task.id, 2, "TaskTeleported", b'{"to":"mars\\n"}')
        events = await stream.until(2)
    assert (events[1].type, events[1].data["data"]) == ("TaskTeleported", {"to": "mars\n"})


TASK = "/tasks/018f0000-0000-7000-8000-000000000000/events"
REFUSED = [
    ("/events?kind=X", 422, "/query/kind"),
    ("/events?kind=a&kind=b", 422, "/query/kind"),
    ("/events?queue=", 422, "/query/queue"),
    ("/events?tag=a%20b", 422, "/query/tag/0"),
    ("/events?type=TaskTeleported", 422, "/query/type/0"),
    ("/events?type=TaskCreated&type=", 422, "/query/type/1"),
    ("/events?kinds=a", 422, "/query/kinds"),
    ("/events?after=start&after=now", 422, "/query/after"),
    ("/events?after=yesterday", 400, None),
    ("/events?after=0.another1", 409, None),
    (TASK, 404, None),
    (f"{TASK}?kind=a", 422, "/query/kind"),
    ("/tasks/1/events", 404, None),
]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_what_cannot_be_is_refused_in_both_forms(api: Feeds, accept: str) -> None:
    for path, status, location in REFUSED:
        answer = await api.http.get(path, headers={"Accept": accept})
        assert answer.status_code == status, (path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        if location is not None:
            assert [error["location"] for error in answer.json()["errors"]] == [location], path
    assert await api.open_streams() == 0


async def test_what_no_stream_can_be_is_refused(service: Service, api: Feeds) -> None:
    tag = await service.log.tag()
    for last_id, status, code in [
        ("7", 400, "malformed_position"),
        ("", 400, "malformed_position"),
        ("0.another1", 409, "log_rewound"),
        (f"7.{tag}", 503, "read_model_lagging"),
        ("x" * 50, 422, "invalid_request"),
    ]:
        answer = await api.http.get("/events", headers={**STREAM, "Last-Event-ID": last_id})
        assert (answer.status_code, answer.json()["code"]) == (status, code), last_id
    for path in (
        "/events?limit=5",
        f"/tasks/{queue_id('default', 'q')}/events",
        f"/tasks/{new_task_id()}/events",
    ):
        answer = await api.http.get(path, headers=STREAM)
        assert answer.status_code == (422 if "limit" in path else 404)
    assert await api.open_streams() == 0


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        ("*/*", False),
        ("application/json, text/event-stream;q=0", False),
        ("text/event-stream; q=0.0", False),
        ("text/html, Text/Event-Stream;q=0.9", True),
    ],
)
async def test_who_names_event_streams_gets_one(api: Feeds, accept: str, *, streams: bool) -> None:
    async with api.http.stream("GET", "/events", headers={"Accept": accept}) as answer:
        assert answer.headers["content-type"].startswith(
            "text/event-stream" if streams else "application/json"
        )
        assert answer.headers["vary"] == "Accept"


async def test_head_of_a_stream_ends(api: Feeds) -> None:
    head = await api.http.head("/events", headers=STREAM)
    assert (head.status_code, head.content) == (200, b"")
    assert (await api.http.get("/health/live")).status_code == 200

    async def none_open() -> bool:
        return await api.open_streams() == 0

    await eventually(none_open)


async def test_no_more_streams_than_are_allowed(service: Service) -> None:
    await service.create()
    async with feeds(service.dsn, query_api={"max_streams": 2}) as api:
        async with api.stream() as one, api.stream():
            await one.until(1)
            refused = await api.http.get("/events", headers=STREAM)
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
            assert refused.headers["retry-after"] == "1"
            assert (await api.http.get("/events")).status_code == 200

        async def room() -> bool:
            return await api.open_streams() == 0

        await eventually(room, "the clients' departure to be noticed")
        async with api.stream() as stream:
            await stream.until(1)


async def test_streams_leave_half_of_the_connections_to_requests(service: Service) -> None:
    async with feeds(service.dsn, http={"max_connections": 8}) as api, api.streams({}, {}, {}, {}):
        refused = await api.http.get("/events", headers=STREAM)
        assert refused.json()["code"] == "too_many_streams"


async def test_a_stream_that_was_left_behind_catches_up_from_the_log(
    service: Service, api: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the log that is kept in memory is short, and so are the pages: nothing is missed or told
    twice where the one ends and the other begins."""
    monkeypatch.setattr(ring, "MOST_EVENTS", 5)
    monkeypatch.setattr(live, "PAGE_EVENTS", 3)
    monkeypatch.setattr(tail, "BATCH", 4)
    async with api.stream() as stream, api.stream(kind="k1") as filtered, api.stream(tag="t1") as tagged:
        for seed in range(3):
            await many_histories(service, 15, seed=seed)
        everything = await _everything(api)
        assert [event.data for event in await stream.until(len(everything))] == everything
        for one, filters in ((filtered, {"kind": "k1"}), (tagged, {"tag": "t1"})):
            wanted = await _everything(api, **filters)
            assert [event.data for event in await one.until(len(wanted))] == wanted


async def test_streams_share_one_reading_of_what_comes(
    service: Service, api: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, the log is read once for a batch, and each event encoded once."""
    pages: list[int] = []
    shown: list[int] = []
    page, show = LogFeed.page, feed.shown

    async def counted(self: LogFeed, *arguments: Any, **options: Any) -> Any:
        found = await page(self, *arguments, **options)
        pages.extend(event.id for event in found.events)
        return found

    def counted_shown(event: Any, of: Any) -> Any:
        shown.append(event.id)
        return show(event, of)

    monkeypatch.setattr(LogFeed, "page", counted)
    monkeypatch.setattr(tail, "shown", counted_shown)
    async with api.streams(*[{"after": "now"}] * 20) as streams:
        for _ in range(10):
            await service.create()
        for stream in streams:
            await stream.until(10)
    assert sorted(pages) == list(range(1, 11))
    assert sorted(shown) == list(range(1, 11))


async def test_streams_end_when_the_log_is_restored(service: Service, api: Feeds) -> None:
    await service.create()
    async with api.stream() as stream, api.stream(kind="other") as other:
        await stream.until(1)
        execute(service.dsn, "update taskledger.log_identity set tag = 'restored'")
        await stream.end()
        await other.end()
    answer = await api.http.get("/events", headers={**STREAM, "Last-Event-ID": stream.events[-1].id})
    assert (answer.status_code, answer.json()["code"]) == (409, "log_rewound")
    async with api.stream() as again:
        assert (await again.until(1))[0].id == "1.restored"


async def test_streams_end_when_the_log_was_restored_and_nobody_said_so(
    service: Service, api: Feeds
) -> None:
    """The positions would be given a second time: whoever has seen the first ones must not go on."""
    await service.create()
    await service.create()
    async with api.stream() as stream:
        await stream.until(2)
        execute(service.dsn, "delete from taskledger.task_events where notification_id = 2")
        await stream.end()
    for headers in (STREAM, {}):
        answer = await api.http.get("/events", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (409, "log_rewound")


async def test_streams_survive_a_database_that_drops_every_connection(service: Service, api: Feeds) -> None:
    async with api.stream() as stream, api.stream(tag="t1") as tagged:
        await service.create(tags=("t1",))
        await stream.until(1)
        for count in range(2, 6):
            execute(
                service.dsn,
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and application_name like 'taskledger-query%%'",
            )
            await service.create(tags=("t1",))
            await stream.until(count)
            await tagged.until(count)
    assert (
        [event.position for event in stream.events]
        == [1, 2, 3, 4, 5]
        == [e.position for e in tagged.events]
    )


async def test_a_client_that_dies_and_comes_back_misses_and_repeats_nothing(
    service: Service, api: Feeds
) -> None:
    """It hangs up after any number of bytes, under load, and resumes with the last id that it has whole."""
    choice = random.Random(5)
    stop = asyncio.Event()
    received: list[list[Any]] = [[], [], []]
    wanted: list[dict[str, Any]] = [
        {},
        {"tag": "t1"},
        {"kind": "k1", "type": ["TaskStarted", "TaskCreated"]},
    ]

    async def load() -> None:
        seed = 0
        while not stop.is_set():
            await many_histories(service, 6, seed=seed)
            seed += 1

    async def follow(events: list[Any], filters: dict[str, Any]) -> str | None:
        last_id = None
        for _ in range(10):
            dies_after = choice.randint(40, 3_000)
            async with api.stream(last_id=last_id, dies_after=dies_after, **filters) as stream:
                await stream.end()
                events += stream.events
                last_id = stream.parser.last_id
        return last_id

    loading = asyncio.create_task(load())
    try:
        last_ids = await asyncio.gather(*map(follow, received, wanted))
    finally:
        stop.set()
        await loading
    for events, filters, last_id in zip(received, wanted, last_ids, strict=True):
        everything = await _everything(api, **filters)
        async with api.stream(last_id=last_id, **filters) as stream:
            rest = await stream.until(len(everything) - len(events))
        assert [event.data for event in [*events, *rest]] == everything
