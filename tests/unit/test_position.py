import pytest

from events.errors import LogRewound, MalformedPosition
from events.position import PositionToken


@pytest.mark.parametrize("position", [0, 1, 42, 2**53, 2**63 - 1])
def test_a_token_is_read_back_as_it_was_written(position: int) -> None:
    token = PositionToken(position, "k3v9x0aa")
    assert PositionToken.parse(str(token)) == token


def test_a_token_reads_like_a_number_and_a_tag() -> None:
    assert str(PositionToken(42, "k3v9x0aa")) == "42.k3v9x0aa"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "42.",
        ".k3v9x0aa",
        "42.k3v9x0a",
        "42.k3v9x0aaa",
        "42.K3V9X0AA",
        "42.k3v9x0a!",
        "042.k3v9x0aa",
        "+42.k3v9x0aa",
        "-1.k3v9x0aa",
        "4_2.k3v9x0aa",
        "42.5.k3v9x0aa",
        " 42.k3v9x0aa",
        "42.k3v9x0aa ",
        "42.k3v9x0aa\n",
        "٤٢.k3v9x0aa",
        "start",
        "9223372036854775808.k3v9x0aa",
        "99999999999999999999.k3v9x0aa",
    ],
)
def test_what_str_would_not_have_written_is_refused(text: str) -> None:
    with pytest.raises(MalformedPosition):
        PositionToken.parse(text)


def test_the_position_of_this_log() -> None:
    assert PositionToken(7, "k3v9x0aa").of_log("k3v9x0aa") == 7


def test_the_position_of_another_log_is_noticed() -> None:
    with pytest.raises(LogRewound):
        PositionToken(7, "k3v9x0aa").of_log("aaaaaaaa")
