"""One task, `store`, for `celery -A bench.rival.celery_app`; its messages in Celery's form, same body."""

from __future__ import annotations

import psycopg
from celery import Celery
from kombu import Queue

from bench.rival import BROKER, DATABASE, INSERT, PREFETCH

app = Celery("bench", broker=BROKER)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    task_default_queue="celery-bench",
    task_queues=[Queue("celery-bench", durable=True)],
    worker_prefetch_multiplier=PREFETCH,
    worker_concurrency=1,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
_kept: list[psycopg.Connection] = []


@app.task(name="store", ignore_result=True)  # type: ignore[untyped-decorator]
def store(id: str, body: str) -> None:
    if not _kept:
        _kept.append(psycopg.connect(DATABASE, autocommit=True))
    _kept[0].execute(INSERT, (id, body, body.encode()))
