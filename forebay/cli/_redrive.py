"""The engine that sends dead letters back to where they were given up."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from forebay.errors import BrokerError, MessageTooLarge, QueueNotFound
from forebay.message import Message

if TYPE_CHECKING:
    from forebay.brokers.api import Broker
    from forebay.storage.dead_letters import (
        DeadLetterFilter,
        DeadLetterRecord,
        DeadLetterStatus,
        DeadLetterStore,
    )

_PAGE = 100
_TIMEOUT = 30.0


class Redrive:
    """
    Sends dead letters back, page by page: marked `redriving`, published, and confirmed.

    Marked first, so that two who redrive at once share the work and a message that dies
    again meanwhile is not overwritten. What could not be published is marked `dead`
    again. A kill in between leaves at most one page `redriving`; sending those once more
    is harmless, since they keep their ids.
    """

    def __init__(
        self,
        broker: Broker,
        store: DeadLetterStore,
        *,
        rate: float | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._store = store
        self._rate = rate
        self._progress = progress
        self._page = _PAGE if rate is None else max(1, min(_PAGE, int(rate)))
        self.sent = 0
        self.failed = 0
        self._blocked = False
        self.why = ""
        """The first reason for a failure."""

    async def run(self, which: DeadLetterFilter, *, limit: int) -> None:
        """At most `limit`, the oldest first. Stops when the broker is away or full."""
        loop = asyncio.get_running_loop()
        left, due = limit, loop.time()
        status = which.status or "dead"
        rest = pages(self._store, which, size=self._page, bodies=True)
        while left > 0:
            page = (await asyncio.to_thread(next, rest, []))[:left]
            if not page:
                return
            await asyncio.sleep(max(0.0, due - loop.time()))
            left -= len(page)
            await self._send_page(page, status)
            if self._blocked:
                return
            if self._rate is not None:
                due = max(due, loop.time() - 1.0) + len(page) / self._rate

    async def _send_page(self, page: Sequence[DeadLetterRecord], expected: DeadLetterStatus) -> None:
        taken = await asyncio.to_thread(self._store.take, page, status="redriving", expected=expected)
        by_queue: dict[str, list[DeadLetterRecord]] = defaultdict(list)
        for record in taken:
            by_queue[record.queue].append(record)
        refused: list[DeadLetterRecord] = []
        for queue, records in by_queue.items():
            refused += await self._publish(queue, records)
        if refused:
            await asyncio.to_thread(self._store.mark, refused, status="dead", expected="redriving")
        self.sent += len(taken) - len(refused)
        self.failed += len(refused)
        self._progress(len(page))

    async def _publish(self, queue: str, records: Sequence[DeadLetterRecord]) -> list[DeadLetterRecord]:
        """Send to one queue; return those that are not certainly there."""
        try:
            results = await self._broker.publish(queue, [_message(r) for r in records], timeout=_TIMEOUT)
        except BrokerError as error:
            self._note(error)
            return list(records)
        refused = []
        for record, result in zip(records, results, strict=True):
            if result.error is not None:
                self._note(result.error)
                refused.append(record)
        return refused

    def _note(self, error: BrokerError) -> None:
        self.why = self.why or str(error)
        # The others are about one message, or one queue, and no reason to leave the rest where it is.
        self._blocked |= not isinstance(error, (QueueNotFound, MessageTooLarge))


def pages(
    store: DeadLetterStore, which: DeadLetterFilter, *, size: int, bodies: bool
) -> Iterator[list[DeadLetterRecord]]:
    """All that match, the oldest first. What is marked meanwhile is not skipped and not seen twice."""
    last = None
    while page := store.list(which, limit=size, after=last, bodies=bodies):
        yield page
        last = page[-1]


def _message(record: DeadLetterRecord) -> Message:
    return Message(
        id=record.id,
        body=record.body,
        accepted_at=record.accepted_at,
        # Its retries count from now: an old message must not be given up at its first stumble for its age.
        not_before=datetime.now(UTC),
        key=record.key,
        headers=record.headers,
        content_type=record.content_type,
    )
