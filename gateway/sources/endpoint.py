"""
POST /v1/sources/{source}: deliveries of other services, as a bare ASGI endpoint.

No API key is asked for: the signature is the credential, and it can only be checked when the body
is here. Nothing that is not signed decides anything: headers that mean something to us elsewhere
(Idempotency-Key, Forebay-Delay, Prefer) mean nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from forebay.brokers.api import Broker
from forebay.http_problems import send_answer
from gateway.answer import Answer, RawHeaders
from gateway.bodies import BodyReader
from gateway.entrance import Ticket
from gateway.headers import HeaderReader, Meta, Refused, check_kept
from gateway.ingest import Ingest
from gateway.problems import (
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    SIGNATURE_INVALID,
    UNSUPPORTED_ENCODING,
    problem,
)
from gateway.queues import QueueRegistry
from gateway.shell import accepted, undeclared
from gateway.sources.recipe import Delivery, Unverified
from gateway.sources.source import Source

PREFIX = "/v1/sources/"

_READ = frozenset({b"content-type", b"content-length", b"content-encoding"})


class SourcesEndpoint:
    """One delivery: admit, read, verify, accept, answer."""

    def __init__(
        self,
        ingest: Ingest,
        queues: QueueRegistry,
        broker: Broker,
        bodies: BodyReader,
        sources: Mapping[str, Source],
    ) -> None:
        self._ingest = ingest
        self._queues = queues
        self._broker = broker
        self._sources = sources
        self._bodies = bodies
        self._reader = HeaderReader()

    @staticmethod
    def matches(path: str) -> bool:
        return path.startswith(PREFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope, receive)
        if answer is not None:  # else the client left before its body was complete
            await send_answer(answer, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer | None:
        ingest = self._ingest
        name = scope["path"][len(PREFIX) :]
        source = self._sources.get(name)
        if source is None or b"%" in scope.get("raw_path", b""):
            return ingest.refused(
                problem(
                    NOT_FOUND,
                    "There is no such source. A source is a table [sources.<name>] of the settings.",
                )
            )
        if scope["method"] != "POST":
            return ingest.refused(
                problem(
                    METHOD_NOT_ALLOWED, "Deliveries are sent here with POST.", headers=[(b"allow", b"POST")]
                )
            )
        # Declared from the start, but in development: there a queue is declared by its first message.
        if (refusal := await undeclared(source.queue, self._queues, self._broker, source.caller)) is not None:
            return ingest.refused(refusal)
        try:
            meta = self._read(scope["headers"])
        except Refused as refused:
            return ingest.refused(refused.answer)
        admitted = ingest.enter(source.queue, meta, source.caller)
        if not isinstance(admitted, Ticket):
            return admitted
        body = await self._bodies.read(admitted, receive)
        if not isinstance(body, bytes):
            return body
        return await self._take(source, admitted, _delivery(scope, body))

    def _read(self, headers: RawHeaders) -> Meta:
        meta = self._reader.read([pair for pair in headers if pair[0] in _READ])
        if meta.encoding is not None:
            # What was signed is what came out, or what went in: services that sign do not compress.
            raise Refused(
                problem(
                    UNSUPPORTED_ENCODING,
                    "A delivery is stored as the bytes that were signed; it must not be compressed.",
                    headers=[(b"accept-encoding", b"identity")],
                )
            )
        return meta

    async def _take(self, source: Source, ticket: Ticket, delivery: Delivery) -> Answer:
        try:
            recipe = source.verify(delivery)
        except Unverified:
            return self._ingest.refuse(ticket, _unverified())
        if (reply := source.reply(recipe, delivery)) is not None:
            self._ingest.abandon(ticket)
            return reply
        meta = ticket.meta
        try:
            meta.kept = check_kept(source.kept(recipe, delivery.headers))
        except Refused as refused:
            return self._ingest.refuse(ticket, refused.answer)
        meta.idempotency_key = source.event_id(recipe, delivery)
        meta.keeps_conflicts = True
        return await accepted(self._ingest, ticket, delivery.body)


def _delivery(scope: Scope, body: bytes) -> Delivery:
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1"), value.decode("latin-1")
        headers[name] = f"{headers[name]},{text}" if name in headers else text
    return Delivery(
        headers=headers,
        body=body,
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
    )


def _unverified() -> Answer:
    # The same for every check: which one failed would tell how far a forgery has come.
    return problem(
        SIGNATURE_INVALID,
        "The delivery's signature, its time or its id is missing, wrong or too old. Nothing was stored."
        " The gateway's log says which.",
        headers=[(b"www-authenticate", b"Webhook-Signature")],
    )
