"""Faults at the border to PostgreSQL."""

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

APPEND_LOCK = 7311461898370
"""What append_v2 takes: whoever holds it holds up every append."""


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
        if self._to_lose and b"append_v2" in query:
            self._to_lose -= 1
            self.lost += 1
            raise psycopg.OperationalError("the connection was lost")
