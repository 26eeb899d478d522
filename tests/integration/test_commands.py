"""The short commands, and the pieces that they and `up` share."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import structlog
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr
from typer.testing import CliRunner

from events.errors import ConfigurationError
from taskledger import cli
from taskledger.addresses import address_file, as_text, with_running_up
from taskledger.database import await_redis, migrate_when_reachable
from taskledger.lifecycle import EXIT_FAILED, SUPERVISOR_PID, follow_supervisor
from taskledger.settings import PostgresSettings, Settings
from taskledger.telemetry import configure_logging, get_logger

DSN = "postgresql://me:it's a secret@/log?host=/tmp/here"
URL = "unix:///tmp/here?password=x&db=1"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def test_every_command_has_a_line_of_help() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"])
    assert shown.exit_code == 0
    for command in (*cli.SIDES, "up", "migrate", "rebuild", "verify", "check", "version"):
        assert CliRunner().invoke(cli.app, [command, "--help"]).exit_code == 0
        assert command in shown.stdout


def test_version_and_check() -> None:
    assert CliRunner().invoke(cli.app, ["version"]).stdout.strip() == "0.1.0"
    checked = CliRunner().invoke(cli.app, ["check", "http://127.0.0.1:9"])
    assert checked.exit_code == EXIT_FAILED
    assert "refused" in checked.stderr


def test_migrate_verify_rebuild(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLEDGER__POSTGRES__DSN", empty_dsn)
    for command, told in [
        ("migrate", "the database is at revision"),
        ("rebuild", "generation 1 is live"),
        ("verify", ": no difference"),
    ]:
        done = CliRunner().invoke(cli.app, [command], catch_exceptions=False)
        assert done.exit_code == 0
        assert told in done.stdout


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A folder without settings, and a path that may change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return monkeypatch


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["verify"], 2, "taskledger: TASKLEDGER__POSTGRES__DSN is not set"),
        (["check", "nowhere"], 2, "taskledger: nowhere is no http:// address"),
        (["version"], 0, "0.1.0"),
        (["up", "--workers", "0"], 2, "Invalid value for '--workers'"),
    ],
)
def test_what_can_be_foreseen_ends_in_one_line(
    argv: list[str], code: int, told: str, elsewhere: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere.setattr(sys, "argv", ["taskledger", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = "".join(capsys.readouterr())
    assert (ended.value.code, "Traceback" in said) == (code, False)
    assert told in said


def test_what_cannot_be_foreseen_is_logged_with_its_trace(
    elsewhere: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    elsewhere.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == EXIT_FAILED
    assert "ZeroDivisionError" in caplog.text


def test_servers_that_do_not_answer_are_told_with_their_setting(empty_dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="TASKLEDGER__POSTGRES__DSN"):
        migrate_when_reachable("host=/nowhere", patience_seconds=0.1)
    with pytest.raises(ConfigurationError, match="TASKLEDGER__REDIS__URL"):
        await_redis("redis://127.0.0.1:9", patience_seconds=0)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("create role guest login password 'x'")
        try:
            with pytest.raises(ConfigurationError, match="cannot be migrated: permission denied"):
                migrate_when_reachable(make_conninfo(empty_dsn, user="guest", password="x"))
        finally:
            connection.execute("drop role guest")


def test_the_addresses_of_a_running_up_are_used_where_none_are_set(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert with_running_up(settings) == settings
    found = {"TASKLEDGER__POSTGRES__DSN": DSN, "TASKLEDGER__REDIS__URL": URL}
    address_file(tmp_path).write_text(as_text(found))
    completed = with_running_up(settings)
    assert completed.postgres.dsn == SecretStr(DSN)
    assert completed.redis.url == SecretStr(URL)
    given = Settings(data_dir=tmp_path, postgres=PostgresSettings(dsn=SecretStr("host=elsewhere")))
    assert with_running_up(given).postgres == given.postgres


def test_a_child_whose_supervisor_is_gone_ends_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [sys.executable, "-P", "-m", "taskledger", "version"]
    orphan = os.environ | {SUPERVISOR_PID: "1"}
    assert subprocess.run(argv, env=orphan, capture_output=True, check=False).returncode == EXIT_FAILED
    child = os.environ | {SUPERVISOR_PID: str(os.getpid())}
    assert subprocess.run(argv, env=child, capture_output=True, check=False).returncode == 0
    monkeypatch.delenv(SUPERVISOR_PID, raising=False)
    follow_supervisor()  # of a process that nobody supervises: no effect


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_event_is_a_line(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging(Settings.model_validate({"log_format": form}), process="worker")
    get_logger("ours").info("ours", task=1)
    logging.getLogger("theirs").warning("theirs %s", 2)
    lines = written.getvalue().splitlines()
    if form == "json":
        told = [json.loads(line) for line in lines]
        assert [(line["event"], line["process"]) for line in told] == [
            ("ours", "worker"),
            ("theirs 2", "worker"),
        ]
    else:
        assert [line.split("]")[1].split() for line in lines] == [["ours", "task=1"], ["theirs", "2"]]
