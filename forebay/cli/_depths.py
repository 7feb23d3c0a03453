"""What the queues hold, as the reading commands show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forebay.brokers.naming import dead_letter_queue
from forebay.errors import QueueNotFound

if TYPE_CHECKING:
    from forebay.brokers.api import Broker, Depth


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One queue and its dead-letter queue at one moment. None: unknown, or no such queue."""

    queue: str
    depth: Depth | None
    dead: Depth | None
    declared: bool = True

    @property
    def held(self) -> int | None:
        """Everything in both."""
        if not self.declared:
            return 0
        live, dead = total(self.depth), total(self.dead)
        return None if live is None or dead is None else live + dead

    def as_json(self) -> dict[str, Any]:
        depth = self.depth
        return {
            "queue": self.queue,
            "declared": self.declared,
            "waiting": depth and depth.waiting,
            "scheduled": depth and depth.scheduled,
            "in_hand": depth and depth.in_hand,
            "bytes": depth and depth.bytes,
            "oldest_age": depth and depth.oldest_age,
            "dead": total(self.dead),
        }


def total(depth: Depth | None) -> int | None:
    """All that a queue holds; None when a part of it is unknown."""
    if depth is None:
        return None
    parts = (depth.waiting, depth.scheduled, depth.in_hand)
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


async def look(broker: Broker, queues: Iterable[str]) -> list[QueueDepth]:
    """
    Ask for each queue, and only then for its dead-letter queue.

    In this order a message that dies in between is counted twice, in the other one not at all.

    Raises:
        BrokerUnavailable.
    """
    return [await _look(broker, queue) for queue in queues]


async def _look(broker: Broker, queue: str) -> QueueDepth:
    try:
        depth = await broker.depth(queue)
    except QueueNotFound:
        return QueueDepth(queue, None, None, declared=False)
    try:
        dead = await broker.depth(dead_letter_queue(queue))
    except QueueNotFound:
        return QueueDepth(queue, depth, None)
    return QueueDepth(queue, depth, dead)


async def known_queues(broker: Broker, named: Iterable[str]) -> list[str]:
    """The queues of the settings and those that the broker has."""
    return sorted({*named, *(await broker.declared_queues() or ())})
