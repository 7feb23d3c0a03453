"""The routes of queues: how they are, pause, resume, throttle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from forebay.admin import models
from forebay.admin.parts import PartsOf, json_response, problems, shown_job, who
from forebay.admin.problems import QUEUE_NOT_FOUND, Refused
from forebay.admin.queues import known_queues, look, shown_control
from forebay.brokers.naming import QUEUE_NAME
from forebay.storage import controls
from forebay.storage.controls import Control
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore
from forebay.storage.redrive_jobs import JobStore

QueuePath = Annotated[str, Path(pattern=f"^{QUEUE_NAME.pattern}$", examples=["orders"])]


def make_router(parts: PartsOf) -> APIRouter:
    router = APIRouter(prefix="/admin/v1", tags=["queues"])

    @router.get(
        "/status",
        summary="Queues, dead letters and redrives at a glance",
        response_model=models.State,
        responses=problems(),
    )
    async def status() -> Response:
        here = parts()
        letters = await asyncio.to_thread(DeadLetterStore(here.database).by_status)
        jobs = await asyncio.to_thread(JobStore(here.database).list, limit=100, states=("running", "paused"))
        queues = await look(here.database, here.line, here.queues)
        return json_response(
            {"queues": queues, "dead_letters": letters, "redrives": [shown_job(job) for job in jobs]}
        )

    @router.get(
        "/queues",
        summary="All queues, with their controls",
        response_model=models.Queues,
        responses=problems(),
    )
    async def list_() -> Response:
        here = parts()
        return json_response({"queues": await look(here.database, here.line, here.queues)})

    def change(queue: str, act: Callable[[Database], Control]) -> Response:
        here = parts()
        known = known_queues(here.database, here.queues)
        if queue not in known and known:
            # A mistyped name must not look like a queue that is paused now.
            raise Refused(
                QUEUE_NOT_FOUND, f"There is no queue {queue!r}; there are {', '.join(known)}.", queue=queue
            )
        return json_response(shown_control(act(here.database)))

    said = problems(s404="No consumer knows this queue.")

    @router.post(
        "/queues/{queue}/pause",
        summary="Have all consumers stop taking from it, within 2 seconds",
        response_model=models.Control,
        responses=said,
    )
    def pause(request: Request, queue: QueuePath, asked: models.PauseRequest) -> Response:
        return change(queue, lambda db: controls.pause(db, queue, reason=asked.reason, by=who(request)))

    @router.post(
        "/queues/{queue}/resume",
        summary="Have all consumers go on with it",
        response_model=models.Control,
        responses=said,
    )
    def resume(request: Request, queue: QueuePath, asked: models.ResumeRequest) -> Response:
        allowance = asked.allow_dead_letters
        return change(queue, lambda db: controls.resume(db, queue, by=who(request), allowance=allowance))

    @router.post(
        "/queues/{queue}/throttle",
        summary="Messages per second and consumer process at most",
        response_model=models.Control,
        responses=said,
    )
    def throttle(request: Request, queue: QueuePath, asked: models.ThrottleRequest) -> Response:
        return change(queue, lambda db: controls.throttle(db, queue, rate=asked.rate, by=who(request)))

    return router
