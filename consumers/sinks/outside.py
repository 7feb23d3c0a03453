"""What sinks share whose effect is outside the database: known, done, recorded, without a break."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog

from consumers.sinks.database import ping
from consumers.sinks.once import Beside, OnceRecord, about_all, is_new
from consumers.sinks.threads import SinkThreads
from forebay.brokers.api import Delivery
from forebay.errors import SinkMisconfigured, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.database import Database

log = structlog.get_logger()

LAST_WORDS = 2.0
"""Seconds that abandoned calls get when a sink is closed."""

Deliver = Callable[[Sequence[Delivery]], Awaitable[list[WriteResult]]]
"""Has the effect of messages that had none yet; one result each, aligned."""


class Outside:
    """
    Calls `deliver` with what is new, and records right after what it did; `beside` may record more of the
    results, in the same transaction.

    So a redelivery is not delivered again. Only a process that dies between the two
    delivers twice; and without a database, every redelivery does.

    A cancelled call is abandoned, not broken off: it comes to its end and is recorded.
    """

    def __init__(
        self,
        destination: str,
        database: Database | None,
        deliver: Deliver,
        *,
        beside: Beside | None = None,
    ) -> None:
        self._database = database
        self._deliver = deliver
        self._record = OnceRecord(database, destination, beside=beside)
        self._threads = SinkThreads(f"forebay-{destination.replace(':', '-')}")
        self._under_way: set[asyncio.Task[list[WriteResult]]] = set()

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        """As `Sink.write`."""
        work = asyncio.create_task(self._write(batch))
        self._under_way.add(work)
        work.add_done_callback(self._ended)
        return await asyncio.shield(work)

    async def probe(self) -> None:
        """
        Raises:
            SinkUnavailable, SinkMisconfigured: nothing could be recorded now.
        """
        if self._database is not None:
            await self._threads.run(ping, self._database)

    async def close(self) -> None:
        """Give abandoned calls a moment to end; then cancel them. Idempotent."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=LAST_WORDS)
            for work in late:
                work.cancel()
        self._threads.close()

    def _ended(self, work: asyncio.Task[list[WriteResult]]) -> None:
        self._under_way.discard(work)
        if not work.cancelled():
            work.exception()  # Of an abandoned call nobody else asks for it, and asyncio would complain.

    async def _write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        results = await self._call(self._record.known, batch)
        todo = [i for i, r in enumerate(results) if is_new(r)]
        delivered = await self._deliver([batch[i] for i in todo]) if todo else []
        for i, result in zip(todo, delivered, strict=True):
            results[i] = result
        done = [i for i in todo if results[i].error is None]
        remembered = await self._remember([batch[i] for i in done], delivered)
        for i, recorded in zip(done, remembered, strict=True):
            recorded.duplicate |= results[i].duplicate
            results[i] = recorded
        return about_all(results, todo)

    async def _remember(
        self, done: Sequence[Delivery], delivered: Sequence[WriteResult]
    ) -> list[WriteResult]:
        try:
            return await self._call(partial(self._record.add, results=delivered), done)
        except (SinkUnavailable, SinkMisconfigured) as error:
            # They are done all the same: handing them back would only deliver them again.
            log.warning("delivered, but not recorded", count=len(done), reason=str(error))
            return [WriteResult(message_id=d.message.id) for d in done]

    async def _call(
        self, call: Callable[[Sequence[Delivery]], list[WriteResult]], batch: Sequence[Delivery]
    ) -> list[WriteResult]:
        return await self._threads.run(call, batch) if self._database is not None else call(batch)
