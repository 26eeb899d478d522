"""Ports of `up`: had before anything starts, or named in one line."""

import socket

import pytest

from events.errors import ConfigurationError
from taskledger.ports import choose_ports, url
from taskledger.settings import CommandApiSettings, QueryApiSettings, Settings


def settings(command: CommandApiSettings, query: QueryApiSettings | None = None) -> Settings:
    return Settings(command_api=command, query_api=query or QueryApiSettings(port=0))


def test_zero_is_any_free_port_and_another_for_each() -> None:
    chosen = choose_ports(settings(CommandApiSettings(port=0)))
    assert chosen["COMMAND_API"] != chosen["QUERY_API"]
    assert min(chosen.values()) > 1023
    again = settings(CommandApiSettings(port=chosen["COMMAND_API"]))
    assert choose_ports(again)["COMMAND_API"] == chosen["COMMAND_API"]


@pytest.mark.parametrize(
    ("host", "told"),
    [("192.0.2.1", "TASKLEDGER__COMMAND_API__HOST"), ("no host", "TASKLEDGER__COMMAND_API__HOST")],
)
def test_an_address_that_is_not_ours_names_the_setting(host: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        choose_ports(settings(CommandApiSettings(host=host, port=0)))


def test_a_port_that_is_taken_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f":{port}: something else listens there"):
            choose_ports(settings(CommandApiSettings(port=0), QueryApiSettings(port=port)))


def test_an_address_is_written_as_a_client_needs_it() -> None:
    assert url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url("::", 80) == "http://[::1]:80"
    assert url("tasks.example", 80) == "http://tasks.example:80"
