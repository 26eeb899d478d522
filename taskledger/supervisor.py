"""`taskledger up`: servers, schema and every process on this machine, kept running until Ctrl-C.

One thread decides: signals and the ends of children reach it as messages. What may block (starting a
server, migrating) runs in a thread beside it, so that Ctrl-C is heard at any moment. Ctrl-C drains
in the order in which work flows: nothing new comes in, what runs finishes, its events are projected,
and the servers go last. A second Ctrl-C kills. SIGKILL takes children and servers with it, see
lifecycle.follow_supervisor and embedded; the log is complete whenever that happens.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Final, TypeVar

from events.errors import ConfigurationError
from taskledger import ports
from taskledger.addresses import POSTGRES, REDIS
from taskledger.children import Child, Ended
from taskledger.database import await_redis, migrate_when_reachable
from taskledger.health import ask
from taskledger.lifecycle import EXIT_REFUSED
from taskledger.servers import Servers, only_one, webhook_secret
from taskledger.settings import Settings
from taskledger.signing_key import SIGNING_KEY_FILE, make_key
from taskledger.telemetry import get_logger

REACH_SECONDS: Final = 10.0
"""For servers that were there before us."""
READY_SECONDS: Final = 120.0
PATIENCE_SECONDS: Final = 10.0
"""For one stage of draining, before it is killed."""
HOPELESS_FAILURES: Final = 3
"""Ends of one process before all are ready after which `up` gives up."""
TICK_SECONDS: Final = 0.1

_logger = get_logger(__name__)
_Result = TypeVar("_Result")


class _StopAskedError(Exception):
    """The user wants to stop: unwinds whatever `up` is doing."""


@dataclass(frozen=True, slots=True)
class _StopAsked:
    """A signal, or nobody reads our output any more."""


_Message = _StopAsked | Ended


class Supervisor:
    def __init__(self, settings: Settings, *, workers: int = 1) -> None:
        self._settings = settings
        self._workers = workers
        self._servers = Servers(settings)
        self._children: list[Child] = []
        # The only queue whose put() may be called from a signal handler.
        self._mailbox: SimpleQueue[_Message] = SimpleQueue()
        self._output = threading.Lock()
        # On servers that are not ours there is no folder of ours to keep a secret in.
        self._has_webhooks = bool(settings.webhook_secrets() or self._servers.names)
        self._json = settings.log_format == "json" or (
            settings.log_format == "auto" and not sys.stderr.isatty()
        )

    def run(self) -> None:
        """Returns once everything has been stopped.

        Raises ConfigurationError, with nothing left running, if it cannot come up.
        """
        with ExitStack() as undo:
            undo.enter_context(self._signals())
            if self._servers.names:
                undo.enter_context(only_one(self._settings.data_dir))
            try:
                self._start(undo)
                self._watch()
            except _StopAskedError:
                _logger.info("stopping", again="Ctrl-C kills")

    @contextmanager
    def _signals(self) -> Generator[None]:
        def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
            self._mailbox.put(_StopAsked())

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(number, ask_to_stop) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _start(self, undo: ExitStack) -> None:
        chosen = ports.choose_ports(self._settings, undo)
        undo.callback(self._stop)
        if self._servers.names:
            _logger.info("starting servers", servers=self._servers.names, data=str(self._settings.data_dir))
        found = self._beside(self._servers.start)
        self._beside(lambda: self._prepare_database(found))
        urls = {
            "command-api": ports.url(self._settings.command_api.host, chosen["COMMAND_API"]),
            "query-api": ports.url(self._settings.query_api.host, chosen["QUERY_API"]),
        }
        found |= self._webhook_secret()
        env = {**os.environ, **found, **self._child_settings(chosen, urls["query-api"])}
        self._children = [self._child(label, command, env) for label, command in self._plan()]
        for child in self._children:
            child.start()
        ours = self._servers.names or self._settings.proof.signing_key_file
        # On given servers others may run as well, and heads want one key: the operator's, or none.
        key = {SIGNING_KEY_FILE: str(make_key(self._settings))} if ours else {}
        self._await_ready(urls)
        # Nobody waits for it: it does not make the start longer.
        self._children.append(self._child("sealer", "sealer", {**env, **key}))
        self._children[-1].start()
        self._say(_welcome(urls, self._servers.names, str(self._settings.data_dir)))

    def _prepare_database(self, found: dict[str, str]) -> None:
        dsn = found.get(POSTGRES) or self._settings.require_postgres()
        redis_url = found.get(REDIS) or self._settings.require_redis()
        revision = migrate_when_reachable(dsn, patience_seconds=REACH_SECONDS)
        await_redis(redis_url, patience_seconds=REACH_SECONDS)
        _logger.info("database is migrated", revision=revision)

    def _webhook_secret(self) -> dict[str, str]:
        """The setting that names a secret of our own, made at the first start, where none is given."""
        if self._settings.webhook_secrets() or not self._has_webhooks:
            return {}
        return {"TASKLEDGER__WEBHOOKS__SECRET_FILE": str(webhook_secret(self._settings.data_dir))}

    def _plan(self) -> list[tuple[str, str]]:
        """Label and command of each process."""
        several = self._workers > 1
        workers = [f"worker-{i + 1}" if several else "worker" for i in range(self._workers)]
        singles = ["command-api", "query-api", "dispatcher", "projector"]
        return [
            *((name, name) for name in singles),
            *((label, "worker") for label in workers),
            *([("webhooks", "webhooks")] if self._has_webhooks else []),
        ]

    def _child_settings(self, chosen: dict[str, int], query_url: str) -> dict[str, str]:
        found = {f"TASKLEDGER__{section}__PORT": str(port) for section, port in chosen.items()}
        found["TASKLEDGER__HEALTH__PORT"] = "0"  # all on one machine: one port would not do
        found["TASKLEDGER__HTTP__DRAIN_SECONDS"] = (
            "0"  # there is one of each: nobody has to move to another
        )
        found["TASKLEDGER__QUERY_API__PUBLIC_URL"] = self._settings.query_api.public_url or query_url
        found["TASKLEDGER__LOG_FORMAT"] = "json" if self._json else "console"
        if sys.stderr.isatty():
            found["FORCE_COLOR"] = "1"
        return found

    def _child(self, label: str, command: str, env: dict[str, str]) -> Child:
        if label != command:
            env = {**env, "TASKLEDGER__WORKER__NAME": f"{self._settings.worker.name}-{label}"}
        return Child(label, [command], env=env, on_line=self._pass_on, on_end=self._mailbox.put)

    def _await_ready(self, urls: dict[str, str]) -> None:
        began = time.monotonic()
        told = began
        while missing := _missing(urls):
            now = time.monotonic()
            if now - began > READY_SECONDS:
                raise ConfigurationError(f"not ready after {READY_SECONDS:.0f} s: {missing}")
            if now - told > REACH_SECONDS:
                _logger.warning("not ready yet", missing=missing)
                told = now
            ended = self._next_message(TICK_SECONDS)
            if ended and (ended.code == EXIT_REFUSED or ended.failures >= HOPELESS_FAILURES):
                raise ConfigurationError(f"the {ended.label} does not start: {gist(ended.last_line)}")
        _logger.info("ready", after_seconds=round(time.monotonic() - began, 1))

    def _watch(self) -> None:
        """Returns never: _StopAskedError ends it."""
        while True:
            self._next_message(1.0)
            if dead := self._servers.dead():
                _logger.error("a server ended; starting it again", servers=dead)
                self._beside(self._servers.start)

    def _next_message(self, timeout: float) -> Ended | None:
        try:
            message = self._mailbox.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(message, _StopAsked):
            raise _StopAskedError
        planned = message.failures == 0
        _logger.log(
            20 if planned else 40,
            "process replaced" if planned else "process ended",
            child=message.label,
            exit_code=message.code,
            restart_in_seconds=message.pause_seconds,
            last_line=None if planned else gist(message.last_line),
        )
        return message

    def _beside(self, step: Callable[[], _Result]) -> _Result:
        """Run a step that may block in a thread; hear signals meanwhile."""
        done: Future[_Result] = Future()

        def run() -> None:
            try:
                done.set_result(step())
            except BaseException as error:  # noqa: BLE001 (raised in the waiting thread)
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        while not done.done():
            self._next_message(TICK_SECONDS / 2)
        return done.result()

    def _stop(self) -> None:
        forced = False
        for stage in (
            ("command-api", "query-api"),
            ("worker",),
            ("projector", "dispatcher", "webhooks", "sealer"),
        ):
            patience = PATIENCE_SECONDS + (
                self._settings.worker.drain_seconds if stage == ("worker",) else 0
            )
            members = [c for c in self._children if c.label.startswith(stage)]
            forced = forced or not self._drain(members, patience)
        self._servers.stop(immediate=forced)
        _logger.info("stopped")

    def _drain(self, members: Sequence[Child], patience_seconds: float) -> bool:
        """False if the user has lost patience and everything has been killed."""
        for child in members:
            child.terminate()
        deadline = time.monotonic() + patience_seconds
        while waiting := [c for c in members if not c.join(TICK_SECONDS / len(members))]:
            try:
                self._next_message(TICK_SECONDS)
            except _StopAskedError:
                self._kill(self._children)
                return False
            if time.monotonic() > deadline:
                _logger.error("killing what does not stop", children=[c.label for c in waiting])
                self._kill(waiting)
        return True

    def _kill(self, members: Sequence[Child]) -> None:
        for child in members:
            child.kill()
        for child in members:
            child.join(PATIENCE_SECONDS)

    def _pass_on(self, label: str, line: str) -> None:
        if self._json and not line.startswith("{"):
            _logger.warning("output", child=label, line=line)
            return
        self._write(sys.stderr, line if self._json else f"{label:<11} | {line}")

    def _say(self, text: str) -> None:
        self._write(sys.stdout, text)

    def _write(self, stream: Any, text: str) -> None:
        try:
            with self._output:
                stream.write(f"{text}\n")
                stream.flush()
        except OSError:  # nobody reads us any more
            self._mailbox.put(_StopAsked())


def gist(line: str) -> str:
    """A child's last line without its wrapping: what it says of why it ended."""
    line = line.removeprefix("taskledger: ")
    try:
        event: Any = json.loads(line)
        said = [str(event[key]) for key in ("event", "exception") if event.get(key)]
    except (ValueError, TypeError, AttributeError):
        return line or "it said nothing"
    return ": ".join(text.strip().splitlines()[-1] for text in said) or line


def _missing(urls: dict[str, str]) -> str | None:
    for name, url in urls.items():
        if (why := ask(f"{url}/health/ready")) is not None:
            return f"{name}: {why}"
    return None


def _welcome(urls: dict[str, str], servers: str, data_dir: str) -> str:
    command, query = urls["command-api"], urls["query-api"]
    where = f" {servers} keep their data in {os.path.abspath(data_dir)}." if servers else ""  # noqa: PTH100 (also of a path that is gone)
    return f"""
taskledger is ready.{where}

  command API   {command}   {command}/docs
  query API     {query}   {query}/docs

Submit a sum, and see its result:

  curl -s "$(curl -s -o /dev/null -w '%header{{location}}' {command}/tasks \\
    -H 'Content-Type: application/json' \\
    -d '{{"kind": "sum", "payload": {{"x": 2, "y": 3}}}}')&wait_seconds=10"

Ctrl-C stops everything; the data stays.
"""
