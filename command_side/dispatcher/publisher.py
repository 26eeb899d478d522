"""Redis as the relay sees it: streams of entries, and per queue the position published last.

An entry's id is its event's position, so publishing twice is harmless: a stream refuses an id that it
has passed. The position is compared and set by the script that adds the entries, so neither a relay
that only believes to lead nor a Redis that has lost its data can make entries go missing unnoticed.

A queue of which we do not know for certain that everything up to its position is in its streams *lags*:
its position is read, and what `outstanding` holds above that is published, a chunk at a time, while the
others go on. So begin all queues, and so does a queue whose position is missing or lower than believed
(Redis was lost or rolled back), or whose script was refused. A position of another log comes from a
history that no longer holds: the queue's streams are deleted first, since they may have passed ids that
are still to come. One above this log's head tells that the log itself has lost its end.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Protocol, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from command_side.dispatcher.outstanding import Row
from command_side.dispatcher.status import DispatcherStatus
from events.errors import LogRewound, MalformedPosition
from events.position import PositionToken
from taskledger.redis import position_key, stream_key, streams_key
from taskledger.telemetry import get_logger

CHUNK: Final = 1_000
"""Entries a script adds at most: Redis does nothing else meanwhile, for about a millisecond."""
QUEUES_A_TURN: Final = 50
MAX_KNOWN_QUEUES: Final = 10_000
"""Past this we forget what we believe, which costs a look at each queue. Clients invent queue names."""

PUBLISH: Final = """
-- KEYS: position, set of streams, streams...   ARGV: position expected, new one, (stream, id, task)...
local stored = redis.call('GET', KEYS[1]) or ''
if stored ~= ARGV[1] then return -1 end
for i = 3, #KEYS do redis.call('SADD', KEYS[2], KEYS[i]) end
local added = 0
for i = 3, #ARGV, 3 do
  local reply = redis.pcall('XADD', KEYS[tonumber(ARGV[i])], ARGV[i + 1], 'task', ARGV[i + 2])
  if type(reply) ~= 'table' then
    added = added + 1
  elseif not string.find(reply.err, 'equal or smaller', 1, true) then
    return reply
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return added
"""
"""Answers how many entries were new, or -1 when the position is not the expected one. An error leaves
the position as it was, so what was added before it is only found to be there already next time."""

_SHA: Final = hashlib.sha1(PUBLISH.encode(), usedforsecurity=False).hexdigest()
"""How Redis names a script it has seen; EVAL makes it known to one that has not."""

_logger = get_logger(__name__)


class QueuedTask(Protocol):
    """What an entry is made of. A Row is one, and so is what a notification tells."""

    @property
    def queued_position(self) -> int: ...
    @property
    def queue(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def priority(self) -> str: ...
    @property
    def task_id(self) -> UUID: ...


class QueuedRows(Protocol):
    """What the publisher asks of `outstanding`."""

    async def queued_queues(self) -> list[str]: ...
    async def queued_after(self, queue: str, position: int, limit: int) -> list[Row]: ...


class Publisher:
    """For one term of leadership over the log with this tag. Raises RedisError; then call forget()."""

    def __init__(self, redis: Redis, tag: str, status: DispatcherStatus) -> None:
        self._redis = redis
        self._tag = tag
        self._status = status
        self._known: dict[str, int | None] = {}
        """Position of each queue as we last saw or set it; None: it has none."""
        self._lagging: dict[str, None] = {}
        self._unseen: dict[str, None] = {}

    @property
    def lags(self) -> bool:
        return bool(self._lagging or self._unseen)

    def forget(self) -> None:
        """Redis was away, or may have done what it could not tell us: look at every queue again."""
        self._known.clear()
        self._lagging.clear()
        self._unseen.clear()

    async def offer(self, tasks: Iterable[QueuedTask]) -> None:
        """Publishes newly queued tasks (in order of position) of the queues that do not lag; the others'
        are left to catch_up(), which finds them in `outstanding`."""
        by_queue: dict[str, list[QueuedTask]] = {}
        for task in tasks:
            by_queue.setdefault(task.queue, []).append(task)
        for queue, queued in by_queue.items():
            if queue not in self._known:
                self._unseen[queue] = None
            elif queue not in self._lagging:
                position = self._known[queue] or 0
                new = [task for task in queued if task.queued_position > position]
                for start in range(0, len(new), CHUNK):
                    chunk = new[start : start + CHUNK]
                    if not await self._publish(queue, chunk, chunk[-1].queued_position):
                        break

    async def look(self, queues: Iterable[str], head: Callable[[], Awaitable[int]], upto: int) -> None:
        """Reads the positions of these queues and of those not seen yet, and marks the ones that lag.
        `upto` is how far we have folded; `head` is asked only for a position beyond that. Raises LogRewound
        for one beyond the head."""
        wanted = list(dict.fromkeys([*queues, *self._unseen]))
        if not wanted:
            return
        if len(self._known) > max(MAX_KNOWN_QUEUES, 2 * len(wanted)):
            self.forget()
        pipeline = self._redis.pipeline(transaction=False)
        for queue in wanted:
            pipeline.get(position_key(queue))
        stored: list[Any] = await pipeline.execute(raise_on_error=False)
        lost: list[str] = []
        for queue, value in zip(wanted, stored, strict=True):
            if await self._judge(queue, value, head, upto):
                lost.append(queue)
            self._unseen.pop(queue, None)
        if lost:
            _logger.warning("redis lost what was published", count=len(lost), queues=lost[:5])

    async def catch_up(self, source: QueuedRows, upto: int) -> None:
        """One chunk for each queue that lags, up to QUEUES_A_TURN of them. `source` must stand at `upto`:
        what it holds queued above a queue's position is then all that the queue's streams lack."""
        for queue in list(self._lagging)[:QUEUES_A_TURN]:
            known = self._known[queue]
            rows = await source.queued_after(queue, known or 0, CHUNK)
            full = len(rows) == CHUNK
            to = max(known or 0, 0 if full else upto, rows[-1].queued_position if rows else 0)
            if known == to or await self._publish(queue, rows, to):
                del self._lagging[queue]
                if full:
                    self._lagging[queue] = None  # behind the others that lag

    async def _judge(
        self, queue: str, stored: str | Exception | None, head: Callable[[], Awaitable[int]], upto: int
    ) -> bool:
        """Whether the position tells of a loss."""
        position = await self._valid(queue, stored, head, upto)
        known = self._known.get(queue)
        if position is None:
            if queue in self._known and known is None:
                return False  # nothing has been published since its streams were deleted
            await self._begin_anew(queue)
            return known is not None or stored is not None
        self._known[queue] = position
        if known is None or position < known:
            self._lagging[queue] = None
        return known is not None and position < known

    async def _valid(
        self, queue: str, stored: str | Exception | None, head: Callable[[], Awaitable[int]], upto: int
    ) -> int | None:
        if stored is None:
            return None
        if isinstance(stored, Exception):
            if not _is_wrong_type(stored):
                raise stored
            return None
        try:
            token = PositionToken.parse(stored)
        except MalformedPosition:
            return None
        if token.tag != self._tag:
            return None
        if token.position > upto and token.position > (end := await head()):
            raise LogRewound(f"the log ends at {end}, and {position_key(queue)} in Redis is {stored}")
        return token.position

    async def _begin_anew(self, queue: str) -> None:
        """Deletes the queue's streams: ids that they have passed may still be to come."""
        index = streams_key(queue)
        members: set[str]
        try:
            members = cast("set[str]", await cast("Awaitable[Any]", self._redis.smembers(index)))
        except ResponseError as error:
            if not _is_wrong_type(error):
                raise
            members = set()
        await self._redis.delete(position_key(queue), index, *members)
        self._known[queue] = None
        self._lagging[queue] = None

    async def _publish(self, queue: str, tasks: Sequence[QueuedTask], to: int) -> bool:
        """Adds the entries and moves the queue's position to `to`; False if it was not as we believed."""
        known = self._known[queue]
        keys = [position_key(queue), streams_key(queue)]
        numbers: dict[tuple[str, str], int] = {}
        arguments: list[str | int] = ["" if known is None else self._token(known), self._token(to)]
        for task in tasks:
            lane = (task.kind, task.priority)
            if lane not in numbers:
                keys.append(stream_key(queue, *lane))
                numbers[lane] = len(keys)
            arguments += (numbers[lane], f"{task.queued_position}-1", str(task.task_id))
        try:
            added = await self._evaluate(keys, arguments)
        except ResponseError as error:
            # Somebody wrote to a key of ours. It holds nothing that the log does not.
            if not _is_wrong_type(error):
                raise
            _logger.warning("a key of the queue was overwritten", queue=queue)
            await self._begin_anew(queue)
            return False
        if added < 0:
            self._status.refused += 1
            _logger.warning("publishing refused", queue=queue, believed=known)
            del self._known[queue]
            self._lagging.pop(queue, None)
            self._unseen[queue] = None
            return False
        self._status.published += added
        self._known[queue] = to
        return True

    async def _evaluate(self, keys: Sequence[str], arguments: Sequence[str | int]) -> int:
        try:
            answer: Any = await self._redis.evalsha(_SHA, len(keys), *keys, *arguments)
        except NoScriptError:
            answer = await self._redis.eval(PUBLISH, len(keys), *keys, *arguments)
        if not isinstance(answer, int):
            raise RedisError(f"the script answered {type(answer).__name__}")
        return answer

    def _token(self, position: int) -> str:
        return str(PositionToken(position, self._tag))


def _is_wrong_type(error: Exception) -> bool:
    return str(error).startswith("WRONGTYPE")
