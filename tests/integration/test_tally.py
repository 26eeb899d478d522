"""A second projection: filled with all of history, kept, rebuilt, verified and served."""

import asyncio
from typing import Any
from uuid import UUID

import httpx
import pytest

from command_side.commands import CompleteTask, StartTask
from events.errors import ConfigurationError
from projector import tally_view
from projector.fold import FoldStopped
from projector.kept import of_tally
from projector.park import park
from projector.rebuild import drop_retired, rebuild, rollback
from projector.rebuild_command import run
from projector.usage import USAGE
from projector.verify import inspect
from tests.integration.projection import (
    append_raw,
    execute,
    following,
    many_histories,
    present,
    project,
    table,
)
from tests.integration.query import query_api, settings_for
from tests.support import Service, wait_until

KEPT = of_tally(USAGE)
NAMED = {"projections": ["projector.usage:USAGE"]}


async def finished(service: Service, *tags: str) -> UUID:
    task = await service.create(tags=tags)
    await service.execute(task.id, StartTask(holder="h", worker="w"))
    await service.execute(task.id, CompleteTask(1, {"sum": 3}, 0.25))
    return task.id


def rows(service: Service, generation: int) -> dict[str, tuple[int, int, int]]:
    found = table(service.dsn, "usage", generation)
    return {r["tag"]: (r["completed"], r["attempts"], r["microseconds"]) for r in found}


def live(service: Service) -> int:
    (number,) = [g.number for g in present(service.dsn, KEPT) if g.state == "live"]
    return number


