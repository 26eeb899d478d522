"""Child processes, as the worker sees them: a zygote is started at first use and replaced if it dies."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

import orjson

from command_side.worker.attempts import Attempt
from command_side.worker.child import job_of
from command_side.worker.outcomes import Lost, Outcome
from command_side.worker.wire import frame, outcome_in, read_frame
from command_side.worker.zygote import send_with
from taskledger.telemetry import get_logger

START_SECONDS: Final = 60.0
"""For the zygote to import the handler modules."""
_EXIT_SECONDS: Final = 5.0
_ZYGOTE: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from command_side.worker.zygote import main
main()
"""
"""Not `python -m`: handler modules and our own are found there as they are found here."""
_logger = get_logger(__name__)


class Children:
    """Runs attempts in processes of their own, as many at once as asked for."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = list(modules)
        self._zygote: asyncio.Task[_Zygote | None] | None = None

    def prepare(self) -> None:
        """Begins to import the handler modules in the background, so that no attempt waits for it."""
        if self._zygote is None:
            self._zygote = asyncio.create_task(_started(self._modules), name="zygote")

    async def run(self, attempt: Attempt) -> Outcome:
        """Lost, if the child ends without an answer. A cancellation kills the child before it is
        raised: when run() has ended, so has the process, and what it started in its group."""
        zygote = await self._alive()
        if zygote is None:
            return Lost("the process that forks children cannot be started", beside_others=True)
        return await zygote.run(attempt)

    async def close(self) -> None:
        starting, self._zygote = self._zygote, None
        if starting is not None:
            starting.cancel()
            await asyncio.wait({starting})
            zygote = None if starting.cancelled() else starting.result()
            if zygote is not None:
                await zygote.close()

    async def _alive(self) -> "_Zygote | None":
        """Shared by whoever needs it, and not cancelled with one of them."""
        if self._zygote is not None and self._zygote.done():
            zygote = self._zygote.result()
            if zygote is not None and not zygote.gone.done():
                return zygote
            await self.close()
        self.prepare()
        return await asyncio.shield(self._zygote) if self._zygote is not None else None


async def _started(modules: list[str]) -> "_Zygote | None":
    try:
        zygote = _Zygote(modules)
    except OSError as error:
        _logger.error("child processes cannot be started", reason=str(error))  # noqa: TRY400
        return None
    ready = False
    try:
        ready = await zygote.started(START_SECONDS)
    finally:
        if not ready:
            await zygote.close()
    return zygote if ready else None


class _Zygote:
    def __init__(self, modules: list[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs:
            # A session of its own: Ctrl-C in a terminal is for the worker, which drains first.
            self._process = subprocess.Popen(  # noqa: S603  our own module
                [
                    sys.executable,
                    "-c",
                    _ZYGOTE,
                    str(theirs.fileno()),
                    str(os.getpid()),
                    json.dumps(sys.path),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._ready: asyncio.Future[bool] = self._loop.create_future()
        self._launching = asyncio.Lock()
        self._launched: asyncio.Future[None] | None = None
        self._exits: dict[str, asyncio.Future[int]] = {}
        self._unread = b""
        self._number = 0
        self._loop.add_reader(self._control, self._listen)
        self._control.send(orjson.dumps({"modules": modules}) + b"\n")

    async def started(self, seconds: float) -> bool:
        await _first(self._ready, self.gone, seconds=seconds)
        return self._ready.done() and self._ready.result()

    async def run(self, attempt: Attempt) -> Outcome:
        self._number += 1
        key = f"{self._number}:{attempt.key}"
        exited: asyncio.Future[int] = self._loop.create_future()
        self._exits[key] = exited
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                await self._launch(key, theirs)
            return await self._converse(ours, exited, attempt)
        finally:
            self._say({"kill": key})
            await _first(exited, self.gone, seconds=_EXIT_SECONDS)
            self._exits.pop(key, None)
            ours.close()

    async def _launch(self, key: str, theirs: socket.socket) -> None:
        """One at a time, so that the control socket never fills up."""
        async with self._launching:
            if self.gone.done():
                return
            self._launched = self._loop.create_future()
            try:
                send_with(self._control, orjson.dumps({"run": key}) + b"\n", theirs.fileno())
            except OSError as error:  # it has died; whoever waits for the child sees that
                _logger.info("child processes are gone", reason=type(error).__name__)
                return
            await _first(self._launched, self.gone)

    async def _converse(
        self, ours: socket.socket, exited: asyncio.Future[int], attempt: Attempt
    ) -> Outcome:
        reader, writer = await asyncio.open_connection(sock=ours)
        answer = asyncio.create_task(_answer(reader, writer, attempt))
        try:
            await _first(answer, exited, self.gone)
            # An answer given just before the end may still be on its way; after that, EOF is.
            await asyncio.wait({answer}, timeout=1.0)
            outcome = answer.result() if answer.done() else None
            if outcome is not None:
                return outcome
            await _first(exited, self.gone, seconds=_EXIT_SECONDS)
            if exited.done():
                return Lost(_how(exited.result()))
            if self.gone.done():
                return Lost("the process that forks children has ended", beside_others=True)
            return Lost("the child process ended without an answer")
        finally:
            answer.cancel()
            await asyncio.wait({answer})
            writer.close()

    async def close(self) -> None:
        """The zygote ends with its socket, and kills its children first."""
        self._loop.remove_reader(self._control)
        self._control.close()
        self._left()
        try:
            await asyncio.to_thread(self._process.wait, _EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _say(self, message: Any) -> None:
        try:
            self._control.send(orjson.dumps(message) + b"\n")
        except OSError as error:
            _logger.info("child processes are gone", reason=type(error).__name__)

    def _listen(self) -> None:
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._control)
            self._left()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._hear(orjson.loads(line))

    def _hear(self, message: Any) -> None:
        match message:
            case {"ready": True}:
                self._ready.set_result(True)
            case {"error": reason}:
                _logger.error("child processes cannot load the handlers", reason=reason)
                self._ready.set_result(False)
            case {"started": _} if self._launched is not None and not self._launched.done():
                self._launched.set_result(None)
            case {"exited": str(key), "status": int(status)}:
                exited = self._exits.get(key)
                if exited is not None and not exited.done():
                    exited.set_result(status)
            case _:
                _logger.warning("a message from the zygote was not understood")

    def _left(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


async def _first(*futures: asyncio.Future[Any], seconds: float | None = None) -> None:
    await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, attempt: Attempt
) -> Outcome | None:
    """Sends the job and follows what the child says; None if it ends without an answer."""
    try:
        writer.write(frame(job_of(attempt.kind.name, attempt.state.payload, attempt.context)))
        await writer.drain()
        while True:
            message = await read_frame(reader)
            if "outcome" in message:
                return outcome_in(message)
            fraction, note = message["progress"]
            attempt.report(fraction, note)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _how(status: int) -> str:
    if status < 0:
        return f"the child process was killed by {signal.Signals(-status).name}"
    return f"the child process ended with exit code {status} and no answer"
