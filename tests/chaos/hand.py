"""Asks for this and that at a chosen moment, beside the clients of a campaign."""

from collections.abc import Mapping
from itertools import count
from typing import Any, Final

import httpx

from tests.chaos.clients import Ground

_NONE: Final[Mapping[str, str]] = {}


class Hand:
    """Asks for tasks beside the clients, and writes it down as they do."""

    def __init__(self, ground: Ground) -> None:
        self._recorder = ground.recorder
        self._command_urls = ground.command_urls
        self._numbers = count()

    def mark(self, kind: str) -> str:
        return f"{kind}-hand-{next(self._numbers)}"

    def submit(
        self,
        kind: str,
        mark: str,
        *,
        queue: str = "default",
        key: str | None = None,
        url: int = 0,
        **payload: Any,
    ) -> None:
        body = {"kind": kind, "queue": queue, "payload": {**payload, "mark": mark}}
        op = self._recorder.invoke("hand", "submit", key=key, value={"mark": mark, "kind": kind})
        answer = self._ask(op, "/tasks", body, url, {} if key is None else {"Idempotency-Key": key})
        if answer is not None:
            told, replayed = answer.json(), answer.headers.get("Idempotent-Replayed") == "true"
            self._recorder.ok(op, task=told["id"], token=told["position"], value={"replayed": replayed})

    def claim(self, queue: str) -> tuple[str, int]:
        """The one task of the queue and its attempt, as soon as it can start."""
        body = {"worker": "hand", "limit": 1, "wait_seconds": 5, "lease_seconds": 1}
        op = self._recorder.invoke("hand", "claim", value={"worker": "hand"})
        answer = self._ask(op, f"/queues/{queue}/claim", body)
        assert answer is not None
        (claimed,) = ({"id": task["id"], "attempt": task["attempt"]} for task in answer.json()["tasks"])
        self._recorder.ok(op, value={"tasks": [claimed]})
        return claimed["id"], claimed["attempt"]

    def complete(self, task: str, attempt: int) -> None:
        op = self._recorder.invoke("hand", "complete", task=task, value={"attempt": attempt})
        answer = self._ask(op, f"/tasks/{task}/complete", {"attempt": attempt, "result": None})
        if answer is not None:
            told = answer.json()
            value = {name: told[name] for name in ("status", "version", "attempt")}
            self._recorder.ok(op, token=told["position"], value=value)

    def pause(self, queue: str) -> None:
        self._post(f"/queues/{queue}/pause", {}).raise_for_status()

    def resume(self, queue: str) -> None:
        self._post(f"/queues/{queue}/resume", {}).raise_for_status()

    def _ask(
        self, op: int, path: str, body: object, url: int = 0, headers: Mapping[str, str] = _NONE
    ) -> httpx.Response | None:
        """The answer that means `ok`; any other is written down here."""
        try:
            answer = self._post(path, body, url, headers)
        except httpx.TransportError as error:
            self._recorder.info(op, type(error).__name__)
            return None
        if answer.is_success:
            return answer
        if answer.is_client_error:
            self._recorder.fail(op, answer.json()["code"])
        else:
            self._recorder.info(op, str(answer.status_code))
        return None

    def _post(
        self, path: str, body: object, url: int = 0, headers: Mapping[str, str] = _NONE
    ) -> httpx.Response:
        address = f"{self._command_urls[url]}{path}"
        return httpx.post(address, json=body, headers=dict(headers), timeout=8, trust_env=False)
