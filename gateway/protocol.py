"""Uvicorn's HTTP protocol, with answers in our form and an end to what it would let go on for ever."""

from __future__ import annotations

import asyncio
import math
from operator import itemgetter
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.connections import Connections
from gateway.deadline import Deadline
from gateway.fastlane import UNUSUAL, FastLane, PlainRequest
from gateway.known_heads import KnownHead, learn
from gateway.problems import HEADERS_TOO_LARGE, INVALID_REQUEST, Kind, problem
from gateway.request_rules import MAX_HEAD, MAX_HEADERS, Ambiguous, TooManyHeaders, check

HEAD_TIMEOUT = 10.0
"""Seconds for a request line and headers, from the connection or from their first byte."""
MAX_DISCARDED = 8 * 2**20
LINGER = 5.0
"""
How much of a body, and for how many seconds, is read and thrown away after an early answer.

Closing at once would be simpler, but a client that is still sending would find the
connection reset and never see the 413.
"""


_NAME = itemgetter(0)

MAX_BESIDE = 2**18 + MAX_HEAD
"""Bytes of trailers and of extensions of chunks, beyond what may come in one read."""


class _JoinedWrites:
    """
    The part of a transport that uvicorn writes to; joins the writes of one turn of the event loop.

    Uvicorn writes an answer's head and body separately, and uvloop sends each at
    once. In a profile of accepted messages (py-spy, a broker that stores nothing)
    the second of these system calls took about 15 % of the samples.
    """

    __slots__ = ("_loop", "_pending", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pending: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(data)

    def write_whole(self, data: bytes) -> None:
        """Write what nothing will follow in this turn."""
        if self._pending:
            self._pending.append(data)
            self._flush()
        elif not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._pending:
            data = b"".join(self._pending)
            self._pending.clear()
            if not self._transport.is_closing():
                self._transport.write(data)


class Protocol(HttpToolsProtocol):
    """
    What uvicorn answers by itself becomes a problem document, and every connection ends.

    A connection on which no request is in work, be it new, in the middle of its
    headers or of a body that was answered early, is closed after a while, however
    slowly its bytes trickle in.
    """

    _head = 0
    """Bytes received of the head that is not complete."""
    _head_since = 0.0
    _begun = 0
    """Requests that began in the last read."""
    _in_head = False
    _discarded = 0
    _discarding_since = 0.0
    _broken = False
    _fault: Ambiguous | TooManyHeaders | None = None
    """Why a request was not taken: the parser wraps what its callbacks raise."""
    _in_body = False
    _trailers = 0
    _beside = 0
    """Bytes received since the last ones of a body."""
    _before: RequestResponseCycle | None = None
    """The request before `cycle`, the newest."""
    _plain: PlainRequest | None = None
    """What has just come on the fast lane."""
    _writes: _JoinedWrites
    _known_head: KnownHead | None = None
    _known_lane: FastLane | None = None
    """Of an earlier request."""
    _unlike = 0
    """Plain requests in a row whose head was another."""
    _ends: Deadline
    """When the connection is closed, whatever it is in the middle of."""

    def connection_made(self, transport: object) -> None:
        whole = cast(asyncio.Transport, transport)
        super().connection_made(whole)
        # From here on uvicorn only writes, closes, and asks whether it is closed;
        # flow control keeps the transport itself.
        self._writes = _JoinedWrites(whole, self.loop)
        self.transport = cast(asyncio.Transport, self._writes)
        self._ends = Deadline(self.loop, self.timeout_keep_alive_handler)
        self._ends.after(HEAD_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ends.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._broken or self._take_known(data):
            return
        ends = self._ends
        until, in_body = ends.at, self._in_body
        ends.clear()
        before = self.cycle
        between = not self._in_head and not in_body
        alone = between and (before is None or before.response_complete)
        self._begun = 0
        try:
            self._feed(data)
        except httptools.HttpParserError:
            fault = self._fault
            self._refuse(
                HEADERS_TOO_LARGE if isinstance(fault, TooManyHeaders) else INVALID_REQUEST,
                str(fault or "This is not a valid HTTP/1.1 request: a header or the framing of the body."),
            )
            self._leave_or_serve(b"")
            return
        self._leave_or_serve(data if alone else b"")
        if self._in_head:
            if self._begun:
                self._head_since = self.loop.time()
                # Behind other requests, or the end of a body, how much of the read it is is not told.
                self._head = len(data) if between and self._begun == 1 else 0
            else:
                self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(HEADERS_TOO_LARGE, f"The headers are larger than {MAX_HEAD} bytes.")
                return
            ends.set(self._head_since + HEAD_TIMEOUT)
            return
        if self._in_body:
            self._beside += len(data)
            if self._beside > MAX_BESIDE:
                self._refuse(HEADERS_TOO_LARGE, "The chunks of the body have too much beside them.")
                return
        cycle = self.cycle
        if (cycle is None or cycle.response_complete) and ends.at == math.inf:
            if in_body and not self._in_body:
                ends.after(LINGER)
            else:
                # Empty lines, or what is still to come after an early answer: they buy no time.
                ends.set(until)

    def _feed(self, data: bytes) -> None:
        """
        Raises:
            HttpParserError
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # No upgrade is taken, but the parser stops in front of the body. A new
                # one reads the same head without the offer, and what follows it.
                head = [self.parser.get_method(), b" ", self.url, b" HTTP/"]
                head += [self.parser.get_http_version().encode(), b"\r\n"]
                for name, value in self.headers:
                    if name != b"upgrade":
                        head += [name, b": ", value, b"\r\n"]
                data = b"".join([*head, b"\r\n", data[upgrade.args[0] :]])
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def _offers_upgrade(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def on_message_begin(self) -> None:
        if isinstance(self.connections, Connections):
            self.connections.began(self)
        self._in_head = True
        self._begun += 1
        self._discarded = 0
        # As uvicorn does, but for the scope, which a plain request has no use for.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer, which we have no use for. Uvicorn would put it among the headers, which are
            # being acted upon.
            self._trailers += 1
            if self._trailers > MAX_HEADERS:
                self._fault = TooManyHeaders(f"There are more than {MAX_HEADERS} trailers.")
                raise self._fault
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        try:
            check(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
        except (Ambiguous, TooManyHeaders) as fault:
            self._fault = fault
            raise
        if self._offers_upgrade():
            return
        self._in_head = False
        self._in_body = True
        self._before = self.cycle
        if not self._begin_plain():
            self._begin_other()

    def _begin_plain(self) -> bool:
        """Take the request on the fast lane, if it belongs there as far as its head tells."""
        before = self.cycle
        parser = self.parser
        if (
            (lane := self._lane) is None
            or (before is not None and not before.response_complete)
            or (queue := lane.queue_of(self.url)) is None
            or parser.get_method() != b"POST"
            or not parser.should_keep_alive()
            or parser.get_http_version() != "1.1"
            or self.flow.write_paused
            or not UNUSUAL.isdisjoint(map(_NAME, self.headers))
        ):
            return False
        self._plain = PlainRequest(queue, self.headers, lane, self)
        self.cycle = cast(Any, self._plain)
        return True

    def _take_known(self, data: bytes) -> bool:
        """Serve what is read, if it is one whole request with the head of the one before."""
        head, lane = self._known_head, self._known_lane
        if (
            head is None
            or self._in_head
            or self._in_body
            or not self.cycle.response_complete
            or lane is None
            or lane.closed
            or self.flow.write_paused
            or (brought := head.match(data)) is None
        ):
            return False
        self._unlike = 0
        self._ends.at = math.inf
        request = PlainRequest(head.queue, head.headers, lane, self)
        request.head = head
        request.meta = head.meta
        request.body, request.key = brought
        request.more_body = False
        self.cycle = cast(Any, request)
        lane.serve(request)
        return True

    @property
    def _lane(self) -> FastLane | None:
        # None before the application has started and after it has ended, and for other applications.
        return getattr(self.config.app, "fast_lane", None)

    def _begin_other(self) -> None:
        """Give the request to the application."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers += headers  # the scope holds this list
        super().on_headers_complete()

    def _leave_or_serve(self, data: bytes) -> None:
        """
        Serve the plain request that has just come; if it is not whole, it is the application's.

        `data` is what it came in, if that began where a request begins.
        """
        plain, self._plain = self._plain, None
        if plain is None:
            return
        if plain.more_body:
            if not self._broken:
                self.cycle = cast(Any, self._before)
                self._begin_other()
                if plain.body:
                    super().on_body(plain.body)
            return
        lane = self._lane
        assert lane is not None
        lane.serve(plain)
        self._unlike += 1
        # Of a client whose heads are all different, fewer and fewer are learned.
        if plain.meta is not None and not self._unlike & (self._unlike - 1) and data.endswith(plain.body):
            head = data[: len(data) - len(plain.body)]
            self._known_head = learn(head, plain.queue, plain.headers, plain.meta)
            self._known_lane = lane

    def send_plain(self, data: bytes, *, keep_alive: bool) -> None:
        self._writes.write_whole(data)
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_message_complete(self) -> None:
        if not self._offers_upgrade():
            self._in_body = False
            self._trailers = 0
            plain = self._plain
            if plain is not None and plain.more_body:
                plain.more_body = False
            else:
                super().on_message_complete()

    @property
    def at_work(self) -> bool:
        cycle = self.cycle
        return bool(self.pipeline) or not (cycle is None or cycle.response_complete or cycle.more_body)

    def give_up(self) -> None:
        self.transport.close()

    def on_response_complete(self) -> None:
        # Uvicorn's sets a timer each time.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            self._ends.clear()
        elif self._in_head:
            self._ends.set(self._head_since + HEAD_TIMEOUT)
        else:
            self._ends.after(self.timeout_keep_alive)
        if not self._in_head and not self._in_body:
            if isinstance(self.connections, Connections):
                self.connections.answered(self)
        elif self._in_body and self.cycle.response_complete:
            # An early answer. Whoever goes on sending is read for a while (`on_body`).
            self._ends.after(LINGER)

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        plain = self._plain
        if plain is not None and plain.more_body:
            plain.body = plain.body + body if plain.body else body
        elif self.cycle.response_complete:
            self._discard(len(body))
        else:
            super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(INVALID_REQUEST, msg)

    def _discard(self, size: int) -> None:
        now = self.loop.time()
        if not self._discarded:
            self._discarding_since = now
        self._discarded += size
        if self._discarded > MAX_DISCARDED or now - self._discarding_since > LINGER:
            self.transport.close()

    def _refuse(self, kind: Kind, detail: str) -> None:
        """Answer what never became a request, and end the connection."""
        self._broken = True
        if self.pipeline and self.cycle.more_body:
            # Its body is what is broken, and its turn to be answered has not come.
            self.pipeline.popleft()
            assert self._before is not None
            self.cycle = self._before
        cycle = self.cycle
        if self._in_body and cycle is not None and cycle.response_complete:
            # What is broken is the rest of a body, and its request has its answer.
            self.transport.close()
            return
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            # The requests before are whole and in work; an answer now would be taken for
            # one of theirs. Let them have their own, and close after the last.
            cycle.keep_alive = False
            return
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
            return
        answer = problem(kind, detail)
        head = [STATUS_LINE[answer.status]]
        for name, value in (*self.server_state.default_headers, *answer.headers, (b"connection", b"close")):
            head += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*head, b"\r\n", answer.body]))
        self.transport.close()
