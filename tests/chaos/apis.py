"""APIs under fire, and their clients."""

import asyncio
from typing import Final, Protocol

from tests.chaos.cluster import Cluster
from tests.chaos.wire import Answer, Wire, post, task, wire
from tests.support import eventually

API: Final = "command-api-0"


class Launch(Protocol):
    def __call__(self, copies: int = 1, **env: object) -> Cluster:
        """Starts copies of the command API; settings by their name without the prefix."""
        ...


async def stored(url: str, mark: str, key: str) -> tuple[Answer, int]:
    """The answer to a request that is sent until it is stored, and how often none came. Nothing but 429
    and 503 may come before it."""
    lost = 0
    while lost < 1000:
        try:
            async with wire(url) as connection:
                answer = await connection.ask(post(task(mark), idempotency_key=key))
        except (OSError, EOFError):
            lost += 1
            await asyncio.sleep(0.02)
            continue
        if answer.status == 201:
            return answer, lost
        assert answer.status in {429, 503}, answer
    raise AssertionError(f"no answer to {mark}")


class Load:
    """Clients that post one task after the other, each on a connection that it keeps while it may; or,
    unless they `keep`, on a new one each time."""

    def __init__(self, url: str, count: int, *, keep: bool = True) -> None:
        self.answers: list[Answer] = []
        self.refused = 0
        """Attempts to connect that were: no request was sent."""
        self.lost: list[str] = []
        """Requests that were sent and not answered."""
        self._url = url
        self._keep = keep
        self._stop = False
        self._tasks = [asyncio.create_task(self._run(f"client-{n}")) for n in range(count)]

    async def has_begun(self) -> None:
        """Returns when every client has been answered a few times."""
        await eventually(self._is_under_way, "the load to begin")

    async def _is_under_way(self) -> bool:
        return len(self.answers) >= 5 * len(self._tasks)

    def stop(self) -> None:
        """No further requests."""
        self._stop = True

    async def over(self) -> None:
        """Returns when all clients were stopped or refused."""
        async with asyncio.timeout(20):
            await asyncio.gather(*self._tasks)

    async def _run(self, name: str) -> None:
        while not self._stop:
            try:
                connection = await Wire.open(self._url)
            except ConnectionRefusedError:
                self.refused += 1
                return
            try:
                while await self._post(connection, f"{name}-{len(self.answers)}"):
                    pass
            finally:
                await connection.close()

    async def _post(self, connection: Wire, mark: str) -> bool:
        """Whether the connection goes on."""
        try:
            answer = await connection.ask(post(task(mark)))
        except (OSError, EOFError) as error:
            self.lost.append(f"{mark}: {error!r}")
            return False
        self.answers.append(answer)
        return self._keep and answer.headers.get("connection") != "close" and not self._stop
