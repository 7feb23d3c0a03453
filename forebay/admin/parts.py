"""What the routes need, and how they answer."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from forebay.admin.problems import INVALID_REQUEST, NO_CHOICE, Refused
from forebay.admin.work import Line, Workshop
from forebay.ids import canonical
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterRecord, Position
from forebay.storage.redrive_jobs import Job

WHO = "forebay.who"
"""In a request's scope: the name of its token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What lives from the lifespan's start to its end."""

    database: Database
    line: Line
    workshop: Workshop
    queues: Sequence[str]
    """Those of the settings."""


PartsOf = Callable[[], Parts]
"""Raises while the lifespan has not started."""


def problem_response(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def problems(**by_status: str) -> dict[int | str, dict[str, Any]]:
    """For FastAPI's `responses`: s404="Not there" and the like, and what every route may answer."""
    always = {
        400: "Not valid.",
        401: "The token is missing or wrong.",
        413: "The request's body is too large.",
        422: "It does not fit what this address expects.",
        503: "The database, or the broker, cannot be used now.",
    }
    found = always | {int(name[1:]): text for name, text in by_status.items()}
    return {status: problem_response(text) for status, text in sorted(found.items())}


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


def who(request: Request) -> str:
    name: str = request.scope[WHO]
    return name


def shown_job(job: Job) -> dict[str, Any]:
    return dataclasses.asdict(job) | {"on_their_way": job.on_their_way}


def require_choice(which: DeadLetterFilter, everything: bool) -> None:
    """
    Raises:
        Refused: neither some nor all were asked for.
    """
    if not everything and not set(which.as_json()) - {"status"}:
        raise Refused(NO_CHOICE, NO_CHOICE.advice)


def cursor_after(record: DeadLetterRecord) -> str:
    place = [record.died_at.astimezone(UTC).isoformat(), record.id, record.destination]
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def position(cursor: str) -> Position:
    """
    Raises:
        Refused: it is none of ours.
    """
    try:
        at, id, destination = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        died_at, checked = datetime.fromisoformat(at).astimezone(UTC), canonical(id)
        if checked is None or not isinstance(destination, str) or "\x00" in destination:
            raise ValueError(cursor)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise Refused(INVALID_REQUEST, "cursor is not what a page before answered as “next”") from error
    return Position(died_at=died_at, id=checked, destination=destination)
