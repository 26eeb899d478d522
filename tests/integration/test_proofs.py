"""A saved proof convinces a script that knows nothing of us, and a forged one does not."""

import base64
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from benchmarks.history import fill
from events.heads import Note, note_of
from events.merkle import EMPTY_ROOT
from tests.integration.command_api import problem
from tests.integration.projection import append_raw, execute, many_histories
from tests.integration.query import query_api
from tests.integration.sealing import Key, seal, sealing
from tests.support import Service

SCRIPT = Path(__file__).parents[2] / "examples/check_proof.py"
KEY = Key()


class Checker:
    """Runs the script as a third party would: alone in a folder, with what was saved there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "key.pub").write_bytes(KEY.pem)
        (folder / "other.pub").write_bytes(Key().pem)

    def run(self, proof: Any, *, since: Any = None, key: str | None = "key.pub") -> tuple[int, str]:
        (self._folder / "proof.json").write_text(json.dumps(proof))
        arguments = ["proof.json"]
        if since is not None:
            (self._folder / "since.json").write_text(json.dumps(since))
            arguments += ["--since", "since.json"]
        arguments += [] if key is None else ["--key", key]
        command = [sys.executable, "-I", "-S", str(SCRIPT), *arguments]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def checker(tmp_path: Path) -> Checker:
    return Checker(tmp_path)


async def test_every_event_of_a_task_is_proved(service: Service, checker: Checker) -> None:
    ids = await many_histories(service, count=20)
    fill(service.dsn, 100)
    size = seal(service.dsn, KEY)
    async with query_api(service.dsn) as client:
        for task_id in ids[::10]:
            proof = (await client.get(f"/tasks/{task_id}/proof")).json()
            events = (await client.get(f"/tasks/{task_id}/events")).json()["events"]
            assert [e["version"] for e in proof["events"]] == [e["version"] for e in events]
            tag = proof["head"]["log"]
            assert [f"{e['position']}.{tag}" for e in proof["events"]] == [e["position"] for e in events]
            code, said = checker.run(proof)
            assert code == 0
            assert said.splitlines() == [
                f"position {e['position']}: {e['topic']} is in taskledger/{tag}, under its head over {size}"
                for e in proof["events"]
            ]
            code, said = checker.run(proof, key="other.pub")
            assert code == 1
            assert "is not signed with this key" in said
            code, said = checker.run(proof, key=None)
            assert code == 0
            assert "NOT checked" in said


async def test_a_state_that_is_no_text_is_proved(service: Service, checker: Checker) -> None:
    task = await service.create()
    await append_raw(service, task.id, 2, "TaskTeleported", b"\xff\0")
    seal(service.dsn, KEY)
    async with query_api(service.dsn) as client:
        proof = (await client.get(f"/tasks/{task.id}/proof")).json()
    assert proof["events"][1]["state_base64"] == "/wA="
    assert checker.run(proof)[0] == 0


FORGERIES: dict[str, Callable[[Any], object]] = {
    "payload": lambda p: p["events"][0].update(state=p["events"][0]["state"].replace("1", "2")),
    "kind": lambda p: p["events"][0].update(kind="mus"),
    "time": lambda p: p["events"][0].update(recorded_at="2026-01-01T00:00:00Z"),
    "position": lambda p: p["events"][0].update(position=p["events"][0]["position"] + 1),
    "beyond": lambda p: p["events"][0].update(position=p["head"]["size"] + 1),
    "path": lambda p: p["events"][0]["path"].reverse(),
    "shorter path": lambda p: p["events"][0]["path"].pop(),
    "fields that run into each other": lambda p: p["events"][0].update(kind="su", queue="mdefault"),
    "root": lambda p: p["head"].update(note=p["head"]["note"].replace(p["head"]["root"], "A" * 43 + "=")),
    "size": lambda p: p["head"].update(
        note=p["head"]["note"].replace(f"\n{p['head']['size']}\n", f"\n{p['head']['size'] + 1}\n")
    ),
    "another task": lambda p: p.update(task_id="018f4c2e-0000-7000-8000-000000000000"),
    "its first event": lambda p: p["events"].pop(0),
    "all events": lambda p: p["events"].clear(),
    "no signature": lambda p: p["head"].update(note=p["head"]["note"].partition("\n\n")[0] + "\n\n"),
}


async def test_a_forged_proof_is_refused(service: Service, checker: Checker) -> None:
    task = await service.create()
    fill(service.dsn, 5)
    seal(service.dsn, KEY)
    async with query_api(service.dsn) as client:
        proof = (await client.get(f"/tasks/{task.id}/proof")).json()
    assert checker.run(proof)[0] == 0
    for name, forge in FORGERIES.items():
        forged = copy.deepcopy(proof)
        forge(forged)
        assert forged != proof, name
        code, said = checker.run(forged)
        assert (code, said[:7]) == (1, "WRONG: "), f"{name}: {said}"


async def test_an_older_head_is_shown_to_be_a_beginning(service: Service, checker: Checker) -> None:
    heads: list[Any] = []
    async with query_api(service.dsn) as client:
        for tasks in (1, 99, 200):
            fill(service.dsn, tasks)
            seal(service.dsn, KEY)
            heads.append((await client.get("/proof/head")).json())
        assert [head["size"] for head in heads] == [3, 300, 900]
        for head in heads:
            proof = (await client.get(f"/proof/consistency?from={head['size']}")).json()
            assert checker.run(proof, since=head)[0] == 0
        signed = Note.parse(heads[0]["note"]).head
        forged = {"note": note_of(replace(signed, root=EMPTY_ROOT), KEY.signer)}
        proof = (await client.get("/proof/consistency?from=3")).json()
        assert checker.run(proof, since=forged)[0] == 1
        assert checker.run(proof, since=heads[0], key="other.pub")[0] == 1


async def test_what_is_not_sealed_is_waited_for_and_then_refused(service: Service) -> None:
    task = await service.create()
    async with query_api(service.dsn) as client:
        problem(await client.get("/proof/head"), 503, "not_sealed_yet")
        problem(await client.get("/proof/consistency?from=1"), 503, "not_sealed_yet")
        answer = await client.get(f"/tasks/{task.id}/proof")
        assert problem(answer, 503, "not_sealed_yet")["detail"].startswith(
            "the sealer has not sealed position 1"
        )
        assert answer.headers["retry-after"]
        with sealing(service.dsn):
            proof = (await client.get(f"/tasks/{task.id}/proof")).json()
        assert (proof["head"]["size"], proof["head"]["signed"]) == (1, False)
        assert base64.b64decode(proof["head"]["root"]) == base64.b64decode(proof["events"][0]["leaf_hash"])


async def test_bad_questions_get_a_clear_answer(service: Service) -> None:
    await service.commands.set_paused("mail", paused=True)
    await service.create()
    seal(service.dsn)
    execute(service.dsn, "update taskledger.task_events set tenant = 'other' where notification_id = 2")
    async with query_api(service.dsn) as client:
        for path in (uuid4(), "x", "0" * 36):
            problem(await client.get(f"/tasks/{path}/proof"), 404, "task_not_found")
        for size in ("0", "-1", "1.5", "x", "3", "9" * 18, "9" * 30, ""):
            problem(await client.get(f"/proof/consistency?from={size}"), 422, "invalid_request")
        problem(await client.get("/proof/consistency"), 422, "invalid_request")
        problem(await client.get("/proof/head?x=1"), 422, "invalid_request")
        assert (await client.get("/proof/consistency?from=2")).json()["path"] == []


async def test_a_database_that_is_not_migrated(empty_dsn: str) -> None:
    async with query_api(empty_dsn) as client:
        problem(await client.get("/proof/head"), 503, "schema_not_ready")


def test_the_script_is_short_and_needs_nothing() -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 125
    lines = [line.split() for line in text.splitlines() if line.startswith(("import ", "from "))]
    imported = {words[1].partition(".")[0] for words in lines}
    assert imported <= sys.stdlib_module_names
