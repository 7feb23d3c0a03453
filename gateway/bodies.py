"""Reading a request's body, within what the ingest allows and not for ever."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.types import Message as Event
from starlette.types import Receive

from gateway.answer import Answer
from gateway.ingest import Ingest, Ticket
from gateway.problems import BODY_TIMEOUT, NOT_READY, problem

MIN_RATE = 1024.0
"""Bytes per second that a body must keep up on average; a trickle must not hold a place for ever."""


class BodyReader:
    """Reads bodies of admitted requests; `timeout` is the longest pause between two pieces, in seconds."""

    def __init__(self, ingest: Ingest, *, timeout: float) -> None:
        self._ingest = ingest
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()

    async def read(self, ticket: Ticket, receive: Receive) -> bytes | Answer | None:
        """
        The whole body; or the answer that makes it pointless; None if it was cut off.

        With anything but a body the ticket's place has been given back.
        """
        try:
            return await self._whole(ticket, receive)
        except asyncio.CancelledError:
            # The server's last resort at the end of a drain.
            return self._ingest.refuse(ticket, problem(NOT_READY, NOT_READY.advice))
        except BaseException:
            self._ingest.abandon(ticket)
            raise

    async def _whole(self, ticket: Ticket, receive: Receive) -> bytes | Answer | None:
        # Uvicorn starts us when the headers are complete, and mostly the body has come
        # with them: its `receive` belongs to an object that knows. Then no timer is
        # needed, which is all that this shortcut saves.
        if getattr(getattr(receive, "__self__", None), "more_body", True) is not False:
            return await self._read_slowly(ticket, receive)
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

    async def _read_slowly(self, ticket: Ticket, receive: Receive) -> bytes | Answer | None:
        # Not a list of pieces: a client that sends two bytes at a time would make it cost us
        # twenty times what is counted.
        body = bytearray()
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
                    piece: bytes = event.get("body", b"")
                    refused = self._ingest.grow(ticket, len(body) + len(piece))
                    if refused is not None:
                        return refused
                    body += piece
                    if not event.get("more_body", False):
                        return bytes(body)
                    limit.reschedule(
                        min(loop.time() + self._timeout, started + self._timeout + len(body) / MIN_RATE)
                    )
        except TimeoutError:
            if not ticket.inside:
                return self._given_up()
            return self._ingest.refuse(
                ticket,
                problem(
                    BODY_TIMEOUT,
                    f"The body stalled after {len(body)} bytes, for longer than {self._timeout:g} s or slower"
                    f" than {MIN_RATE:.0f} bytes per second. Nothing was stored.",
                    headers=[(b"connection", b"close")],
                ),
            )
        finally:
            self._ingest.arrived(ticket)

    def _given_up(self) -> Answer:
        answer = self._ingest.given_up()
        answer.headers.append((b"connection", b"close"))
        return answer
