"""The routes of dead letters: read, export, edit, discard."""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from forebay.admin import models
from forebay.admin.parts import (
    PartsOf,
    cursor_after,
    json_response,
    position,
    problems,
    require_choice,
    who,
)
from forebay.admin.problems import DEAD_LETTER_NOT_FOUND, INVALID_REQUEST, Refused
from forebay.dead_letters import editing
from forebay.dead_letters.discarding import discard
from forebay.dead_letters.records import as_json, export
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterRecord, DeadLetterStore

MOST = 500
"""Dead letters of one page, without their bodies."""

StatusQuery = Annotated[models.Status | None, Query(description="Of any status if left out.")]
IdsQuery = Annotated[list[UUID] | None, Query(alias="id", description="Repeatable.", max_length=100)]


def filter_of(
    queue: models.Text | None = None,
    error_class: models.Text | None = None,
    group: models.Text | None = None,
    key: models.Text | None = None,
    text: models.Text | None = None,
    since: models.Time | None = None,
    before: models.Time | None = None,
    id: IdsQuery = None,
    status: StatusQuery = None,
) -> DeadLetterFilter:
    chosen = models.Filter(
        queue=queue, error_class=error_class, group=group, key=key, text=text, since=since,
        before=before, ids=id,
    )  # fmt: skip
    return chosen.which(status)


FilterQuery = Annotated[DeadLetterFilter, Depends(filter_of)]

_LINES: dict[str, Any] = {
    "description": "One line each.",
    "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
}
_BYTES: dict[str, Any] = {
    "description": "The body.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


def make_router(parts: PartsOf) -> APIRouter:
    router = APIRouter(prefix="/admin/v1/dead-letters", tags=["dead letters"])

    @router.get("", summary="The latest first", response_model=models.DeadLetterPage, responses=problems())
    def list_(
        which: FilterQuery,
        limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
        cursor: Annotated[str | None, Query(max_length=1_000)] = None,
    ) -> Response:
        after = position(cursor) if cursor else None
        found = DeadLetterStore(parts().database).list(which, limit=limit, after=after, newest_first=True)
        more = cursor_after(found[-1]) if len(found) == limit else None
        return json_response({"dead_letters": [as_json(r, body=False) for r in found], "next": more})

    @router.get("/groups", summary="One per cause", response_model=models.Groups, responses=problems())
    def groups(which: FilterQuery) -> Response:
        found = DeadLetterStore(parts().database).groups(which)
        return json_response({"groups": [dataclasses.asdict(group) for group in found]})

    @router.get(
        "/export",
        summary="All that match as NDJSON, whole, the oldest first",
        response_class=Response,
        responses={200: _LINES, **problems()},
    )
    def export_(which: FilterQuery) -> Response:
        store = DeadLetterStore(parts().database)
        store.count(dataclasses.replace(which, ids=()))  # A database that is away is a 503, not half a file.
        return StreamingResponse(export(store, which), media_type="application/x-ndjson")

    @router.get(
        "/{id}",
        summary="One, whole: a record per destination",
        response_model=models.DeadLetters,
        responses=problems(s404="There is none."),
    )
    def show(id: UUID) -> Response:
        return json_response({"dead_letters": [as_json(r, body=True) for r in _get(parts, id)]})

    @router.get(
        "/{id}/body",
        summary="Its exact bytes",
        response_class=Response,
        responses={
            200: _BYTES,
            **problems(s404="There is none.", s409="Several have this id, and other bodies."),
        },
    )
    def body(id: UUID, destination: models.Text | None = None) -> Response:
        _get(parts, id)
        record = editing.one(parts().database, str(id), destination)
        # Never as what its sender called it: a browser must not run what a producer posted.
        safe = {
            "Content-Disposition": f'attachment; filename="{record.id}"',
            "X-Content-Type-Options": "nosniff",
        }
        return Response(record.body, 200, safe, "application/octet-stream")

    @router.post(
        "/discard",
        summary="Give dead letters up for good",
        response_model=models.Counted,
        responses=problems(),
    )
    def discard_(request: Request, asked: models.DiscardRequest) -> Response:
        which = asked.filter.which("dead")
        require_choice(which, asked.all)
        database = parts().database
        if asked.dry_run:
            return json_response({"dry_run": True, "count": DeadLetterStore(database).count(which)})
        count = discard(database, which, by=who(request), reason=asked.reason)
        return json_response({"dry_run": False, "count": count})

    @router.post(
        "/{id}/edit",
        summary="Repair a body and send it as a new message",
        response_model=models.Edited,
        responses=problems(s404="There is none.", s409="It cannot be edited like this."),
    )
    async def edit(request: Request, id: UUID, asked: models.EditRequest) -> Response:
        database = parts().database
        await asyncio.to_thread(_get, parts, id)
        record = await asyncio.to_thread(editing.one, database, str(id), asked.destination)
        planned = editing.plan(record, _new_body(record, asked))
        value = {"dry_run": asked.dry_run, "id": record.id, "new_id": planned.new_id, "diff": planned.diff}
        if not asked.dry_run:
            await editing.send(database, parts().line.get(), planned, by=who(request))
        return json_response(value)

    return router


def _get(parts: PartsOf, id: UUID) -> list[DeadLetterRecord]:
    found = DeadLetterStore(parts().database).get(str(id))
    if not found:
        raise Refused(DEAD_LETTER_NOT_FOUND, f"No dead letter {id}. {DEAD_LETTER_NOT_FOUND.advice}")
    return found


def _new_body(record: DeadLetterRecord, asked: models.EditRequest) -> bytes:
    given = [x for x in (asked.body, asked.body_base64, asked.set) if x is not None]
    if len(given) != 1:
        raise Refused(INVALID_REQUEST, "give exactly one of “body”, “body_base64” and “set”")
    if asked.set is not None:
        return editing.with_values(record.body, [(s.pointer, s.value) for s in asked.set])
    try:
        if asked.body_base64 is not None:
            return base64.b64decode(asked.body_base64, validate=True)
        return (asked.body or "").encode()
    except (binascii.Error, ValueError) as error:
        raise Refused(INVALID_REQUEST, "the new body is neither UTF-8 text nor base64") from error
