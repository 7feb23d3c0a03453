"""Reading a request's body, within what the ingest allows and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from starlette.types import Message as Event
from starlette.types import Receive

from gateway.answer import Answer
from gateway.compression import CorruptBody, Inflater
from gateway.entrance import Ticket
from gateway.ingest import Ingest
from gateway.problems import BODY_TIMEOUT, CORRUPT_BODY, NOT_READY, problem

MIN_RATE = 1024.0
"""Bytes per second that a body must keep up on average; a trickle must not hold a place for ever."""

OVERHEAD = 64 * 2**10
"""
Bytes by which a compressed body may be larger than the largest body: what cannot be compressed grows.

A stream of empty members inflates to nothing, and would otherwise have no end.
"""


class BodyReader:
    """Reads bodies of admitted requests; `timeout` is the longest pause between two pieces, in seconds."""

    def __init__(self, ingest: Ingest, *, timeout: float) -> None:
        self._ingest = ingest
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()

    async def read(self, ticket: Ticket, receive: Receive, *, as_sent: bool = False) -> bytes | Answer | None:
        """
        The whole body; or the answer that makes it pointless; None if it was cut off.

        A compressed body is inflated, and its size is that of what comes out; with `as_sent` it
        is left as it is. With anything but a body the ticket's place has been given back.
        """
        try:
            return await self._whole(ticket, receive, None if as_sent else ticket.meta.encoding)
        except asyncio.CancelledError:
            # The server's last resort at the end of a drain.
            return self._ingest.refuse(ticket, problem(NOT_READY, NOT_READY.advice))
        except BaseException:
            self._ingest.abandon(ticket)
            raise

    async def _whole(self, ticket: Ticket, receive: Receive, encoding: str | None) -> bytes | Answer | None:
        # Uvicorn starts us when the headers are complete, and mostly the body has come
        # with them: its `receive` belongs to an object that knows. Then no timer is
        # needed, which is all that this shortcut saves.
        if (
            encoding is not None
            or getattr(getattr(receive, "__self__", None), "more_body", True) is not False
        ):
            return await self._read_slowly(ticket, receive, encoding)
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

    async def _read_slowly(
        self, ticket: Ticket, receive: Receive, encoding: str | None
    ) -> bytes | Answer | None:
        inflater = None if encoding is None else Inflater(encoding)
        # Not a list of pieces: a client that sends two bytes at a time would make it cost us
        # twenty times what is counted.
        body = bytearray()
        sent = 0
        loop = self._loop
        started = loop.time()
        try:
            async with asyncio.timeout(self._timeout) as limit:
                self._ingest.arriving(ticket, partial(limit.reschedule, 0))
                while True:
                    event: Event = await receive()
                    if event["type"] == "http.disconnect":
                        self._ingest.abandon(ticket)
                        return None
                    if not ticket.inside:
                        return self._given_up()
                    data: bytes = event.get("body", b"")
                    sent += len(data)
                    inflated: Iterable[bytes] = (data,) if inflater is None else inflater.feed(data)
                    for piece in inflated:
                        refused = self._ingest.grow(ticket, len(body) + len(piece))
                        if refused is not None:
                            return refused
                        body += piece
                    refused = self._ingest.grow(ticket, sent - OVERHEAD)
                    if refused is not None:
                        return refused
                    if not event.get("more_body", False):
                        if inflater is not None:
                            inflater.finish()
                        return bytes(body)
                    limit.reschedule(
                        min(loop.time() + self._timeout, started + self._timeout + sent / MIN_RATE)
                    )
        except TimeoutError:
            if not ticket.inside:
                return self._given_up()
            return self._ingest.refuse(
                ticket,
                problem(
                    BODY_TIMEOUT,
                    f"The body stalled after {sent} bytes, for longer than {self._timeout:g} s or slower"
                    f" than {MIN_RATE:.0f} bytes per second. Nothing was stored.",
                    headers=[(b"connection", b"close")],
                ),
            )
        except CorruptBody as error:
            return self._ingest.refuse(ticket, problem(CORRUPT_BODY, f"{error} Nothing was stored."))
        finally:
            self._ingest.arrived(ticket)

    def _given_up(self) -> Answer:
        answer = self._ingest.given_up()
        answer.headers.append((b"connection", b"close"))
        return answer
