"""From a settlement to the record that it leaves behind, and from a record to a delivery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from forebay.brokers import wire
from forebay.brokers.api import DeadLetter, Death, Delivery, Retry
from forebay.brokers.kafka.partition import Receipt
from forebay.brokers.kafka.records import DUE, HOP, Incoming, Outgoing, next_hop, outgoing
from forebay.brokers.kafka.topics import retry_topic
from forebay.brokers.naming import dead_letter_queue, is_dead_letter_queue, origin_queue
from forebay.message import Message


def delivery_of(incoming: Incoming, queue: str, receipt: Receipt) -> Delivery:
    d = incoming.decoded
    return Delivery(
        message=d.message,
        queue=queue,
        attempt=d.attempt,
        deferrals=d.deferrals,
        death=d.death,
        history=d.history,
        receipt=receipt,
    )


def copy_of(s: Retry | DeadLetter, queue: str, incoming: Incoming, delays: Sequence[float]) -> Outgoing:
    """What Retry and DeadLetter write before the original is let go."""
    d = incoming.decoded
    if isinstance(s, Retry):
        headers = wire.encode(
            d.message, attempt=d.attempt + 1, deferrals=d.deferrals, death=d.death, history=s.history
        )
        if s.delay <= 0:
            # What had to wait before its first attempt has waited.
            headers[DUE] = "1"
            return outgoing(queue, d.message, headers)
        now = _now()
        return later(queue, d.message, headers, now, now + int(s.delay * 1e6) + 1, delays)
    message = d.message if s.new_id is None else replace(d.message, id=s.new_id)
    death = Death(
        failure=s.failure,
        queue=queue,
        attempts=d.attempt,
        died_at=datetime.now(UTC),
        original_id=None if s.new_id is None else d.message.id,
        history=s.history,
    )
    return dead(queue, message, death)


def later(
    queue: str, message: Message, headers: dict[str, str], now: int, due: int, delays: Sequence[float]
) -> Outgoing:
    """To the retry topic where it waits next. A dead-letter queue has none: there it waits in place."""
    headers[DUE] = str(due)
    if is_dead_letter_queue(queue):
        return outgoing(queue, message, headers)
    delay, hop_at = next_hop(now, due, delays)
    headers[HOP] = str(hop_at)
    return outgoing(retry_topic(queue, delay), message, headers)


def hop(queue: str, incoming: Incoming, now: int, delays: Sequence[float]) -> Outgoing:
    """The same message, counted as before, one topic further."""
    d = incoming.decoded
    headers = wire.encode(
        d.message, attempt=d.attempt, deferrals=d.deferrals, death=d.death, history=d.history
    )
    return later(queue, d.message, headers, now, incoming.due, delays)


def foreign(queue: str, incoming: Incoming) -> Outgoing:
    d = incoming.decoded
    assert d.death is not None
    return dead(origin_queue(queue), d.message, d.death)


def dead(queue: str, message: Message, death: Death) -> Outgoing:
    headers = wire.encode(message, death=death)
    headers[DUE] = "1"
    return outgoing(dead_letter_queue(queue), message, headers)


def _now() -> int:
    return int(datetime.now(UTC).timestamp() * 1e6)
