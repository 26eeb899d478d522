"""Structured logs: readable on a terminal, JSON elsewhere."""

import logging
import os
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from taskledger.settings import Settings


def configure_logging(settings: Settings, *, process: str) -> None:
    """Once per process, from its composition root. Everything goes to stderr, one event a line."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        *(_for_people() if console else _for_machines(process)),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_console() if console else _json()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(capture=True)
    _quieten_libraries()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _quieten_libraries() -> None:
    # The pool repeats each failed attempt to connect; the process says once what it waits for.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    # A line for each migration, and four for each start and stop, say nothing that we do not.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # It tells of addresses and headers, which are a webhook's and nobody else's.
    logging.getLogger("httpcore").setLevel(logging.WARNING)


def _for_people() -> list[Any]:
    """Which process it is they know, or `up` puts it before the line."""
    return [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)]


def _for_machines(process: str) -> list[Any]:
    return [
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name(process),
    ]


def _name(process: str) -> Any:
    """Not a context variable: those of the main thread are unknown to other threads."""

    def add_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("process", process)
        return event

    return add_process


def _json() -> list[Any]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]


def _console() -> list[Any]:
    colours = "NO_COLOR" not in os.environ and (sys.stderr.isatty() or "FORCE_COLOR" in os.environ)
    return [structlog.dev.ConsoleRenderer(pad_event_to=0, colors=colours)]


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
