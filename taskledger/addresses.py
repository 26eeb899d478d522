"""Where the embedded servers of a running `up` are, for commands given in another shell.

`up` writes DATA_DIR/up.env (0600, as the passwords beside it) once its servers answer, and removes it
when it stops; a killed one leaves addresses at which nobody answers.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from taskledger.settings import Settings

POSTGRES: Final = "TASKLEDGER__POSTGRES__DSN"
REDIS: Final = "TASKLEDGER__REDIS__URL"


def address_file(data_dir: Path) -> Path:
    return data_dir / "up.env"


def as_text(found: Mapping[str, str]) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in found.items())


def with_running_up(settings: Settings) -> Settings:
    """With the addresses of an `up` on the same data folder in place of those that are not set."""
    try:
        text = address_file(settings.data_dir).read_text(encoding="utf-8")
    except OSError:  # there is none, or it is not ours to read
        return settings
    found = dict(line.split("=", 1) for line in shlex.split(text))
    dsn, url = found.get(POSTGRES), found.get(REDIS)
    changes: dict[str, object] = {}
    if settings.postgres.dsn is None and dsn:
        changes["postgres"] = settings.postgres.model_copy(update={"dsn": SecretStr(dsn)})
    if settings.redis.url is None and url:
        changes["redis"] = settings.redis.model_copy(update={"url": SecretStr(url)})
    return settings.model_copy(update=changes)
