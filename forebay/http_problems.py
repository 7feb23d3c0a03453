"""
Problem documents (RFC 9457), as every HTTP side of Forebay answers them.

Each side has a table of its own kinds. Our own trouble is a 5xx with Retry-After, never a 4xx:
a client library that gives up on 4xx must not drop a message because of us.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

import orjson
from starlette.responses import Response
from starlette.types import Send

CONTENT_TYPE = "application/problem+json"

RawHeaders = list[tuple[bytes, bytes]]
"""Header pairs as ASGI has them: lower-case names, bytes."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """A whole response. Content-Length is among the headers; the names are lower-case."""

    status: int
    headers: RawHeaders
    body: bytes
    problem: str = ""
    """The problem's name, for metrics; empty if it is none."""


async def send_answer(answer: Answer, send: Send) -> None:
    """Answer an ASGI request with it."""
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body})


def to_response(answer: Answer) -> Response:
    """The same for a route of FastAPI."""
    response = Response(answer.body, answer.status)
    response.raw_headers = list(answer.headers)
    return response


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One sort of problem: what stays the same each time it happens."""

    name: str
    status: int
    title: str
    advice: str
    """For the page: what it means and what to do about it."""
    retryable: bool = False
    """The same request may work later."""

    @property
    def type(self) -> str:
        return f"/problems/{self.name}"


def retry_after() -> int:
    """Seconds to wait, spread so that the clients of one failure do not all come back at once."""
    return random.randint(1, 3)


def problem(
    kind: Kind,
    detail: str,
    *,
    status: int | None = None,
    title: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
    wait: float | None = None,
    **members: object,
) -> Answer:
    """
    The answer for one problem; `members` are added to the document, None left out.

    `status` and `title` replace the kind's only for what frameworks make by themselves. `wait` is
    after how many seconds the request can work, where that is known.
    """
    code = status or kind.status
    document: dict[str, object] = {
        "type": kind.type,
        "title": title or kind.title,
        "status": code,
        "detail": detail,
        "retryable": kind.retryable,
    }
    document |= {name: value for name, value in members.items() if value is not None}
    body = orjson.dumps(document)
    fields = [
        (b"content-type", CONTENT_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    # A 404 that may become something else asks to wait too.
    if wait is not None:
        fields.append((b"retry-after", str(max(1, math.ceil(wait))).encode()))
    elif code in (429, 503) or (code == 404 and kind.retryable):
        fields.append((b"retry-after", str(retry_after()).encode()))
    return Answer(status=code, headers=fields, body=body, problem=kind.name)
