"""What array() makes is what PostgreSQL reads: each value back as it was, and no value as another."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.rows import TupleRow

from events.binary_arrays import array, parameter_type
from taskledger.postgres import connect_sync

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
VALUES: dict[str, list[Any]] = {
    "uuid": [UUID(int=0), UUID(int=2**128 - 1)],
    "int4": [0, 1, -1, 2**31 - 1, -(2**31)],
    "int8": [0, 1, -1, 2**63 - 1, -(2**63)],
    "float8": [0.0, 0.1, 5e-324, 1.7976931348623157e308, float("-inf"), 2],
    "bool": [True, False],
    "timestamptz": [
        EPOCH,
        EPOCH - MICROSECOND,
        EPOCH + MICROSECOND,
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(2026, 3, 29, 2, 30, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    ],
    "text": ["", " ", "NULL", '{"a",\\}', "grüße 🙂", "x" * 100_000],
    "text[]": [
        (),
        ("",),
        ("NULL", "null"),
        ('"', "\\", '\\"', "'"),
        ("{}", "a,b", " c "),
        ("\n\t", "ü"),
    ],
    "bytea": [b"", b"\0", bytes(range(256)), b"\xff" * 4],
}
storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)


@pytest.fixture(scope="module")
def connection(postgres_server: str) -> Iterator[Connection[TupleRow]]:
    with connect_sync(postgres_server, name="test") as connection:
        yield connection


def read(connection: Connection[TupleRow], type_: str, values: Sequence[Any]) -> list[Any]:
    """What an unnest() of the array gives."""
    statement = (
        f"select e::{type_} from unnest(%b::{parameter_type(type_)}) with ordinality t (e, n) order by n"
    )
    cursor = connection.cursor(binary=True)
    rows = cursor.execute(statement.encode(), (array(type_, values),)).fetchall()
    found: list[Any] = [row[0] for row in rows]
    if type_ == "text[]":
        return [None if texts is None else tuple(texts) for texts in found]
    return found


@pytest.mark.parametrize("type_", VALUES)
def test_what_goes_in_comes_out(connection: Connection[TupleRow], type_: str) -> None:
    values = [None, *VALUES[type_], None]
    assert read(connection, type_, values) == values
    assert read(connection, type_, VALUES[type_]) == VALUES[type_]
    assert read(connection, type_, VALUES[type_][:1]) == VALUES[type_][:1]
    assert read(connection, type_, []) == []


@settings(deadline=None)
@given(lists=st.lists(st.none() | st.lists(storable, max_size=3).map(tuple), max_size=4))
def test_any_texts_keep_their_borders(
    connection: Connection[TupleRow], lists: list[tuple[str, ...] | None]
) -> None:
    found = read(connection, "text[]", lists)
    assert found == (lists if any(each is not None for each in lists) else [])


def test_a_zero_keeps_its_sign(connection: Connection[TupleRow]) -> None:
    assert [str(zero) for zero in read(connection, "float8", [-0.0, 0.0])] == ["-0.0", "0.0"]


def test_a_column_without_a_value_is_as_long_as_its_neighbours(connection: Connection[TupleRow]) -> None:
    arrays = array("int8", [1, 2]), array("text", [None, None])
    assert arrays[1] is None
    rows = connection.execute("select * from unnest(%b::int8[], %b::text[])", arrays).fetchall()
    assert rows == [(1, None), (2, None)]


@pytest.mark.parametrize(
    ("type_", "value", "error"),
    [
        ("int4", 2**31, ArithmeticError),
        ("int4", -(2**31) - 1, ArithmeticError),
        ("int8", 2**63, ArithmeticError),
        ("int8", -(2**63) - 1, ArithmeticError),
        ("int8", 1.5, ArithmeticError),
        ("float8", 10**400, ArithmeticError),
        ("timestamptz", datetime(2026, 1, 1), TypeError),  # noqa: DTZ001  without a zone it is no moment
        ("text", "\ud800", ValueError),
        ("text[]", ["\ud800"], ValueError),
    ],
)
def test_what_a_type_cannot_hold_is_refused_here(type_: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        array(type_, [None, value])


@pytest.mark.parametrize("type_", ["text", "text[]"])
def test_what_only_the_server_refuses_stays_its_refusal(
    connection: Connection[TupleRow], type_: str
) -> None:
    with pytest.raises(psycopg.DataError):
        read(connection, type_, ["\0"])
