"""What the gateway is compared with: the least that a FastAPI route, and an ASGI application, can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request, Response

app = FastAPI()


@app.post("/v1/queues/{queue}/messages")
async def accept(queue: str, request: Request) -> Response:
    """Read the body, store nothing, answer 202."""
    await request.body()
    return Response(status_code=202)


Event = MutableMapping[str, Any]


async def bare(
    scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
) -> None:
    """The same without a framework."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def noop(
    scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
) -> None:
    """The least that an ASGI application can do: what a request costs the server itself."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
