"""POST /v1/queues/{queue}/batch as a bare ASGI endpoint."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.types import Message as Event
from starlette.types import Receive, Scope, Send

from forebay.brokers.api import Broker
from forebay.http_problems import send_answer
from gateway.answer import Answer, RawHeaders
from gateway.batches.intake import Intake, TooLittleInIt, TooManyItems
from gateway.batches.items import FORMS, Form, Maker
from gateway.batches.publishing import Course, Lane
from gateway.batches.results import Results
from gateway.batches.splitting import BrokenBatch
from gateway.bodies import MIN_RATE
from gateway.callers import Caller, caller_of
from gateway.compression import ZSTD_WINDOW_LOG, CorruptBody, Inflater
from gateway.entrance import Ticket
from gateway.ingest import Ingest
from gateway.problems import (
    BATCH_REJECTED,
    BATCH_TOO_LARGE,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    BROKEN_BATCH,
    CORRUPT_BODY,
    NOT_READY,
    OVERLOADED,
    QUOTA_EXCEEDED,
    UNSUPPORTED_BATCH,
    Kind,
    problem,
    retry_after,
)
from gateway.queues import QueueRegistry
from gateway.shell import QUEUES, irregular

SUFFIX = "/batch"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the rest of a body is not looked at."""

    kind: Kind
    detail: str
    limit: int | None = None
    close: bool = False
    """The connection is of no more use."""


class _Gone(Exception):
    """The client left before its body was complete."""


class BatchEndpoint:
    """One request: read, split and publish at the same time, then answer for every item."""

    def __init__(
        self,
        ingest: Ingest,
        queues: QueueRegistry,
        broker: Broker,
        *,
        request_timeout: float,
        body_timeout: float,
        max_items: int,
    ) -> None:
        self._ingest = ingest
        self._queues = queues
        self._broker = broker
        self._timeout = body_timeout
        self._max_items = max_items
        self._lane = Lane(ingest, timeout=request_timeout)
        self._loop = asyncio.get_running_loop()

    @staticmethod
    def matches(path: str) -> bool:
        return path.startswith(QUEUES) and path.endswith(SUFFIX) and len(path) > len(QUEUES) + len(SUFFIX)

    async def close(self) -> None:
        """Wait until everything handed in has its outcome."""
        await self._lane.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue = scope["path"][len(QUEUES) : -len(SUFFIX)]
        caller = caller_of(scope)
        refused: Answer | None = None
        if queue not in self._queues or scope["method"] != "POST" or b"%" in scope.get("raw_path", b""):
            refused = await irregular(queue, scope, self._queues, self._broker, caller)
        if refused is not None:
            self._ingest.refused(refused, caller)
        else:
            admitted = self._ingest.begin_batch(queue, scope["headers"], caller)
            if isinstance(admitted, Answer):
                refused = admitted
            else:
                form = FORMS.get(admitted.meta.content_type.partition(";")[0].strip().lower())
                if form is not None:
                    await self._take(admitted, form, receive, send)
                    return
                refused = self._ingest.refuse(admitted, _unsupported(admitted.meta.content_type))
        await send_answer(refused, send)

    async def _take(self, ticket: Ticket, form: Form, receive: Receive, send: Send) -> None:
        ingest = self._ingest
        results = Results()
        course = Course(ticket, results)
        minimal = ticket.meta.minimal
        limit = min(ingest.max_body_bytes, ticket.caller.max_body_bytes)
        intake = Intake(
            ingest,
            self._lane,
            course,
            form.splitter(limit),
            Maker(form, ticket, results, max_body_bytes=limit, schema=ingest.schemas.get(ticket.queue)),
            max_items=self._max_items,
            ordered=ticket.meta.ordering_key is not None or form.orders,
        )
        stop: Stop | None
        try:
            stop = await self._read(ticket, intake, receive)
            await intake.settle()
        except _Gone:
            intake.abandon()
            await intake.settle()  # nobody hears of it, but it is counted
            self._count(course)
            return
        except asyncio.CancelledError:
            # The server's last resort at the end of a drain: a true word all the same.
            stop = Stop(NOT_READY, NOT_READY.advice)
            intake.abandon()
        except BaseException:
            intake.abandon()
            raise
        finally:
            ingest.abandon(ticket)
        self._count(course)
        await self._answer(ticket, results, stop, minimal, send)

    # ---- reading

    async def _read(self, ticket: Ticket, intake: Intake, receive: Receive) -> Stop | None:
        """
        Read the body into the intake; return why not all of it, if so.

        Raises:
            _Gone
        """
        try:
            await self._pour(ticket, intake, receive)
            await intake.finish()
        except TooManyItems:
            return Stop(
                BATCH_TOO_LARGE,
                f"The batch has more than {self._max_items} items, and those behind them were not looked at.",
                limit=self._max_items,
            )
        except BrokenBatch as error:
            return Stop(BROKEN_BATCH, f"The body is broken: {error.args[0]}.")
        except TooLittleInIt:
            return Stop(
                BODY_TOO_LARGE, "Most of the body is in no item, or in items that are too large.", close=True
            )
        except CorruptBody as error:
            return Stop(CORRUPT_BODY, str(error))
        except TimeoutError:
            return Stop(
                BODY_TIMEOUT,
                f"The body stalled for longer than {self._timeout:g} s, or came slower than {MIN_RATE:.0f}"
                " bytes per second.",
                close=True,
            )
        except _NoRoom:
            return Stop(OVERLOADED, "There is no room in memory to inflate the body.")
        return None

    async def _pour(self, ticket: Ticket, intake: Intake, receive: Receive) -> None:
        """The body as it arrives, inflated. What time the broker takes is not held against its sender."""
        encoding = ticket.meta.encoding
        inflater = None if encoding is None else Inflater(encoding)
        window = 0
        sent = 0
        waited = 0.0
        more = True
        while more:
            intake.expect()
            began = self._loop.time()
            slow = self._timeout + sent / MIN_RATE - waited
            async with asyncio.timeout(min(self._timeout, slow)):
                event: Event = await receive()
            waited += self._loop.time() - began
            if event["type"] == "http.disconnect":
                raise _Gone
            data: bytes = event.get("body", b"")
            more = event.get("more_body", False)
            sent += len(data)
            if inflater is None:
                await intake.take(data, more=more)
                continue
            for piece in inflater.feed(data):
                if encoding == "zstd" and window < 2**ZSTD_WINDOW_LOG:
                    # It remembers what it has put out, as far back as its window.
                    if not self._ingest.hold(ticket, len(piece), ticket.caller):
                        raise _NoRoom
                    window += len(piece)
                await intake.take(piece, more=more)
                await asyncio.sleep(0)  # a small body may inflate for long: others have their turn
        if inflater is not None:
            inflater.finish()

    # ---- answering

    def _count(self, course: Course) -> None:
        results, queue = course.results, course.ticket.queue
        outcomes = results.outcomes()
        for code in course.counted:
            outcomes[code] -= 1
        for code, count in outcomes.items():
            self._ingest.count(queue, results.name(code), count)

    async def _answer(
        self, ticket: Ticket, results: Results, stop: Stop | None, minimal: bool, send: Send
    ) -> None:
        status, headers, head = _head(ticket, results, stop)
        applied = ["return=minimal"] if minimal else []
        if ticket.meta.durability is not None:
            applied.append(f"durability={ticket.meta.durability}")
        if applied:
            headers.append((b"preference-applied", ", ".join(applied).encode()))
        pieces = results.render(failures_only=minimal)
        first, second = next(pieces), next(pieces, None)
        if second is None:
            body = b"".join((head, first, b"]}"))
            headers.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in _chain(head + first, second, pieces):
            async with asyncio.timeout(self._timeout):  # a client that does not read its answer
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                # Writes are joined until the turn of the loop ends, and only then felt to be too many.
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"]}"})


