"""
POST /v1/queues/{queue}/messages as a bare ASGI endpoint: the one route that must be cheap.

It stands before FastAPI's router and makes no Request object, no model and no task:
what an accepted message costs is mostly the server's own work. FastAPI documents
it all the same (gateway/openapi.py). Decisions are in gateway/ingest.py.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial

from starlette.types import Receive, Scope, Send

from forebay.brokers.api import Broker
from forebay.brokers.naming import QUEUE_NAME, QUEUE_NAME_RULE
from forebay.errors import BrokerError
from gateway import cloudevents
from gateway.answer import Answer
from gateway.bodies import BodyReader
from gateway.callers import Caller, caller_of
from gateway.headers import Refused
from gateway.ingest import Ingest, Ticket
from gateway.permits import barred
from gateway.problems import (
    INVALID_QUEUE_NAME,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    broker_problem,
    problem,
    queue_not_found,
)
from gateway.queues import QueueRegistry
from gateway.waiting import Waiting, Wanted, after_waiting

PREFIX = "/v1/queues/"
SUFFIX = "/messages"


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
        self._loop = asyncio.get_running_loop()

    @staticmethod
    def matches(path: str) -> bool:
        return path.startswith(PREFIX) and path.endswith(SUFFIX) and len(path) > len(PREFIX) + len(SUFFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue = scope["path"][len(PREFIX) : -len(SUFFIX)]
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
        outcome: asyncio.Future[Answer] = self._loop.create_future()
        self._ingest.accept(ticket, body, partial(_resolve, outcome))
        try:
            answer = await outcome
        except asyncio.CancelledError:
            # The same, with the message handed in: the client still gets a true word.
            return self._ingest.unknown(ticket)
        if ticket.meta.wait and answer.status == 202 and self._waiting.takes_more:
            return await self._waited(ticket, body, answer, ticket.meta.wait, receive)
        return answer

    async def _waited(
        self, ticket: Ticket, body: bytes, accepted: Answer, seconds: float, receive: Receive
    ) -> Answer:
        keyed = ticket.meta.idempotency_key is not None
        wanted = Wanted(ticket.message.id, hashlib.sha256(body).digest() if keyed else None)
        try:
            told = await self._waiting.outcome(wanted, seconds, receive)
        except asyncio.CancelledError:
            return accepted  # which is true all the same
        return after_waiting(accepted, seconds, told.status if told else None)


def _resolve(outcome: asyncio.Future[Answer], answer: Answer) -> None:
    if not outcome.done():
        outcome.set_result(answer)


async def irregular(
    queue: str, scope: Scope, queues: QueueRegistry, broker: Broker, caller: Caller
) -> Answer | None:
    """What is the matter with a request that is not plainly for a declared queue; None: nothing."""
    if "/" in queue or b"%" in scope.get("raw_path", b""):
        # Queue names never need escaping; an escaped one is somebody trying doors.
        return problem(NOT_FOUND, "There is nothing at this address; queue names need no escapes.")
    if not QUEUE_NAME.fullmatch(queue):
        return problem(INVALID_QUEUE_NAME, f"A queue name is made of {QUEUE_NAME_RULE}, like: orders")
    if (forbidden := barred(caller, queue)) is not None:
        return forbidden
    if scope["method"] != "POST":
        return problem(
            METHOD_NOT_ALLOWED,
            "Messages are sent here with POST.",
            headers=[(b"allow", b"POST")],
        )
    if queue in queues:
        return None
    try:
        if await queues.first_use(broker, queue):
            return None
    except BrokerError as error:
        return broker_problem(error, queue=queue)
    return queue_not_found(queue, nearest=queues.nearest(queue, caller.may_use))
