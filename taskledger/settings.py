"""Every setting of every process: `TASKLEDGER__…` in the environment, or in `.env`.

A wrong one stops the process at start with one line that names it, and never its value.
"""

import os
import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import make_conninfo
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from events.errors import ConfigurationError

PREFIX: Final = "TASKLEDGER__"
ENV_FILE: Final = ".env"
SHORTEST_SECRET: Final = 32
"""Characters: 128 bits, where they are hexadecimal digits."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PostgresSettings(_Section):
    dsn: SecretStr | None = None
    """libpq URI or keywords. None: `up` starts an embedded server; other processes refuse to start."""
    password_file: Path | None = None
    """Holds the password, where it is not to be in the environment (a mounted secret)."""
    pool_size: int = Field(default=8, ge=1, le=200)
    """Connections a process keeps for reads; appends have one of their own."""


class RedisSettings(_Section):
    url: SecretStr | None = None
    """redis://, rediss:// or unix://. None: as for PostgreSQL."""
    password_file: Path | None = None
    """As for PostgreSQL."""


class CommandApiSettings(_Section):
    host: str = "127.0.0.1"
    port: Port = 8000
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    max_batch_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    max_batch_tasks: int = Field(default=10_000, ge=1, le=10_000)


class QueryApiSettings(_Section):
    host: str = "127.0.0.1"
    port: Port = 8001
    public_url: str | None = None
    """What clients reach it by; the command API's Location headers begin with it."""
    cursor_secret: SecretStr | None = None
    """Signs list cursors. None: derived from the log's tag, which is enough on one trusted network."""
    max_streams: int = Field(default=1000, ge=0, le=100_000)
    """Live event streams of one process; never more than half of HTTP__MAX_CONNECTIONS."""
    heartbeat_seconds: float = Field(default=15.0, ge=0.1, le=300)
    """How long an event stream is silent before it gives a sign of life, with its position."""

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class HttpSettings(_Section):
    """Of both APIs."""

    drain_seconds: float = Field(default=1.0, ge=0, le=300)
    """How long a process that was told to stop serves on, not ready, before it refuses connections."""
    max_connections: int = Field(default=2000, ge=8, le=100_000)
    max_body_bytes_in_memory: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Of all requests under way; what comes beyond is refused (429)."""


class WorkerSettings(_Section):
    queues: tuple[Name, ...] = ("default",)
    concurrency: int = Field(default=100, ge=1, le=1000)
    drain_seconds: float = Field(default=10.0, gt=0)
    """How long a stopping worker waits for running handlers before it hands them back."""
    name: str = Field(default_factory=socket.gethostname)


class WebhookSettings(_Section):
    secret: SecretStr | None = None
    """From which each webhook's own is derived. None: there are no webhooks."""
    secret_file: Path | None = None
    previous_secret: SecretStr | None = None
    """The one before, while it is exchanged: everything is signed with both."""
    previous_secret_file: Path | None = None
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """That are not public and yet may be sent to, at any port, by plain http, too."""
    allowed_ports: tuple[Port, ...] = (443, 8443)
    """Of public addresses."""
    ca_file: Path | None = None
    """Certificates of authorities that are trusted beside the usual ones."""
    concurrency: int = Field(default=8, ge=1, le=64)
    """Requests under way to one webhook's endpoint."""
    timeout_seconds: float = Field(default=15.0, gt=0, le=60)
    """Of one request, from the look-up of its host to its status line."""
    max_attempts: int = Field(default=20, ge=1, le=100)
    retry_base_seconds: float = Field(default=5.0, gt=0)
    retry_cap_seconds: float = Field(default=6 * 3600.0, gt=0)
    disable_after_hours: float = Field(default=120.0, gt=0)
    """Of failures without a success."""
    max_result_bytes: int = Field(default=64 * 1024, ge=0, le=1024 * 1024)


class HealthSettings(_Section):
    """Of the processes that have no API: dispatcher, worker, projector, webhooks, sealer."""

    host: str = "127.0.0.1"
    port: Port = 0
    """0: none. `up` needs none; two processes on one machine need two."""


class ProofSettings(_Section):
    """Of the tree over the log."""

    signing_key_file: Path | None = None
    """Holds the Ed25519 key (PEM) that signs its heads. None: `up` makes one in the data folder; without
    one, heads are not signed."""


class EncryptionSettings(_Section):
    master_key_file: Path | None = None
    """Holds the master key. None: nothing is encrypted, and no subject can be erased."""
    previous_master_key_file: Path | None = None
    """Of the master key before, until `taskledger keys rewrap` has run."""


