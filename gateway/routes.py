"""The routes that FastAPI serves: everything that need not be as cheap as sending a message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Header, Path, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from pydantic import BaseModel
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from forebay.brokers.api import Broker, Durability
from forebay.brokers.naming import QUEUE_NAME, QUEUE_NAME_RULE
from forebay.errors import BrokerError
from forebay.http_problems import to_response
from gateway import pages
from gateway.asking import Questions
from gateway.callers import caller_of
from gateway.depths import queue_depths
from gateway.health import Check, Health
from gateway.ingest import Ingest
from gateway.keyring import Keyring
from gateway.metrics import GatewayMetrics, render
from gateway.openapi_parts import RETRY_AFTER, problem_responses
from gateway.permits import barred
from gateway.problems import (
    INVALID_QUEUE_NAME,
    KINDS,
    NOT_FOUND,
    broker_problem,
    problem,
    queue_not_found,
    retry_after,
)
from gateway.queues import QueueRegistry
from gateway.status import StatusLookup
from gateway.waiting import Waiting


class Endpoint(Protocol):
    """A route that stands before FastAPI's router, as bare ASGI; the first that matches a path has it."""

    def matches(self, path: str) -> bool: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What lives from the lifespan's start to its end."""

    broker: Broker
    endpoints: Sequence[Endpoint]
    health: Health
    ingest: Ingest
    keyring: Keyring
    questions: Questions
    status: StatusLookup
    waiting: Waiting


class QueueDepth(BaseModel):
    """
    What the broker cannot tell is what its consumers last reported, `reported_age` seconds ago; what is
    not known at all is null, and `unknown` says why.
    """

    name: str
    waiting: int | None
    scheduled: int | None
    in_hand: int | None
    dead: int | None
    bytes: int | None
    oldest_age: float | None
    reported: list[str]
    reported_age: float | None
    unknown: str


class QueueList(BaseModel):
    queues: list[QueueDepth]


class MessageEvent(BaseModel):
    """One step of a message's life; members that do not apply are left out."""

    state: str
    at: datetime
    durability: Durability | None = None
    attempt: int | None = None
    reason: str | None = None
    destination: str | None = None


class ServiceAnswer(BaseModel):
    """What a service answered to a forwarded request; its body is at `href`, if it is complete."""

    status: int
    headers: dict[str, str]
    complete: bool
    answered_at: datetime
    href: str


class MessageState(BaseModel):
    """What is known; members that do not apply are left out."""

    id: str
    state: Literal["accepted", "journaled", "waiting", "stored", "done", "dead", "discarded"]
    queue: str | None = None
    durability: Durability | None = None
    destination: str | None = None
    accepted_at: datetime | None = None
    stored_at: datetime | None = None
    attempts: int | None = None
    reason: str | None = None
    died_at: datetime | None = None
    original_id: str | None = None
    conflicts: list[str] | None = None
    digest: str | None = None
    answer: ServiceAnswer | None = None
    timeline: list[MessageEvent]


def make_router(
    parts: Callable[[], Parts], queues: QueueRegistry, metrics: GatewayMetrics, registry: CollectorRegistry
) -> APIRouter:
    """`parts` raises while the lifespan has not started; all routes but /livez need it."""
    router = APIRouter()

    @router.get(
        "/v1/queues",
        response_model=QueueList,
        tags=["queues"],
        summary="All queues that the caller may use, with how much each holds",
        responses=problem_responses(s503="The broker cannot be reached."),
    )
    async def list_queues(request: Request) -> Response:
        mine = [name for name in queues.names if caller_of(request.scope).may_use(name)]
        try:
            depths = await queue_depths(parts().broker, parts().questions, mine)
        except BrokerError as error:
            return to_response(broker_problem(error))
        return JSONResponse({"queues": depths})

    @router.get(
        "/v1/queues/{queue}",
        response_model=QueueDepth,
        tags=["queues"],
        summary="How much one queue holds",
        responses=problem_responses(
            s400="No queue can have this name.",
            s404="The queue is not declared.",
            s503="The broker cannot be reached.",
        ),
    )
    async def show_queue(
        request: Request,
        queue: Annotated[
            str, Path(examples=["orders"], json_schema_extra={"pattern": f"^{QUEUE_NAME.pattern}$"})
        ],
    ) -> Response:
        caller = caller_of(request.scope)
        if not QUEUE_NAME.fullmatch(queue):
            return to_response(problem(INVALID_QUEUE_NAME, f"A queue name is made of {QUEUE_NAME_RULE}"))
        if (forbidden := barred(caller, queue)) is not None:
            return to_response(parts().ingest.refused(forbidden, caller))
        if queue not in queues:
            nearest = queues.nearest(queue, caller.may_use)
            return to_response(
                queue_not_found(queue, nearest=nearest, made_by_first_use=queues.declare_on_first_use)
            )
        try:
            (depth,) = await queue_depths(parts().broker, parts().questions, [queue])
            return JSONResponse(depth)
        except BrokerError as error:
            return to_response(broker_problem(error, queue=queue))

    @router.get(
        "/v1/messages/{message_id}",
        response_model=MessageState,
        tags=["messages"],
        summary="What became of a message",
        responses=problem_responses(
            s400="Not a message id, or a preference that cannot be read.",
            s404="Nothing is known of it yet.",
            s503="The database cannot be asked.",
        ),
    )
    async def show_message(
        message_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})],
        request: Request,
        prefer: Annotated[
            str | None,
            Header(
                description="wait=N: answer when nothing more will happen, within N seconds (at most 30).",
                examples=["wait=10"],
            ),
        ] = None,
    ) -> Response:
        caller, headers = caller_of(request.scope), request.scope["headers"]
        return to_response(await parts().status.answer(message_id, headers, request.receive, caller))

    @router.get("/v1/messages/{message_id}/answer", include_in_schema=False)
    async def show_answer(message_id: str, request: Request) -> Response:
        return to_response(await parts().status.kept_answer(message_id, caller_of(request.scope)))

    @router.get("/livez", tags=["health"], summary="The process answers")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        tags=["health"],
        summary="Messages can be accepted durably",
        responses={
            503: {
                "description": "They cannot; `?verbose` says why.",
                "content": {"application/json": {"schema": {"type": "object"}}},
                "headers": {"Retry-After": RETRY_AFTER},
            }
        },
    )
    async def readyz(
        verbose: Annotated[str | None, Query(description="Present: list every check.")] = None,
    ) -> Response:
        checks = await parts().health.checks()
        ready = all(check.ok for check in checks)
        metrics.ready.set(ready)
        document: dict[str, Any] = {"status": "ready" if ready else "not ready"}
        if verbose is not None:
            document["checks"] = [_shown(check) for check in checks]
        headers = {} if ready else {"retry-after": str(retry_after())}
        return JSONResponse(document, 200 if ready else 503, headers)

    @router.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        text = await asyncio.to_thread(render, registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return pages.docs_page()

    @router.get("/problems", include_in_schema=False)
    async def problems() -> HTMLResponse:
        return HTMLResponse(pages.problems_page())

    @router.get("/problems/{name}", include_in_schema=False)
    async def show_problem(name: str) -> Response:
        if name not in KINDS:
            return to_response(problem(NOT_FOUND, "There is no such problem; /problems lists them."))
        return HTMLResponse(pages.problem_page(KINDS[name]))

    return router


def _shown(check: Check) -> dict[str, Any]:
    age = None if check.age is None else round(check.age, 3)
    return {"name": check.name, "ok": check.ok, "detail": check.detail, "age": age}
