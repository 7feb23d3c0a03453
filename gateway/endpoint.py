"""
POST /v1/queues/{queue}/messages as a bare ASGI endpoint: the one route that must be cheap.

It stands before FastAPI's router and makes no Request object, no model and no task:
what an accepted message costs is mostly the server's own work. FastAPI documents
it all the same (gateway/openapi.py). Decisions are in gateway/ingest.py.
"""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.types import Message as Event
from starlette.types import Receive, Scope, Send

from forebay.brokers.api import Broker
from forebay.brokers.naming import QUEUE_NAME, QUEUE_NAME_RULE
from forebay.errors import BrokerError
from gateway.answer import Answer
from gateway.ingest import Ingest, Ticket
from gateway.problems import (
    BODY_TIMEOUT,
    INVALID_QUEUE_NAME,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    NOT_READY,
    broker_problem,
    problem,
    queue_not_found,
)
from gateway.queues import QueueRegistry

PREFIX = "/v1/queues/"
SUFFIX = "/messages"

MIN_RATE = 1024.0
"""Bytes per second that a body must keep up on average; a trickle must not hold a place for ever."""


def matches(path: str) -> bool:
    return path.startswith(PREFIX) and path.endswith(SUFFIX) and len(path) > len(PREFIX) + len(SUFFIX)


class MessagesEndpoint:
    """One request: admit, read, accept, answer."""

    def __init__(self, ingest: Ingest, queues: QueueRegistry, broker: Broker, *, body_timeout: float) -> None:
        self._ingest = ingest
        self._queues = queues
        self._broker = broker
        self._body_timeout = body_timeout
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue = scope["path"][len(PREFIX) : -len(SUFFIX)]
        answer: Answer | None = None
        if queue not in self._queues or scope["method"] != "POST" or b"%" in scope.get("raw_path", b""):
            answer = await self._irregular(queue, scope)
        if answer is not None:
            self._ingest.refused(answer)
        else:
            admitted = self._ingest.admit(queue, scope["headers"])
            if isinstance(admitted, Ticket):
                answer = await self._take(admitted, receive)
                if answer is None:
                    return  # the client left before its body was complete
            else:
                answer = admitted
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _take(self, ticket: Ticket, receive: Receive) -> Answer | None:
        try:
            body = await self._read(ticket, receive)
        except asyncio.CancelledError:
            # The server's last resort at the end of a drain.
            return self._ingest.refuse(ticket, problem(NOT_READY, NOT_READY.advice))
        except BaseException:
            self._ingest.abandon(ticket)
            raise
        if not isinstance(body, bytes):
            return body
        outcome: asyncio.Future[Answer] = self._loop.create_future()
        self._ingest.accept(ticket, body, partial(_resolve, outcome))
        try:
            return await outcome
        except asyncio.CancelledError:
            # The same, with the message handed in: the client still gets a true word.
            return self._ingest.unknown(ticket)

    async def _read(self, ticket: Ticket, receive: Receive) -> bytes | Answer | None:
        """The whole body; or the answer that makes it pointless; None if it was cut off."""
        # Uvicorn starts us when the headers are complete, and mostly the body has come
        # with them: its `receive` belongs to an object that knows. Then no timer is
        # needed, which is all that this shortcut saves.
        if getattr(getattr(receive, "__self__", None), "more_body", True) is not False:
            return await self._read_slowly(ticket, receive)
        event = await receive()
        if event["type"] == "http.disconnect":
            self._ingest.abandon(ticket)
            return None
        body: bytes = event["body"]
        if len(body) > ticket.reserved:
            refused = self._ingest.grow(ticket, len(body))
            if refused is not None:
                return refused
        return body

    async def _read_slowly(self, ticket: Ticket, receive: Receive) -> bytes | Answer | None:
        pieces: list[bytes] = []
        size = 0
        loop = self._loop
        started = loop.time()
        try:
            async with asyncio.timeout(self._body_timeout) as limit:
                while True:
                    event: Event = await receive()
                    if event["type"] == "http.disconnect":
                        self._ingest.abandon(ticket)
                        return None
                    piece: bytes = event.get("body", b"")
                    size += len(piece)
                    refused = self._ingest.grow(ticket, size)
                    if refused is not None:
                        return refused
                    pieces.append(piece)
                    if not event.get("more_body", False):
                        return b"".join(pieces)
                    limit.reschedule(
                        min(loop.time() + self._body_timeout, started + self._body_timeout + size / MIN_RATE)
                    )
        except TimeoutError:
            return self._ingest.refuse(
                ticket,
                problem(
                    BODY_TIMEOUT,
                    f"The body stalled after {size} bytes, for longer than {self._body_timeout:g} s or slower"
                    f" than {MIN_RATE:.0f} bytes per second. Nothing was stored.",
                    headers=[(b"connection", b"close")],
                ),
            )

    async def _irregular(self, queue: str, scope: Scope) -> Answer | None:
        """What is the matter with a request that is not plainly for a declared queue; None: nothing."""
        if "/" in queue or b"%" in scope.get("raw_path", b""):
            # Queue names never need escaping; an escaped one is somebody trying doors.
            return problem(NOT_FOUND, "There is nothing at this address; queue names need no escapes.")
        if not QUEUE_NAME.fullmatch(queue):
            return problem(INVALID_QUEUE_NAME, f"A queue name is made of {QUEUE_NAME_RULE}, like: orders")
        if scope["method"] != "POST":
            return problem(
                METHOD_NOT_ALLOWED,
                "Messages are sent here with POST.",
                headers=[(b"allow", b"POST")],
            )
        if queue in self._queues:
            return None
        try:
            if await self._queues.first_use(self._broker, queue):
                return None
        except BrokerError as error:
            return broker_problem(error, queue=queue)
        return queue_not_found(queue, nearest=self._queues.nearest(queue))


def _resolve(outcome: asyncio.Future[Answer], answer: Answer) -> None:
    if not outcome.done():
        outcome.set_result(answer)
