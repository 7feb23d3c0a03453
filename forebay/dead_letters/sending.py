"""Dead letters back on their broker: as messages, page by page."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from forebay.errors import BrokerError, MessageTooLarge, QueueNotFound
from forebay.message import Message

if TYPE_CHECKING:
    from forebay.brokers.api import Publisher
    from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterRecord, DeadLetterStore

TIMEOUT = 30.0
"""Seconds that a broker may take to confirm a page."""


@dataclass(slots=True)
class Sent:
    """What became of one page."""

    confirmed: list[DeadLetterRecord] = field(default_factory=list)
    refused: list[DeadLetterRecord] = field(default_factory=list)
    """Not certainly there; sending them again harms none that are."""
    why: str = ""
    """The first reason for a refusal."""
    blocked: bool = False
    """The broker is away or full: more would fare no better."""

    def note(self, error: BrokerError) -> None:
        self.why = self.why or str(error)
        # The others are about one message, or one queue, and no reason to leave the rest where it is.
        self.blocked |= not isinstance(error, (QueueNotFound, MessageTooLarge))


async def send_back(publisher: Publisher, records: Sequence[DeadLetterRecord]) -> Sent:
    """Publish each to the queue where it was given up, and nowhere else."""
    by_queue: dict[str, list[DeadLetterRecord]] = defaultdict(list)
    for record in records:
        by_queue[record.queue].append(record)
    sent = Sent()
    for queue, mine in by_queue.items():
        try:
            results = await publisher.publish(queue, [as_message(r) for r in mine], timeout=TIMEOUT)
        except BrokerError as error:
            sent.note(error)
            sent.refused += mine
            continue
        for record, result in zip(mine, results, strict=True):
            if result.error is None:
                sent.confirmed.append(record)
            else:
                sent.note(result.error)
                sent.refused.append(record)
    return sent


def as_message(record: DeadLetterRecord) -> Message:
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


def pages(
    store: DeadLetterStore, which: DeadLetterFilter, *, size: int, bodies: bool
) -> Iterator[list[DeadLetterRecord]]:
    """All that match, the oldest first. What is marked meanwhile is not skipped and not seen twice."""
    last = None
    while page := store.list(which, limit=size, after=last, bodies=bodies):
        yield page
        last = page[-1]


async def first_of(stop: asyncio.Event, seconds: float) -> bool:
    """Sleep, but no longer than until `stop` is set; return whether it is."""
    if seconds > 0:
        try:
            await asyncio.wait_for(stop.wait(), seconds)
        except TimeoutError:
            pass
    return stop.is_set()
