"""Health over HTTP of processes without an API, and the question that watchers ask."""

import socket
from pathlib import Path

import pytest

from events.errors import ConfigurationError
from taskledger.health import Health, Heartbeat, ask, health_server
from taskledger.settings import HealthSettings, Settings
from tests.e2e.debian import free_port
from tests.support import wait_until


def test_a_process_answers_for_itself() -> None:
    said = [Health()]
    with health_server(HealthSettings(port=free_port()), lambda: said[0]) as port:
        live, ready = (f"http://127.0.0.1:{port}/health/{what}" for what in ("live", "ready"))
        assert (ask(live), ask(ready), ask(f"http://127.0.0.1:{port}")) == (None, None, None)
        said[0] = Health(missing=("PostgreSQL: gone", "Redis: gone"))
        assert (ask(live), ask(ready)) == (None, "PostgreSQL: gone; Redis: gone")
        said[0] = Health(live=False)
        assert ask(live) == ask(ready) == "the main loop does not tick"
        assert ask(f"http://127.0.0.1:{port}/metrics") is None
        assert ask(f"http://127.0.0.1:{port}/elsewhere") == "HTTP 404"


def test_nobody_answers_where_no_port_is_set() -> None:
    with health_server(Settings().health, Health) as port:
        assert port is None


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = HealthSettings(port=taken.getsockname()[1])
        with (
            pytest.raises(ConfigurationError, match="TASKLEDGER__HEALTH__PORT"),
            health_server(settings, Health),
        ):
            pytest.fail("must not start")


def test_whoever_does_not_answer_is_told() -> None:
    assert "refused" in str(ask(f"http://127.0.0.1:{free_port()}"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(5)
        port = other.getsockname()[1]
        with socket.socket() as nobody:
            nobody.connect(("127.0.0.1", port))
        assert ask(f"http://127.0.0.1:{port}") is not None
    for url in ("ftp://127.0.0.1", "127.0.0.1:80", "https://example.com"):
        with pytest.raises(ConfigurationError, match="no http:// address"):
            ask(url)


def test_a_loop_that_stands_still_is_not_live() -> None:
    heartbeat = Heartbeat(silent_seconds=0.05)
    assert heartbeat.alive()
    wait_until(lambda: not heartbeat.alive(), "the silence to be noticed")
    heartbeat.tick()
    assert heartbeat.alive()


def test_answers_that_are_no_documents_are_still_answers(tmp_path: Path) -> None:
    import http.server
    import threading
    from functools import partial

    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert ask(f"http://127.0.0.1:{server.server_port}/none") == "HTTP 404"
        finally:
            server.shutdown()
            thread.join()
