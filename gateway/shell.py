"""What the bare ASGI endpoints, those that stand before FastAPI's router, have in common."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.types import Scope

from forebay.brokers.api import Broker
from forebay.brokers.naming import QUEUE_NAME, QUEUE_NAME_RULE
from forebay.errors import BrokerError
from gateway.answer import Answer
from gateway.callers import Caller
from gateway.entrance import Ticket
from gateway.ingest import Ingest
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

QUEUES = "/v1/queues/"
"""Where the addresses of queues begin."""

SUFFIX = "/messages"
"""How the address for one message ends."""


def hand_in(ingest: Ingest, ticket: Ticket, body: bytes) -> asyncio.Future[Answer]:
    """Hand the message in: what has become of it is known later."""
    outcome: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    ingest.accept(ticket, body, partial(_resolve, outcome))
    return outcome


async def accepted(ingest: Ingest, ticket: Ticket, body: bytes) -> Answer:
    """Hand the message in and wait for its outcome; also when the server stops us meanwhile, a true word."""
    try:
        return await hand_in(ingest, ticket, body)
    except asyncio.CancelledError:
        return ingest.unknown(ticket)


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
    return await undeclared(queue, queues, broker, caller)


async def undeclared(queue: str, queues: QueueRegistry, broker: Broker, caller: Caller) -> Answer | None:
    """The answer for a queue that is not declared, unless its first message may do that; None: it is."""
    if queue in queues:
        return None
    try:
        if await queues.first_use(broker, queue):
            return None
    except BrokerError as error:
        return broker_problem(error, queue=queue)
    return queue_not_found(queue, nearest=queues.nearest(queue, caller.may_use))
