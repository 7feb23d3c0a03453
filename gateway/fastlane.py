"""
The fast lane: a plain POST of one message, answered without an ASGI scope, task or event.

What is decided, and by whom, is the same as on the other lane (gateway/endpoint.py): both
ask the keyring and the ingest. This one only carries requests that came whole, in one
piece, with nothing unusual about them; the protocol gives all others to the application.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway import cloudevents
from gateway.answer import Answer, RawHeaders
from gateway.callers import ANYONE, Caller
from gateway.headers import Refused
from gateway.ingest import Ingest
from gateway.keyring import Keyring
from gateway.problems import INTERNAL, problem
from gateway.shell import QUEUES, SUFFIX

log = structlog.get_logger()

UNUSUAL = frozenset(
    {
        b"content-encoding",
        b"expect",
        b"origin",
        b"prefer",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that change how a request is read or answered: the application's."""


class Declared(Protocol):
    """The queues that there are."""

    def __contains__(self, name: str) -> bool: ...


class _Nobody:
    """The event by which uvicorn wakes a request's task, where there is no task."""

    def set(self) -> None:
        pass


class PlainRequest:
    """
    One request on the fast lane.

    To the protocol it is what uvicorn's RequestResponseCycle is: whether a body is whole, whether it
    has been answered, and what becomes of the connection then.
    """

    __slots__ = (
        "_send",
        "body",
        "caller",
        "default_headers",
        "disconnected",
        "headers",
        "keep_alive",
        "more_body",
        "queue",
        "response_complete",
        "response_started",
    )

    message_event = _Nobody()

    def __init__(
        self,
        queue: str,
        headers: RawHeaders,
        *,
        default_headers: RawHeaders,
        send: Callable[[bytes, bool], None],
    ) -> None:
        self.queue = queue
        self.headers = headers
        self.default_headers = default_headers
        self.caller: Caller = ANYONE
        self.body = b""
        self.more_body = True
        self.keep_alive = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._send = send

    def respond(self, answer: Answer) -> None:
        """Send the answer, once; nobody may be there to read it."""
        if self.disconnected or self.response_started:
            return
        self.response_started = self.response_complete = True
        parts = [STATUS_LINE[answer.status]]
        for name, value in self.default_headers:
            parts += (name, b": ", value, b"\r\n")
        for name, value in answer.headers:
            parts += (name, b": ", value, b"\r\n")
        quota = self.caller.quota
        if quota is not None:
            for name, value in quota.to_tell(answer.status):
                parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", answer.body)
        self._send(b"".join(parts), self.keep_alive)


class FastLane:
    """What all plain requests of a process share: who may send, what is decided, and the queues there are."""

    def __init__(self, ingest: Ingest, keyring: Keyring | None, queues: Declared) -> None:
        self._ingest = ingest
        self._keyring = keyring
        self._queues = queues
        self._known: dict[bytes, str] = {}

    def queue_of(self, target: bytes) -> str | None:
        """The declared queue that one message is sent to at this address; None: it is another address."""
        queue = self._known.get(target)
        if queue is None:
            text = target.decode("latin-1")
            if text.startswith(QUEUES) and text.endswith(SUFFIX):
                name = text[len(QUEUES) : -len(SUFFIX)]
                if name in self._queues:  # names of queues have no characters that need escaping
                    queue = self._known[target] = name
        return queue

    def serve(self, request: PlainRequest) -> None:
        """Answer the request, now or when its message is stored."""
        try:
            answer = self._take(request)
        except Exception:
            log.exception("request failed unexpectedly", method="POST", queue=request.queue)
            answer = problem(INTERNAL, INTERNAL.advice)
        if answer is not None:
            request.respond(answer)

    def _take(self, request: PlainRequest) -> Answer | None:
        ingest = self._ingest
        if self._keyring is not None:
            caller = self._keyring.caller(request.headers)
            if isinstance(caller, Answer):
                return ingest.refused(caller)
            request.caller = caller
        ticket = ingest.admit(request.queue, request.headers, request.caller)
        if isinstance(ticket, Answer):
            return ticket
        body = request.body
        if body and (refused := ingest.grow(ticket, len(body))) is not None:
            return refused
        try:
            body, ticket.meta = cloudevents.understand(body, ticket.meta)
        except Refused as refusal:
            return ingest.refuse(ticket, refusal.answer)
        ingest.accept(ticket, body, request.respond)
        return None
