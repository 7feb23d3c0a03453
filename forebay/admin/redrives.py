"""The routes of redrives, and of the audit log."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from forebay.admin import models
from forebay.admin.parts import PartsOf, json_response, problems, require_choice, shown_job, who
from forebay.dead_letters.redrive import Options, count, create
from forebay.storage import audit
from forebay.storage.redrive_jobs import JobStore


def make_router(parts: PartsOf) -> APIRouter:
    router = APIRouter(prefix="/admin/v1")

    @router.post(
        "/redrives",
        summary="Send dead letters back to the queues that gave them up",
        description="Answered at once; the job goes on in this process, or in another if this one dies.",
        tags=["redrives"],
        status_code=202,
        response_model=models.Redrive,
        responses={
            200: {"model": models.Counted, "description": "A dry run, or there is none to send."},
            **problems(s409="A redrive over the same selection is not over."),
        },
    )
    async def begin(request: Request, asked: models.RedriveRequest) -> Response:
        which = asked.filter.which(asked.status)
        require_choice(which, asked.all)
        here = parts()
        number = await asyncio.to_thread(count, here.database, which, asked.limit)
        if asked.dry_run or not number:
            return json_response({"dry_run": asked.dry_run, "count": number})
        here.line.get()
        options = Options(
            canary=asked.canary, rate=asked.rate, limit=asked.limit,
            max_died_share=asked.max_died_share, patience=asked.patience,
        )  # fmt: skip
        job = await asyncio.to_thread(
            create, here.database, which, options, by=who(request), origin="api", owner=here.workshop.owner
        )
        here.workshop.work_on(job)
        return json_response(shown_job(job), 202, {"Location": f"/admin/v1/redrives/{job.id}"})

    @router.get(
        "/redrives",
        summary="The latest first",
        tags=["redrives"],
        response_model=models.Redrives,
        responses=problems(),
    )
    def list_(limit: Annotated[int, Query(ge=1, le=200)] = 20) -> Response:
        found = JobStore(parts().database).list(limit=limit)
        return json_response({"redrives": [shown_job(job) for job in found]})

    @router.get(
        "/redrives/{id}",
        summary="How far one is",
        tags=["redrives"],
        response_model=models.Redrive,
        responses=problems(s404="There is none."),
    )
    def show(id: UUID) -> Response:
        return json_response(shown_job(JobStore(parts().database).get(str(id))))

    @router.post(
        "/redrives/{id}/stop",
        summary="End one, whoever works on it",
        tags=["redrives"],
        response_model=models.Redrive,
        responses=problems(s404="There is none.", s409="It is over."),
    )
    def stop(request: Request, id: UUID) -> Response:
        return json_response(shown_job(JobStore(parts().database).stop(str(id), by=who(request))))

    @router.post(
        "/redrives/{id}/resume",
        summary="Go on with one that was paused or stopped, or whose process died",
        tags=["redrives"],
        status_code=202,
        response_model=models.Redrive,
        responses=problems(s404="There is none.", s409="It is done, or another process works on it."),
    )
    async def resume(request: Request, id: UUID) -> Response:
        here = parts()
        store = JobStore(here.database)
        if not here.workshop.works_on(str(id)):
            await asyncio.to_thread(store.get, str(id))
            here.line.get()
            job = await asyncio.to_thread(store.acquire, str(id), here.workshop.owner, by=who(request))
            here.workshop.work_on(job)
        else:
            job = await asyncio.to_thread(store.get, str(id))
        return json_response(shown_job(job), 202)

    @router.get(
        "/audit",
        summary="Who did what, the latest first",
        tags=["audit"],
        response_model=models.Entries,
        responses=problems(),
    )
    def entries(
        who: models.Text | None = None,
        action: models.Text | None = None,
        queue: models.Text | None = None,
        since: models.Time | None = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        cursor: UUID | None = None,
    ) -> Response:
        found = audit.entries(
            parts().database, limit=limit, who=who, action=action, queue=queue, since=since,
            before=str(cursor) if cursor else None,
        )  # fmt: skip
        more = found[-1].id if len(found) == limit else None
        return json_response({"entries": [dataclasses.asdict(e) for e in found], "next": more})

    return router
