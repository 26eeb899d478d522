"""Planted bugs, switched on by the harness alone. Each takes one protection away, as carelessness might.

Those of a process are wrapped around functions by the launcher; those of the append function are edits of
its text in the cluster's database. Both fail loudly where what they change is no longer there.
"""

import asyncio
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg

from tests.chaos.failpoints import wrap

PLANT: Final = "CHAOS_PLANT"
"""Environment variable: the name of the planted bug."""

_WORKER: Final = ("worker",)
_DISPATCHER: Final = ("dispatcher",)
_PROJECTOR: Final = ("projector", "rebuild")
_QUERY: Final = ("query-api",)
_WRITERS: Final = ("command-api", "worker", "dispatcher")


@dataclass(frozen=True, slots=True)
class Plant:
    install: Callable[[], None] | None = None
    commands: tuple[str, ...] = ()
    """The processes that it is installed in."""
    spoil: Callable[[str], str] | None = None
    """Edits the text of the append function."""


def install(name: str | None, command: str) -> None:
    """Puts the bug into this process."""
    if name is not None:
        plant = PLANTS[name]
        if plant.install is not None and command in plant.commands:
            plant.install()


def spoil(name: str | None, dsn: str) -> None:
    """Puts the bug into the database."""
    edit = None if name is None else PLANTS[name].spoil
    if edit is None:
        return
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("select pg_get_functiondef('taskledger.append_v2'::regproc)").fetchone()
        assert row is not None
        connection.execute(edit(str(row[0])).encode())


def _edited(text: str, old: str, new: str) -> str:
    if old not in text:
        raise LookupError(old)
    return text.replace(old, new)


def _edit(module: str, name: str, old: str, new: str) -> str:
    """Changes a text that a module keeps, and returns it."""
    holder = importlib.import_module(module)
    text = _edited(getattr(holder, name), old, new)
    setattr(holder, name, text)
    return text


_LOCK: Final = "    perform pg_advisory_xact_lock(7311461898370);\n"


def _without_lock(text: str) -> str:
    return _edited(text, _LOCK, "")


def _key_before_lock(text: str) -> str:
    """The look for keys comes first, and the lock after it; a key that came meanwhile is left as it is."""
    begin, end = text.index("    replayed := '{}';"), text.index("        conflicts := array(")
    look = f"{text[begin:end]}    end if;\n"
    text = _edited(
        text[:begin] + "    if cardinality(k_command) > 0 then\n" + text[end:], _LOCK, look + _LOCK
    )
    return _edited(text, ") p using (command);", ") p using (command) on conflict do nothing;")


def _publish(old: str, new: str) -> None:
    module = "command_side.dispatcher.publisher"
    script = _edit(module, "PUBLISH", old, new)
    setattr(importlib.import_module(module), "_SHA", hashlib.sha1(script.encode()).hexdigest())  # noqa: B010


def _automatic_ids() -> None:
    _publish("ARGV[i + 1], 'task'", "'*', 'task'")


def _trimmed_streams() -> None:
    _publish("ARGV[i + 1], 'task'", "'MAXLEN', '4', ARGV[i + 1], 'task'")


def _group_at_the_end() -> None:
    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def create(self: Any, name: str, groupname: str, **options: Any) -> Any:
            return original(self, name, groupname, **{**options, "id": "$"})

        return create

    wrap("redis.commands.core:StreamCommands.xgroup_create", wrapper)


def _settled_before_start() -> None:
    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        async def take(self: Any, *arguments: Any, **options: Any) -> Any:
            entries = await original(self, *arguments, **options)
            await self.settle(entries)
            return entries

        return take

    wrap("command_side.worker.consumer:Consumer._read", wrapper)
    wrap("command_side.worker.consumer:Consumer.claim", wrapper)


def _settled_on_timeout() -> None:
    from command_side.worker.starter import Started
    from events.errors import StoreUnavailable

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        async def start(self: Any, entries: Sequence[Any]) -> Any:
            try:
                return await original(self, entries)
            except StoreUnavailable:
                return Started(settled=list(entries))

        return start

    wrap("command_side.worker.starter:Starter.start", wrapper)


def _entries_kept() -> None:
    from taskledger.redis import GROUP

    def wrapper(_: Callable[..., Any]) -> Callable[..., Any]:
        async def settle(self: Any, entries: Sequence[Any]) -> None:
            for entry in entries:
                await self._redis.xack(entry.stream.key, GROUP, entry.id)

        return settle

    wrap("command_side.worker.consumer:Consumer.settle", wrapper)