async def test_it_is_filled_with_all_of_history_and_kept(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the tasks of a batch began long before it."""
    monkeypatch.setattr(tally_view, "CACHED_ORIGINS", 1)
    for _ in range(3):
        await finished(service, "a", "b")
    with following(service.dsn), following(service.dsn, KEPT) as projector:
        wait_until(lambda: projector.status().checkpoint == 9, "all of history")
        await finished(service)
        late = await service.create(tags=("b",))
        wait_until(lambda: projector.status().checkpoint == late.position, "what comes")
    with following(service.dsn, KEPT) as projector:
        await service.execute(late.id, StartTask(holder="h", worker="w"))
        wait_until(lambda: projector.status().checkpoint == late.position + 1, "what comes later")
    assert rows(service, live(service)) == {
        "a": (3, 3, 750_000),
        "b": (3, 4, 750_000),
        "": (1, 1, 250_000),
    }
    assert inspect(service.dsn, tallies=[USAGE]).differences == []


async def test_it_is_rebuilt_with_proof_and_there_is_a_way_back(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    await many_histories(service)
    project(service.dsn)
    head = project(service.dsn, KEPT)
    before = rows(service, live(service))
    settings = settings_for(service.dsn, **NAMED)
    assert run(settings, projection="usage") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"the old tables and the new ones were equal at position {head}: digest ")
    assert second == f"generation {live(service)} is live, at position {head}"
    assert rows(service, live(service)) == before
    await finished(service, "late")
    project(service.dsn, KEPT)
    old = rollback(service.dsn, KEPT)
    assert rows(service, old)["late"] == (1, 1, 250_000)
    assert len(drop_retired(service.dsn, KEPT)) == 1
    assert [g.state for g in present(service.dsn)] == ["live"]
    with pytest.raises(ConfigurationError):
        run(settings, projection="costs")


async def test_a_rebuild_of_it_is_resumed(service: Service) -> None:
    for _ in range(5):
        await finished(service, "a")
    project(service.dsn, KEPT)

    def killed(_at: int, _of: int) -> None:
        raise KeyboardInterrupt

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("projector.rebuild.BATCH_EVENTS", 3)
        patched.setattr("projector.follower.BATCH_EVENTS", 5)
        with pytest.raises(KeyboardInterrupt):
            await asyncio.to_thread(rebuild, service.dsn, KEPT, progress=killed)
    assert rebuild(service.dsn, KEPT, say=said.append).differences == ()
    assert said[0].endswith(": 5 of 15 events are folded")


async def test_what_is_falsified_is_found_and_put_right(service: Service) -> None:
    await finished(service, "a")
    project(service.dsn)
    project(service.dsn, KEPT)
    schema = f"taskledger_read_g{live(service)}"
    execute(service.dsn, f"update {schema}.usage set microseconds = 7 where tag = 'a'")
    (line,) = inspect(service.dsn, tallies=[USAGE]).differences
    assert line.startswith("usage default/20")
    assert line.endswith("/a: is (1, 1, 7), the log says (1, 1, 250000)")
    (told,) = rebuild(service.dsn, KEPT).differences
    assert told.endswith("/a: microseconds is 7, the log says 250000")
    assert inspect(service.dsn, tallies=[USAGE]).differences == []


async def test_another_definition_waits_for_a_rebuild_and_says_so(service: Service) -> None:
    await finished(service, "a")
    project(service.dsn, KEPT)
    other = "update taskledger.projection_generations set schema_version = 'old' where projection = 'usage'"
    execute(service.dsn, other)
    with following(service.dsn, KEPT) as projector:
        wait_until(lambda: "rebuild" in (projector.status().waiting_for or ""), "it waits")
        said = projector.status().waiting_for or ""
        assert said.endswith("(run `taskledger rebuild --projection usage`)")
        await asyncio.to_thread(rebuild, service.dsn, KEPT)
        wait_until(lambda: projector.status().ready, "it goes on")


async def test_it_stops_at_what_it_cannot_read_unless_that_is_parked(service: Service) -> None:
    task = await service.create(tags=("a",))
    bad = await append_raw(service, task.id, 2, "TaskStarted", b'{"from":"a later release"}')
    await finished(service, "b")
    with pytest.raises(FoldStopped):
        project(service.dsn)
    project_to = project_until_stopped(service)
    assert project_to == bad - 1
    park(service.dsn, bad, reason="why", by="me")
    project(service.dsn)
    project(service.dsn, KEPT)
    assert rows(service, live(service)) == {"b": (1, 1, 250_000)}
    assert inspect(service.dsn, tallies=[USAGE]).differences == []


def project_until_stopped(service: Service) -> int:
    with pytest.raises(FoldStopped):
        project(service.dsn, KEPT)
    (generation,) = present(service.dsn, KEPT)
    return generation.checkpoint


async def asked(service: Service, **params: str) -> httpx.Response:
    async with query_api(service.dsn) as api:
        return await api.get("/usage", params=params)


async def test_usage_is_served_with_its_position(service: Service) -> None:
    await finished(service, "a", "b")
    await finished(service)
    head = project(service.dsn, KEPT)
    answer = await asked(service)
    assert answer.status_code == 200
    assert answer.headers["X-Position"].startswith(f"{head}.")
    body = answer.json()
    day = body["usage"][0]["day"]
    cost: dict[str, Any] = {"day": day, "completed": 1, "attempts": 1, "seconds": 0.25}
    assert body["usage"] == [{**cost, "tag": tag} for tag in (None, "a", "b")]
    assert body["from"] < body["to"]
    assert day <= body["to"]
    only_b = (await asked(service, tag="b", **{"from": day, "to": day})).json()
    assert only_b == {"from": day, "to": day, "usage": [{**cost, "tag": "b"}]}
    assert (await asked(service, to="2020-01-01")).json()["usage"] == []
    assert (await asked(service, to="0001-01-01")).json()["usage"] == []


@pytest.mark.parametrize(
    ("params", "location"),
    [
        ({"from": "yesterday"}, "/query/from"),
        ({"to": "2026-02-30"}, "/query/to"),
        ({"to": "2026-11-26T00:00:00Z"}, "/query/to"),
        ({"from": "2026-11-26", "to": "2026-11-25"}, "/query/from"),
        ({"from": "2020-01-01", "to": "2026-11-25"}, "/query/from"),
        ({"tag": "No Tag"}, "/query/tag"),
        ({"tag": ""}, "/query/tag"),
        ({"until": "2026-11-25"}, "/query/until"),
    ],
)
async def test_what_cannot_be_asked_is_refused(
    service: Service, params: dict[str, str], location: str
) -> None:
    project(service.dsn, KEPT)
    answer = await asked(service, **params)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["location"] for error in answer.json()["errors"]] == [location]


async def test_too_many_rows_are_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("query_side.usage.MAX_ROWS", 1)
    await finished(service, "a", "b")
    project(service.dsn, KEPT)
    assert (await asked(service)).status_code == 422
    assert (await asked(service, tag="a")).status_code == 200


async def test_a_projection_that_is_not_kept_is_a_404(service: Service) -> None:
    project(service.dsn)
    answer = await asked(service)
    assert (answer.status_code, answer.json()["code"]) == (404, "projection_not_kept")
