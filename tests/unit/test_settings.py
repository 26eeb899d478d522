"""Settings: where they come from, and the one line for each that is wrong."""

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from events.errors import ConfigurationError
from taskledger.settings import PostgresSettings, RedisSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` and no settings but the test's own."""
    monkeypatch.chdir(tmp_path)


def refusal() -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().lease_seconds == 15
    (tmp_path / ".env").write_text(
        "TASKLEDGER__LEASE_SECONDS=7\nTASKLEDGER__WORKER__CONCURRENCY=3\nOTHER=1\n"
    )
    monkeypatch.setenv("TASKLEDGER__LEASE_SECONDS", "8")
    settings = load_settings()
    assert (settings.lease_seconds, settings.worker.concurrency) == (8, 3)


def test_lists_and_sections_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLEDGER__HANDLERS", '["one", "two"]')
    monkeypatch.setenv("TASKLEDGER__EXTERNAL_KINDS", '{"resize": {"queue": "images"}}')
    settings = load_settings()
    assert settings.handlers == ("one", "two")
    assert settings.external_kinds["resize"].queue == "images"


def test_an_empty_value_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKLEDGER__POSTGRES__DSN", "")
    assert load_settings().postgres.dsn is None


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TASKLEDGER__COMMAND_API__PORT", "70000", "TASKLEDGER__COMMAND_API__PORT: "),
        ("TASKLEDGER__LEASE_SECONDS", "hunter2", "TASKLEDGER__LEASE_SECONDS: "),
        ("TASKLEDGER__LOG_FORMAT", "hunter2", "TASKLEDGER__LOG_FORMAT: "),
        ("TASKLEDGER__HANDLERS", "hunter2", "TASKLEDGER__HANDLERS: should be JSON"),
        ("TASKLEDGER__WORKER__QUEUES", "hunter2", "TASKLEDGER__WORKER"),
        ("TASKLEDGER__WORKER__QUEUES", '["Upper"]', "TASKLEDGER__WORKER__QUEUES__0: "),
        ("TASKLEDGER__WORKERS", "2", "TASKLEDGER__WORKERS: there is no such setting"),
        ("TASKLEDGER__WORKER__QUEUE", "x", "TASKLEDGER__WORKER__QUEUE: there is no such setting"),
    ],
)
def test_a_wrong_one_is_named_and_not_shown(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert refusal().startswith(told)
    assert "hunter2" not in refusal()


def test_a_misspelt_one_in_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TASKLEDGER__LEASE=7\n")
    assert refusal() == "TASKLEDGER__LEASE: there is no such setting"


def test_without_addresses_every_process_but_up_refuses_to_start() -> None:
    with pytest.raises(ConfigurationError, match="TASKLEDGER__POSTGRES__DSN is not set"):
        Settings().require_postgres()
    with pytest.raises(ConfigurationError, match="TASKLEDGER__REDIS__URL is not set"):
        Settings().require_redis()


def test_addresses_that_cannot_be_read_are_not_shown() -> None:
    broken = Settings(
        postgres=PostgresSettings(dsn=SecretStr("password hunter2")),
        redis=RedisSettings(url=SecretStr("http://:hunter2@redis")),
    )
    for require in (broken.require_postgres, broken.require_redis):
        with pytest.raises(ConfigurationError, match="TASKLEDGER__") as caught:
            require()
        assert "hunter2" not in str(caught.value)


def test_passwords_come_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p@ss/word\n")
    settings = Settings(
        postgres=PostgresSettings(dsn=SecretStr("postgresql://me@db/log"), password_file=secret),
        redis=RedisSettings(url=SecretStr("redis://redis:6379/2"), password_file=secret),
    )
    dsn = conninfo_to_dict(settings.require_postgres())
    assert (dsn["password"], dsn["user"], dsn["host"], dsn["dbname"]) == ("p@ss/word", "me", "db", "log")
    assert settings.require_redis() == "redis://:p%40ss%2Fword@redis:6379/2"
    secret.unlink()
    with pytest.raises(ConfigurationError, match="TASKLEDGER__POSTGRES__PASSWORD_FILE: cannot read"):
        settings.require_postgres()


def test_no_secret_is_shown_by_the_settings_themselves() -> None:
    settings = Settings(postgres=PostgresSettings(dsn=SecretStr("postgresql://me:hunter2@db/log")))
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()
