"""Faults at the border to PostgreSQL."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import Connection, Cursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

APPEND_LOCK = 7311461898370
"""What append_v1 takes: whoever holds it holds up every append."""


class ReplyLost:
    """A way to connect whose appends are carried out, while their reply never arrives."""

    def __init__(self, connect: Callable[[], Connection[TupleRow]]) -> None:
        self._connect = connect
        self._to_lose = 0
        self.lost = 0

    def lose_next_replies(self, count: int) -> None:
        self._to_lose = count

    def __call__(self) -> Connection[TupleRow]:
        faults = self

        class Faulty(Cursor[TupleRow]):
            def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
                result = super().execute(query, *args, **kwargs)
                faults.after(query)
                return result

        connection = self._connect()
        connection.cursor_factory = Faulty
        return connection

    def after(self, query: bytes) -> None:
        if self._to_lose and b"append_v1" in query:
            self._to_lose -= 1
            self.lost += 1
            raise psycopg.OperationalError("the connection was lost")


class CuttingProxy:
    """Between a client and PostgreSQL, on a socket in `folder`. Once armed it lets one more request
    through, swallows what the server answers, and cuts the connection: a commit whose outcome the
    client cannot know."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = dsn
        self._folder = folder
        self._armed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.cuts = 0

    @property
    def dsn(self) -> str:
        return make_conninfo(self._dsn, host=str(self._folder), port=5432)

    def arm(self) -> None:
        self._armed = True

    async def __aenter__(self) -> Self:
        path = str(self._folder / ".s.PGSQL.5432")
        self._server = await asyncio.start_unix_server(self._serve, path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = conninfo_to_dict(self._dsn)
        if str(target["host"]).startswith("/"):
            path = f"{target['host']}/.s.PGSQL.{target['port']}"
            server_reader, server_writer = await asyncio.open_unix_connection(path)
        else:
            server_reader, server_writer = await asyncio.open_connection(
                str(target["host"]), int(str(target["port"]))
            )
        both = (writer, server_writer)
        for source, sink, answers in ((reader, server_writer, False), (server_reader, writer, True)):
            task = asyncio.create_task(self._forward(source, sink, both, answers=answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        both: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        *,
        answers: bool,
    ) -> None:
        try:
            while data := await source.read(65_536):
                if answers and self._armed:
                    self._armed = False
                    self.cuts += 1
                    return
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return  # one side has gone: the other one is told below
        finally:
            for writer in both:
                writer.close()
