"""What is written in one turn of the event loop leaves together, in order, and before the end."""

import asyncio
from collections.abc import Callable

import pytest

from taskledger.gathering import GatheringTransport


class Below:
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.told.append(data)

    def close(self) -> None:
        self.closed = True
        self.told.append("close")

    def abort(self) -> None:
        self.closed = True
        self.told.append("abort")

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.told.append("pause")


def _gathering(below: Below) -> GatheringTransport:
    return GatheringTransport(below, asyncio.get_running_loop())


async def _turn() -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    tell: Callable[[None], None] = done.set_result
    asyncio.get_running_loop().call_soon(tell, None)
    await done


async def test_writes_of_one_turn_leave_together_and_later_ones_after_them() -> None:
    below = Below()
    transport = _gathering(below)
    for data in (b"head", b"body"):
        transport.write(data)
    assert below.told == []
    await _turn()
    transport.write(b"more")
    await _turn()
    assert below.told == [b"headbody", b"more"]


@pytest.mark.parametrize(("end", "told"), [("close", [b"last", "close"]), ("abort", ["abort"])])
async def test_a_close_sends_what_was_written_and_an_abort_nothing(end: str, told: list[object]) -> None:
    below = Below()
    transport = _gathering(below)
    transport.write(b"last")
    getattr(transport, end)()
    await _turn()
    assert below.told == told
    assert transport.is_closing()


async def test_everything_else_is_the_transports_own() -> None:
    below = Below()
    _gathering(below).pause_reading()
    assert below.told == ["pause"]
