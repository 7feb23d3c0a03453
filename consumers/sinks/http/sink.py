"""Sends the messages of a batch, a few at a time, and says what became of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from consumers.sinks import NotTried
from consumers.sinks.database import ping
from consumers.sinks.http.client import Client, Unanswered
from consumers.sinks.http.verdicts import RequestFailed
from consumers.sinks.once import OnceRecord, about_all, is_new
from consumers.sinks.threads import SinkThreads
from forebay.brokers.api import Delivery
from forebay.errors import SinkMisconfigured, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.database import Database

log = structlog.get_logger()

BUDGET = 5.0
"""Seconds after which no further message of a batch is begun: the rest is handed back, uncounted."""
LAST_WORDS = 2.0
"""Seconds that abandoned calls get when the sink is closed."""


class HttpSink:
    """
    One request per message, `connections` at once; each has a verdict of its own.

    The first verdict about the destination ends the batch: what is under way is waited
    for, what is not begun is handed back. What the service took stays taken: it is
    recorded right after, so that a redelivery is not sent again. Only a process that
    dies in between sends a message twice, with the same id in its header.

    A cancelled call is abandoned, not broken off: its requests come to their end.
    """

    def __init__(
        self,
        client: Client,
        queue: str,
        database: Database | None,
        *,
        connections: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.destination = f"http:{queue}"
        self._client = client
        self._database = database
        self._record = OnceRecord(database, self.destination)
        self._threads = SinkThreads(f"forebay-http-{queue}")
        self._connections = connections
        self._free = asyncio.Semaphore(connections)
        self._clock = clock
        self._under_way: set[asyncio.Task[list[WriteResult]]] = set()

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        work = asyncio.create_task(self._write(batch))
        self._under_way.add(work)
        work.add_done_callback(self._ended)
        return await asyncio.shield(work)

    async def probe(self) -> None:
        if self._database is not None:
            await self._threads.run(ping, self._database)
        await self._client.probe()

    async def close(self) -> None:
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=LAST_WORDS)
            for work in late:
                work.cancel()
        await self._client.close()
        self._threads.close()

    def _ended(self, work: asyncio.Task[list[WriteResult]]) -> None:
        self._under_way.discard(work)
        if not work.cancelled():
            work.exception()  # Of an abandoned call nobody else asks for it, and asyncio would complain.

    async def _write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        results = await self._in_thread(self._record.known, batch)
        todo = [i for i, r in enumerate(results) if is_new(r)]
        sent = await self._send_all([batch[i] for i in todo])
        for i, result in zip(todo, sent, strict=True):
            results[i] = result
        done = [i for i in todo if results[i].error is None]
        for i, result in zip(done, await self._remember([batch[i] for i in done]), strict=True):
            result.duplicate |= results[i].duplicate
            results[i] = result
        return about_all(results, todo)

    async def _remember(self, done: Sequence[Delivery]) -> list[WriteResult]:
        try:
            return await self._in_thread(self._record.add, done)
        except (SinkUnavailable, SinkMisconfigured) as error:
            # They are done all the same: handing them back would only send them again.
            log.warning("sent, but not recorded", count=len(done), reason=str(error))
            return [WriteResult(message_id=d.message.id) for d in done]

    async def _in_thread(
        self, call: Callable[[Sequence[Delivery]], list[WriteResult]], batch: Sequence[Delivery]
    ) -> list[WriteResult]:
        return await self._threads.run(call, batch) if self._database is not None else call(batch)

    async def _send_all(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        results = [WriteResult(message_id=d.message.id, error=NotTried()) for d in batch]
        until = self._clock() + BUDGET
        stopped = False
        waiting = iter(enumerate(batch))

        async def lane() -> None:
            nonlocal stopped
            for i, delivery in waiting:
                async with self._free:
                    if stopped or (i and self._clock() >= until):
                        return
                    results[i] = await self._send(delivery)
                if isinstance(results[i].error, (SinkUnavailable, SinkMisconfigured)):
                    stopped = True

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._connections, len(batch))):
                group.create_task(lane())
        return results

    async def _send(self, delivery: Delivery) -> WriteResult:
        result = WriteResult(message_id=delivery.message.id)
        try:
            result.duplicate = await self._client.send(delivery)
        except Unanswered as unanswered:
            result.error = await self._whose_fault(unanswered)
        except Exception as error:
            result.error = error
        return result

    async def _whose_fault(self, unanswered: Unanswered) -> Exception:
        """
        A message without an answer is a failed attempt, if the service answers something else meanwhile.

        If not, it is the service that hangs: that is an outage, and no message's fault.
        """
        try:
            await self._client.probe()
        except (SinkUnavailable, SinkMisconfigured) as error:
            return error
        failed = RequestFailed(f"{self._client.target}: {unanswered}; the message may have been handled")
        failed.__cause__ = unanswered
        return failed