def _attempt_unchecked() -> None:
    from events.task_events import TaskCompleted

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def complete(state: Any, command: Any, new: Any) -> None:
            if state.status == "running":
                new.add(TaskCompleted, attempt=command.attempt, result=command.result)
            else:
                original(state, command, new)

        return complete

    wrap("command_side.task:_complete", wrapper)


def _view_apart_from_checkpoint() -> None:
    from projector.fold import Changes

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(self: Any, connection: Any, changes: Any, move: Any = None) -> Any:
            if move is None:
                return original(self, connection, changes)
            moved = original(self, connection, Changes(changes.position), move)
            if moved is not None:
                original(self, connection, changes)
            return moved

        return write

    wrap("projector.view:TasksView.write", wrapper)


def _topics_filtered() -> None:
    from events.queue_events import QueueEvent

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def next_batch(self: Any, upto: int | None) -> Any:
            batch = original(self, upto)
            kept = [entry for entry in batch or () if not isinstance(entry.event, QueueEvent)]
            return kept or None

        return next_batch

    wrap("projector.follower:Follower._next", wrapper)


def _fold_ignores_retries() -> None:
    from events.task_events import TaskStarted

    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def evolve(state: Any, event: Any, **at: Any) -> Any:
            after = original(state, event, **at)
            again = isinstance(event, TaskStarted) and event.attempt > 1
            return replace(after, attempt=state.attempt) if again else after

        return evolve

    wrap("projector.fold:evolve", wrapper)


def _token_against_head() -> None:
    head = "(select coalesce(max(notification_id), 0) from taskledger.task_events) as checkpoint"
    _edit("query_side.read_model", "_LIVE", "coalesce(c.position, 0) as checkpoint", head)


def _tenants_unfiltered() -> None:
    _edit("query_side.tasks", "_OWN", "t.tenant = %(tenant)s", "true")


def _sweeper_off() -> None:
    def wrapper(_: Callable[..., Any]) -> Callable[..., Any]:
        async def run(_self: Any) -> None:
            await asyncio.Event().wait()

        return run

    wrap("command_side.dispatcher.sweeper:Sweeper.run", wrapper)


def _beat_from_the_loop() -> None:
    def wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
        def tick(self: Any, connection: Any) -> Any:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result()
            return original(self, connection)

        return tick

    wrap("command_side.worker.leases:Renewal._tick", wrapper)


def _conflict_always() -> None:
    def wrapper(_: Callable[..., Any]) -> Callable[..., Any]:
        async def recognise(_self: Any, _commands: Any, outcomes: Any, _deadline: Any) -> Any:
            return outcomes

        return recognise

    wrap("events.postgres_log:PostgresLog._recognise_own", wrapper)


PLANTS: Final[Mapping[str, Plant]] = {
    "append-without-lock": Plant(spoil=_without_lock),
    "automatic-entry-ids": Plant(_automatic_ids, _DISPATCHER),
    "group-at-the-end": Plant(_group_at_the_end, ("worker", "command-api")),
    "settled-before-start": Plant(_settled_before_start, _WORKER),
    "attempt-unchecked": Plant(_attempt_unchecked, _WRITERS),
    "view-apart-from-checkpoint": Plant(_view_apart_from_checkpoint, _PROJECTOR),
    "topics-filtered": Plant(_topics_filtered, _PROJECTOR),
    "streams-trimmed": Plant(_trimmed_streams, _DISPATCHER),
    "token-against-head": Plant(_token_against_head, _QUERY),
    "key-before-lock": Plant(spoil=_key_before_lock),
    "fold-ignores-retries": Plant(_fold_ignores_retries, _PROJECTOR),
    "sweeper-off": Plant(_sweeper_off, _DISPATCHER),
    "beat-from-the-loop": Plant(_beat_from_the_loop, _WORKER),
    "tenants-unfiltered": Plant(_tenants_unfiltered, _QUERY),
    "conflict-always": Plant(_conflict_always, _WRITERS),
    "settled-on-timeout": Plant(_settled_on_timeout, _WORKER),
    "entries-kept": Plant(_entries_kept, _WORKER),
}
"""By what is wrong."""
