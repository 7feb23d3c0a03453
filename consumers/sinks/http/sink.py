"""Sends the messages of a batch, a few at a time, and says what became of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from consumers.sinks import NotTried
from consumers.sinks.http.client import Client, Unanswered
from consumers.sinks.http.relay import Heard, keep_answers
from consumers.sinks.http.verdicts import RequestFailed
from consumers.sinks.outside import Outside
from forebay.brokers.api import Delivery
from forebay.errors import SinkMisconfigured, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.answers import KeptAnswer
from forebay.storage.database import Database

BUDGET = 5.0
"""Seconds after which no further message of a batch is begun: the rest is handed back, uncounted."""


class HttpSink:
    """
    One request per message, `connections` at once; each has a verdict of its own.

    The first verdict about the destination ends the batch: what is under way is waited
    for, what is not begun is handed back. What the service took stays taken. A message
    that is sent twice has the same id in its header.
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
        self._outside = Outside(self.destination, database, self._send_all, beside=keep_answers)
        self._client = client
        self._connections = connections
        self._free = asyncio.Semaphore(connections)
        self._clock = clock

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        return await self._outside.write(batch)

    async def probe(self) -> None:
        await self._outside.probe()
        await self._client.probe()

    async def close(self) -> None:
        await self._outside.close()
        await self._client.close()

    async def _send_all(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        results: list[WriteResult] = [Heard(message_id=d.message.id, error=NotTried()) for d in batch]
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
        result = Heard(message_id=delivery.message.id)

        def heard(answer: KeptAnswer) -> None:
            result.answer = answer

        try:
            result.duplicate = await self._client.send(delivery, heard)
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
