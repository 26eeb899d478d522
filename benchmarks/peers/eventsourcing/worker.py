"""Threads that take ids from the stream; each task is loaded, and saved as started and as completed."""

import os
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import tasks
from redis import Redis

THREADS = int(os.environ["WORKER_THREADS"])
READ = int(os.environ["READ"])


def perform(application: tasks.Tasks, task_id: UUID) -> None:
    task: tasks.Task = application.repository.get(task_id)
    task.start()
    application.save(task)
    task.complete(task.x + task.y)
    application.save(task)


def work(application: tasks.Tasks, redis: Redis) -> None:
    name = uuid4().hex
    while True:
        found = redis.xreadgroup(tasks.GROUP, name, {tasks.STREAM: ">"}, count=READ, block=1_000)
        for _, entries in found:
            for entry, fields in entries:
                perform(application, UUID(bytes=fields[b"id"]))
                redis.xack(tasks.STREAM, tasks.GROUP, entry)


def main() -> None:
    application = tasks.Tasks(tasks.environment(THREADS))
    with Redis.from_url(os.environ["REDIS_URL"]) as redis, ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(work, application, redis) for _ in range(THREADS)]:
            done.result()


main()
