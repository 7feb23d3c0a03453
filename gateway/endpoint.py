"""
POST /v1/queues/{queue}/messages as a bare ASGI endpoint: the one route that must be cheap.

It stands before FastAPI's router and makes no Request object, no model and no task:
what an accepted message costs is mostly the server's own work. FastAPI documents
it all the same (gateway/openapi.py). Decisions are in gateway/ingest.py.
"""

from __future__ import annotations

import asyncio
import hashlib

from starlette.types import Receive, Scope, Send

from forebay.brokers.api import Broker
from gateway import cloudevents
from gateway.answer import Answer
from gateway.bodies import BodyReader
from gateway.callers import caller_of
from gateway.entrance import Ticket
from gateway.headers import Refused
from gateway.ingest import Ingest
from gateway.queues import QueueRegistry
from gateway.shell import QUEUES, SUFFIX, hand_in, irregular
from gateway.waiting import Waiting, Wanted, after_waiting


class MessagesEndpoint:
    """One request: admit, read, accept, answer."""

    def __init__(
        self, ingest: Ingest, queues: QueueRegistry, broker: Broker, bodies: BodyReader, waiting: Waiting
    ) -> None:
        self._ingest = ingest
        self._queues = queues
        self._broker = broker
        self._read_body = bodies.read
        self._waiting = waiting

    @staticmethod
    def matches(path: str) -> bool:
        return path.startswith(QUEUES) and path.endswith(SUFFIX) and len(path) > len(QUEUES) + len(SUFFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue = scope["path"][len(QUEUES) : -len(SUFFIX)]
        caller = caller_of(scope)
        answer: Answer | None = None
        if queue not in self._queues or scope["method"] != "POST" or b"%" in scope.get("raw_path", b""):
            answer = await irregular(queue, scope, self._queues, self._broker, caller)
        if answer is not None:
            self._ingest.refused(answer, caller)
        else:
            admitted = self._ingest.admit(queue, scope["headers"], caller)
            if isinstance(admitted, Ticket):
                answer = await self._take(admitted, receive)
                if answer is None:
                    return  # the client left before its body was complete
            else:
                answer = admitted
        # As send_answer() and accepted() do it: written out, since a coroutine more is felt here.
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _take(self, ticket: Ticket, receive: Receive) -> Answer | None:
        body = await self._read_body(ticket, receive)
        if not isinstance(body, bytes):
            return body
        try:
            body, ticket.meta = cloudevents.understand(body, ticket.meta)
        except Refused as refused:
            return self._ingest.refuse(ticket, refused.answer)
        try:
            answer = await hand_in(self._ingest, ticket, body)
        except asyncio.CancelledError:
            return self._ingest.unknown(ticket)
        if ticket.meta.wait and answer.status == 202 and self._waiting.takes_more:
            return await self._waited(ticket, body, answer, ticket.meta.wait, receive)
        return answer

    async def _waited(
        self, ticket: Ticket, body: bytes, stored: Answer, seconds: float, receive: Receive
    ) -> Answer:
        keyed = ticket.meta.idempotency_key is not None
        wanted = Wanted(ticket.message.id, hashlib.sha256(body).digest() if keyed else None)
        try:
            told = await self._waiting.outcome(wanted, seconds, receive)
        except asyncio.CancelledError:
            return stored  # which is true all the same
        return after_waiting(stored, seconds, told.status if told else None)
