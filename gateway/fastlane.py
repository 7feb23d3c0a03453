"""
The fast lane: a plain POST of one message, answered without an ASGI scope, task or event.

What is decided, and by whom, is the same as on the other lane (gateway/endpoint.py): both
ask the keyring and the ingest. This one only carries requests that came whole, in one
piece, with nothing unusual about them; the protocol gives all others to the application.
"""

from __future__ import annotations

from typing import Protocol

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from gateway import cloudevents
from gateway.answer import Answer, RawHeaders
from gateway.callers import ANYONE, Caller
from gateway.headers import Meta, Refused
from gateway.ingest import Ingest
from gateway.keyring import Keyring
from gateway.known_heads import KnownHead
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


class Carrier(Protocol):
    """The connection of a request."""

    @property
    def server_state(self) -> ServerState: ...

    def send_plain(self, data: bytes, *, keep_alive: bool) -> None:
        """Send a whole answer."""


class PlainRequest:
    """
    One request on the fast lane.

    To the protocol it is what uvicorn's RequestResponseCycle is: whether a body is whole, whether it
    has been answered, and what becomes of the connection then.
    """

    __slots__ = (
        "_carrier",
        "_lane",
        "body",
        "caller",
        "disconnected",
        "head",
        "headers",
        "keep_alive",
        "key",
        "meta",
        "more_body",
        "queue",
        "response_complete",
        "response_started",
    )

    message_event = _Nobody()

    def __init__(self, queue: str, headers: RawHeaders, lane: FastLane, carrier: Carrier) -> None:
        self.queue = queue
        self.headers = headers
        self.head: KnownHead | None = None
        """The head that the connection has sent before."""
        self.meta: Meta | None = None
        """What the headers say; None: they have not been read, or others like them may say something else."""
        self.key: str | None = None
        """The idempotency key, if meta's is that of another request."""
        self.caller: Caller = ANYONE
        self.body = b""
        self.more_body = True
        self.keep_alive = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._lane = lane
        self._carrier = carrier

    def respond(self, answer: Answer) -> None:
        """Send the answer, once; nobody may be there to read it."""
        head = b"".join([b"%b: %b\r\n" % pair for pair in answer.headers])
        self._send(answer.status, head, answer.body, self._besides(answer.status))

    def respond_raw(self, accepted: bytes) -> None:
        """The same for a 202 that is made already."""
        quota = self.caller.quota
        if self.keep_alive and (quota is None or not quota.has_news):
            if not self.disconnected and not self.response_started:
                self._write(self._lane.begin(202, self._carrier.server_state.default_headers) + accepted)
        else:
            head, _, body = accepted.partition(b"\r\n\r\n")
            self._send(202, head + b"\r\n", body, self._besides(202))

    def _besides(self, status: int) -> bytes:
        """The headers that the caller's quota and the end of the connection add."""
        quota, more = self.caller.quota, b""
        if quota is not None and (told := quota.to_tell(status)):
            more = b"".join([b"%b: %b\r\n" % pair for pair in told])
        return more if self.keep_alive else more + b"connection: close\r\n"

    def _send(self, status: int, head: bytes, body: bytes, more: bytes) -> None:
        if self.disconnected or self.response_started:
            return
        begin = self._lane.begin(status, self._carrier.server_state.default_headers)
        self._write(b"".join((begin, head, more, b"\r\n", body)))

    def _write(self, answer: bytes) -> None:
        self.response_started = self.response_complete = True
        try:
            self._carrier.send_plain(answer, keep_alive=self.keep_alive)
        except Exception:
            # Others have their answers from the same publish, and must get them.
            log.exception("an answer could not be sent", queue=self.queue)


class FastLane:
    """What all plain requests of a process share: who may send, what is decided, and the queues there are."""

    def __init__(self, ingest: Ingest, keyring: Keyring | None, queues: Declared) -> None:
        self._ingest = ingest
        self._keyring = keyring
        self._queues = queues
        self._known: dict[bytes, str] = {}
        self.closed = False
        """The application has ended: nothing is taken here any more."""
        self._defaults: RawHeaders = []
        self._begins: dict[int, bytes] = {}

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

    def begin(self, status: int, defaults: RawHeaders) -> bytes:
        """An answer's status line, and the headers of all answers; uvicorn makes new ones every second."""
        if defaults is not self._defaults:
            self._defaults = defaults
            self._begins = {}
        begin = self._begins.get(status)
        if begin is None:
            lines = [b"%b: %b\r\n" % pair for pair in defaults]
            begin = self._begins[status] = b"".join([STATUS_LINE[status], *lines])
        return begin

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
        ingest, caller = self._ingest, ANYONE
        if self._keyring is not None:
            known = self._sender(self._keyring, request)
            if isinstance(known, Answer):
                return ingest.refused(known)
            request.caller = caller = known
        body, meta = request.body, request.meta
        if meta is not None:
            ticket = ingest.enter_whole(request.queue, meta, caller, len(body))
            if isinstance(ticket, Answer):
                return ticket
        else:
            ticket = ingest.admit(request.queue, request.headers, caller)
            if isinstance(ticket, Answer):
                return ticket
            if body and (refused := ingest.grow(ticket, len(body))) is not None:
                return refused
            if cloudevents.concerns(ticket.meta):
                try:
                    body, ticket.meta = cloudevents.understand(body, ticket.meta)
                except Refused as refusal:
                    return ingest.refuse(ticket, refusal.answer)
            else:
                request.meta = ticket.meta
        ingest.accept(ticket, body, request.respond, respond_raw=request.respond_raw, key=request.key)
        return None

    def _sender(self, keyring: Keyring, request: PlainRequest) -> Caller | Answer:
        head = request.head
        if head is not None and head.caller is not None and head.era is keyring.era:
            return head.caller
        known = keyring.caller(request.headers)
        if head is not None and isinstance(known, Caller) and known.expires_at is None:
            head.caller, head.era = known, keyring.era
        return known