class ExternalKind(_Section):
    queue: Name = "default"
    payload_schema: dict[str, Any] | None = None
    """JSON Schema that payloads are held against, if given."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    postgres: PostgresSettings = PostgresSettings()
    redis: RedisSettings = RedisSettings()
    command_api: CommandApiSettings = CommandApiSettings()
    query_api: QueryApiSettings = QueryApiSettings()
    http: HttpSettings = HttpSettings()
    worker: WorkerSettings = WorkerSettings()
    health: HealthSettings = HealthSettings()
    webhooks: WebhookSettings = WebhookSettings()
    proof: ProofSettings = ProofSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    handlers: tuple[str, ...] = ("examples.handlers",)
    """Modules whose import registers kinds; workers and both APIs load them."""
    external_kinds: dict[Name, ExternalKind] = {}
    """Kinds whose workers claim over HTTP."""
    projections: tuple[Annotated[str, Field(pattern=r"^[\w.]+:\w+$")], ...] = ()
    """`module:NAME` of what the projector keeps beside the read tables."""
    lease_seconds: float = Field(default=15.0, ge=0.5)
    data_dir: Path = Path(".taskledger")
    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: readable on a terminal, JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def require_postgres(self) -> str:
        """Raises ConfigurationError if there is no DSN, or none that libpq can read."""
        if self.postgres.dsn is None:
            raise ConfigurationError(
                f"{PREFIX}POSTGRES__DSN is not set (only `taskledger up` brings its own server)"
            )
        password = secret_of(f"{PREFIX}POSTGRES__PASSWORD_FILE", self.postgres.password_file)
        try:
            return make_conninfo(self.postgres.dsn.get_secret_value(), password=password)
        except psycopg.ProgrammingError:
            raise ConfigurationError(
                f"{PREFIX}POSTGRES__DSN is neither a postgresql:// URI nor a list of libpq keywords"
            ) from None

    def require_redis(self) -> str:
        """Raises ConfigurationError if there is no URL, or none of a scheme we know."""
        if self.redis.url is None:
            raise ConfigurationError(
                f"{PREFIX}REDIS__URL is not set (only `taskledger up` brings its own server)"
            )
        password = secret_of(f"{PREFIX}REDIS__PASSWORD_FILE", self.redis.password_file)
        return _redis_url(self.redis.url.get_secret_value(), password)

    def webhook_secrets(self) -> tuple[bytes, ...]:
        """The present one and, while it is exchanged, the one before; empty where there is none. Raises
        ConfigurationError for a file that cannot be read, or a secret that can be guessed."""
        hooks = self.webhooks
        given = (
            ("SECRET", hooks.secret, hooks.secret_file),
            ("PREVIOUS_SECRET", hooks.previous_secret, hooks.previous_secret_file),
        )
        found: list[bytes] = []
        for name, value, file in given:
            setting = f"{PREFIX}WEBHOOKS__{name}"
            text = secret_of(f"{setting}_FILE", file) or (value.get_secret_value() if value else None)
            if text is None:
                continue
            if len(text) < SHORTEST_SECRET:
                raise ConfigurationError(f"{setting}: should be {SHORTEST_SECRET} characters or more")
            found.append(text.encode())
        if found and hooks.secret is None and hooks.secret_file is None:
            raise ConfigurationError(f"{PREFIX}WEBHOOKS__PREVIOUS_SECRET wants one that follows it")
        return tuple(found)


def load_settings() -> Settings:
    """Raises ConfigurationError with one line that names the wrong setting and never its value."""
    _refuse_unknown(os.environ)
    _refuse_unknown(dotenv_values(ENV_FILE, interpolate=False))
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = PREFIX + "__".join(str(part) for part in first["loc"]).upper()
        raise ConfigurationError(f"{name}: {_MESSAGES.get(first['type'], first['msg'])}") from None
    except SettingsError as error:  # a list or section that is not JSON
        field = re.search(r'field "(\w+)"', str(error))
        name = PREFIX + (field[1].upper() if field else "…")
        raise ConfigurationError(f'{name}: should be JSON, as in ["default"]') from None


_MESSAGES: Final = {"extra_forbidden": "there is no such setting"}


def _refuse_unknown(names: Iterable[str]) -> None:
    """pydantic-settings passes over names that it does not know; a misspelt setting would go unnoticed."""
    for name in names:
        section = name.upper().removeprefix(PREFIX).partition("__")[0].lower()
        if name.upper().startswith(PREFIX) and section not in Settings.model_fields:
            raise ConfigurationError(f"{name.upper()}: there is no such setting")


def secret_of(setting: str, file: Path | None) -> str | None:
    """What the file holds. Raises ConfigurationError with the setting's name."""
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"{setting}: cannot read {file}: {reason}") from None


def _redis_url(url: str, password: str | None) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ConfigurationError(f"{PREFIX}REDIS__URL should begin with redis://, rediss:// or unix://")
    if password is None:
        return url
    user, _, address = parts.netloc.rpartition("@")
    user = user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{address}"))
