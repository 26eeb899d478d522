"""Lets the library make its tables, and makes the stream and its group of workers."""

import os

import tasks
from eventsourcing.persistence import InfrastructureFactory
from eventsourcing.utils import Environment
from redis import Redis

settings = tasks.environment(1)
tasks.Tasks(settings).close()
factory = InfrastructureFactory.construct(Environment(tasks.TasksProjection.name, settings))
factory.tracking_recorder(tasks.ReadTable)
factory.close()
with Redis.from_url(os.environ["REDIS_URL"]) as redis:
    redis.xgroup_create(tasks.STREAM, tasks.GROUP, id="0", mkstream=True)