class _NoRoom(Exception):
    """The memory that inflating takes is not there."""


def _chain(first: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    yield from rest


def _head(ticket: Ticket, results: Results, stop: Stop | None) -> tuple[int, RawHeaders, bytes]:
    """Status and headers of the answer, and its document up to the results."""
    counts = results.counts()
    stored = counts["ok"] + counts["duplicate"]
    members: dict[str, Any] = {"queue": ticket.queue, "items": results.count, "counts": counts}
    if stop is not None:
        said = f"{stored} of the {results.count} items before are stored." if results.count else NOTHING
        detail = f"{stop.detail} {said}"
        return _problem(stop.kind, detail, members, limit=stop.limit, close=stop.close)
    if not stored and counts["retry"]:
        kind, detail = results.first_retry()
        wait = _wait(ticket.caller) if kind is QUOTA_EXCEEDED else None
        return _problem(kind, detail, members, wait=wait)
    if not stored and counts["rejected"]:
        return _problem(BATCH_REJECTED, f"All {results.count} items of the batch were rejected.", members)
    headers: RawHeaders = [(b"content-type", b"application/json")]
    if counts["retry"]:
        headers.append((b"retry-after", str(math.ceil(max(_wait(ticket.caller), retry_after()))).encode()))
    status = 207 if counts["retry"] or counts["rejected"] else 202
    return status, headers, orjson.dumps(members)[:-1] + b',"results":['


def _wait(caller: Caller) -> float:
    """Seconds until the caller's quota lets something through."""
    return 0.0 if caller.quota is None else caller.quota.retry_after()


NOTHING = "Nothing was stored."


def _problem(
    kind: Kind,
    detail: str,
    members: dict[str, Any],
    *,
    limit: int | None = None,
    close: bool = False,
    wait: float | None = None,
) -> tuple[int, RawHeaders, bytes]:
    answer = problem(kind, detail, limit=limit, wait=wait, **members)
    headers = [header for header in answer.headers if header[0] != b"content-length"]
    if close:
        headers.append((b"connection", b"close"))
    return answer.status, headers, answer.body[:-1] + b',"results":['


def _unsupported(content_type: str) -> Answer:
    return problem(
        UNSUPPORTED_BATCH,
        f"A batch of {content_type!r} is not taken; there are {', '.join(FORMS)}. Nothing was stored.",
        headers=[(b"accept", ", ".join(FORMS).encode())],
    )
