"""
ANY /v1/forward/{target}/{path}: a request to another service, kept and then handed over.

A bare ASGI endpoint: it takes whatever method and path there is, and answers as the service does.

It becomes a message with its method, path and query among the headers; a consumer makes a request of it
again (consumers/sinks/http). What the service answers comes back through the database.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from starlette.types import Receive, Scope, Send

from forebay.errors import SettingsError
from forebay.forwarding import MAX_TARGET, METHOD, METHODS, TARGET, checked_target
from forebay.http_problems import send_answer
from gateway.answer import Answer, RawHeaders
from gateway.bodies import BodyReader
from gateway.callers import caller_of
from gateway.entrance import Ticket
from gateway.forward.replies import MESSAGE_ID, reply
from gateway.headers import HeaderReader, Meta, Refused, check_kept
from gateway.ingest import Ingest
from gateway.metrics import GatewayMetrics
from gateway.permits import barred_target
from gateway.problems import (
    FORWARD_TARGET_NOT_FOUND,
    INVALID_REQUEST,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    URI_TOO_LONG,
    problem,
)
from gateway.shell import accepted
from gateway.waiting import Waiting, Wanted, after_waiting

PREFIX = "/v1/forward/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A service, as far as the gateway needs to know it."""

    queue: str
    methods: tuple[str, ...]
    keep_headers: tuple[str, ...] = ()
    wait: float = 0.0
    """Seconds that a sender waits for the service's answer, unless it says how long it would."""
    one_by_one: bool = False
    """All its requests keep their order."""


class ForwardEndpoint:
    """
    One request: check, admit, read, accept, wait, answer.

    Raises:
        SettingsError: a target is to keep a header that may hold a credential, or that is acted upon.
    """

    def __init__(
        self,
        ingest: Ingest,
        bodies: BodyReader,
        waiting: Waiting,
        targets: Mapping[str, Target],
        metrics: GatewayMetrics,
    ) -> None:
        self._ingest = ingest
        self._bodies = bodies
        self._waiting = waiting
        self._targets = targets
        self._metrics = metrics
        self._readers = {name: _reader(name, target) for name, target in targets.items()}

    @staticmethod
    def matches(path: str) -> bool:
        return path.startswith(PREFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope, receive)
        if answer is not None:  # else the client left before its body was complete
            await send_answer(answer, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer | None:
        ingest, method, caller = self._ingest, scope["method"], caller_of(scope)
        # As it was sent: decoding could hide where it leads.
        name, slash, rest = scope["raw_path"].decode("latin-1").removeprefix(PREFIX).partition("/")
        target = self._targets.get(name)
        # To a key that may not use it, a target that is there and one that is not are the same.
        queue = None if target is None else target.queue
        if (forbidden := barred_target(caller, name, queue)) is not None:
            return ingest.refused(forbidden, caller)
        if method not in METHODS or (target is not None and method not in target.methods):
            return ingest.refused(_not_allowed(target.methods if target else METHODS), caller)
        if target is None:
            return ingest.refused(self._no_such_target(scope), caller)
        try:
            meta = self._read(name, target, method, slash + rest, scope)
        except Refused as refused:
            return ingest.refused(refused.answer, caller)
        admitted = ingest.enter(target.queue, meta, caller)
        if not isinstance(admitted, Ticket):
            return admitted
        body = await self._bodies.read(admitted, receive, as_sent=True)
        if not isinstance(body, bytes):
            return body
        answer = await self._take(target, admitted, body, receive)
        own = MESSAGE_ID in dict(answer.headers)  # the service's own answer comes with it
        message = getattr(admitted, "message", None)  # what `accept` refused has none
        if message is not None and not own:
            answer.headers.append((MESSAGE_ID, message.id.encode()))
        if not answer.problem:
            self._metrics.forwarded.labels(name, "answered" if own else "accepted").inc()
        return answer

    def _read(self, name: str, target: Target, method: str, path: str, scope: Scope) -> Meta:
        query = scope["query_string"].decode("latin-1")
        if len(path) + len(query) > MAX_TARGET:
            raise Refused(
                problem(
                    URI_TOO_LONG,
                    f"Path and query have more than {MAX_TARGET} characters. Nothing was stored.",
                    limit=MAX_TARGET,
                )
            )
        try:
            sent_to = checked_target(path, query)
        except ValueError as error:
            raise Refused(
                problem(INVALID_REQUEST, f"This cannot be forwarded: {error}. Nothing was stored.")
            ) from None
        meta = self._readers[name].read([h for h in scope["headers"] if h[0] != b"content-encoding"])
        if (encoding := _encoding(scope["headers"])) is not None:
            # The service gets the bytes that were sent, and so must know what they are.
            meta.kept["content-encoding"] = encoding
        meta.kept |= {METHOD: method, TARGET: sent_to}
        check_kept(meta.kept)
        if target.one_by_one:
            meta.ordering_key = name
        if meta.idempotency_key is not None:
            # A sender may use a key once for each address. No key that is sent itself has a space.
            meta.idempotency_key = f"{method} {sent_to} {meta.idempotency_key}"
        return meta

    async def _take(self, target: Target, ticket: Ticket, body: bytes, receive: Receive) -> Answer:
        answer = await accepted(self._ingest, ticket, body)
        preferred = ticket.meta.wait
        seconds = target.wait if preferred is None else preferred
        if answer.status != 202 or not seconds or not self._waiting.takes_more:
            return answer
        keyed = ticket.meta.idempotency_key is not None
        wanted = Wanted(ticket.message.id, hashlib.sha256(body).digest() if keyed else None, answer=True)
        try:
            told = await self._waiting.outcome(wanted, seconds, receive)
        except asyncio.CancelledError:
            return answer  # which is true all the same
        if told is not None and told.answer is not None:
            return reply(
                told.answer,
                head=ticket.message.headers[METHOD] == "HEAD",
                replayed=orjson.loads(answer.body)["duplicate"],
            )
        return after_waiting(
            answer, preferred or 0.0, None if told is None else told.status, when_arrived=202
        )

    def _no_such_target(self, scope: Scope) -> Answer:
        if not scope["raw_path"].startswith(PREFIX.encode()):
            return problem(NOT_FOUND, "There is nothing at this address; names of targets need no escapes.")
        return problem(FORWARD_TARGET_NOT_FOUND, FORWARD_TARGET_NOT_FOUND.advice)


def _reader(name: str, target: Target) -> HeaderReader:
    try:
        return HeaderReader(target.keep_headers)
    except SettingsError as error:
        text = str(error).replace("gateway.keep_headers", f"forward.{name}.keep_headers")
        raise SettingsError(text) from None


def _not_allowed(methods: tuple[str, ...]) -> Answer:
    return problem(
        METHOD_NOT_ALLOWED,
        f"Forwarded are {', '.join(methods)}; forward.<name>.methods of the settings may allow more.",
        headers=[(b"allow", ", ".join(methods).encode())],
    )


def _encoding(headers: RawHeaders) -> str | None:
    found = [value.decode("latin-1").strip() for name, value in headers if name == b"content-encoding"]
    return ", ".join(found) or None
