"""The Celery application and its one task, which writes its own result row."""

import os
import threading

import psycopg
from broker_url import kombu_url
from celery import Celery, Task
from psycopg.types.json import Jsonb

celery = Celery(broker=kombu_url(os.environ["REDIS_URL"]))
celery.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=int(os.environ["PREFETCH_MULTIPLIER"]),
    worker_disable_rate_limits=True,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)
_local = threading.local()


def _connection() -> psycopg.Connection:
    """Of this process and thread: opened by its first task."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ["DSN"], autocommit=True, prepare_threshold=0)
    return _local.connection


@celery.task(name="sum", bind=True)
def add(task: Task, x: int, y: int) -> None:
    _connection().execute(
        "INSERT INTO results (id, result) VALUES (%b, %b) ON CONFLICT DO NOTHING",
        (task.request.id, Jsonb({"sum": x + y})),
    )
