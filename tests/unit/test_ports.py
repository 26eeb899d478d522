"""Ports of `up`: had before anything starts, or named in one line."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from events.errors import ConfigurationError
from taskledger.ports import choose_ports, url
from taskledger.settings import CommandApiSettings, QueryApiSettings, Settings


def settings(command: CommandApiSettings, query: QueryApiSettings | None = None) -> Settings:
    return Settings(command_api=command, query_api=query or QueryApiSettings(port=0))


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_zero_is_any_free_port_and_another_for_each(held: ExitStack) -> None:
    chosen = choose_ports(settings(CommandApiSettings(port=0)), held)
    assert chosen["COMMAND_API"] != chosen["QUERY_API"]
    assert min(chosen.values()) > 1023


def test_a_port_stays_ours_for_the_process_that_is_to_listen_there(held: ExitStack) -> None:
    port = choose_ports(settings(CommandApiSettings(port=0)), held)["COMMAND_API"]
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    for _ in range(2):  # the process, and the one that replaces it
        with socket.create_server(("127.0.0.1", port)) as listening:
            socket.create_connection(("127.0.0.1", port)).close()
            listening.accept()[0].close()
    held.close()
    again = settings(CommandApiSettings(port=port))
    assert choose_ports(again, held)["COMMAND_API"] == port


def test_one_port_is_not_enough_for_both(held: ExitStack) -> None:
    port = choose_ports(settings(CommandApiSettings(port=0)), held)["COMMAND_API"]
    with pytest.raises(ConfigurationError, match="TASKLEDGER__QUERY_API__PORT"):
        choose_ports(settings(CommandApiSettings(port=port), QueryApiSettings(port=port)), held)


@pytest.mark.parametrize(
    ("host", "told"),
    [("192.0.2.1", "TASKLEDGER__COMMAND_API__HOST"), ("no host", "TASKLEDGER__COMMAND_API__HOST")],
)
def test_an_address_that_is_not_ours_names_the_setting(host: str, told: str, held: ExitStack) -> None:
    with pytest.raises(ConfigurationError, match=told):
        choose_ports(settings(CommandApiSettings(host=host, port=0)), held)


def test_a_port_that_is_taken_names_the_setting(held: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f":{port}: something else listens there"):
            choose_ports(settings(CommandApiSettings(port=0), QueryApiSettings(port=port)), held)


def test_an_address_is_written_as_a_client_needs_it() -> None:
    assert url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url("::", 80) == "http://[::1]:80"
    assert url("tasks.example", 80) == "http://tasks.example:80"
