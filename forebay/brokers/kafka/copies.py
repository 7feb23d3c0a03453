"""From a settlement to the record that it leaves behind, and from a record to a delivery."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from forebay.brokers import wire
from forebay.brokers.api import Attempt, DeadLetter, Death, Delivery, Retry, first_delivery
from forebay.brokers.kafka.partition import Receipt
from forebay.brokers.kafka.records import DUE, HOP, Incoming, Outgoing, next_hop, outgoing
from forebay.brokers.kafka.topics import retry_topic
from forebay.brokers.naming import dead_letter_queue, is_dead_letter_queue, origin_queue
from forebay.message import Message


def delivery_of(incoming: Incoming, queue: str, receipt: Receipt) -> Delivery:
    d = incoming.decoded
    made = first_delivery(d.message, queue, receipt)
    made.attempt = d.attempt
    made.deferrals = d.deferrals
    made.death = d.death
    made.history = d.history
    return made


def copy_of(s: Retry | DeadLetter, queue: str, incoming: Incoming, delays: Sequence[float]) -> Outgoing:
    """What Retry and DeadLetter write before the original is let go."""
    d = incoming.decoded
    if isinstance(s, Retry):
        again = replace(d, attempt=d.attempt + 1, history=s.history)
        if s.delay <= 0:
            # What had to wait before its first attempt has waited.
            return _copy(queue, again, {DUE: "1"})
        now = _now()
        return _later(queue, again, now, now + int(s.delay * 1e6) + 1, delays)
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


def delayed(queue: str, message: Message, now: int, due: int, delays: Sequence[float]) -> Outgoing:
    """A message that is published, and due later."""
    topic, times = _waiting(queue, now, due, delays)
    return outgoing(topic, message, wire.encode(message) | times)


def _later(queue: str, d: wire.Decoded, now: int, due: int, delays: Sequence[float]) -> Outgoing:
    topic, times = _waiting(queue, now, due, delays)
    return _copy(topic, d, times)


def _waiting(queue: str, now: int, due: int, delays: Sequence[float]) -> tuple[str, dict[str, str]]:
    """The retry topic where it waits next. A dead-letter queue has none: there it waits in place."""
    if is_dead_letter_queue(queue):
        return queue, {DUE: str(due)}
    delay, hop_at = next_hop(now, due, delays)
    return retry_topic(queue, delay), {DUE: str(due), HOP: str(hop_at)}


def hop(queue: str, incoming: Incoming, now: int, delays: Sequence[float]) -> Outgoing:
    """The same message, counted as before, one topic further."""
    return _later(queue, incoming.decoded, now, incoming.due, delays)


def foreign(queue: str, incoming: Incoming) -> Outgoing:
    d = incoming.decoded
    assert d.death is not None
    return dead(origin_queue(queue), d.message, d.death)


def dead(queue: str, message: Message, death: Death) -> Outgoing:
    decoded = wire.Decoded(message=message, attempt=1, deferrals=0, death=death)
    return _copy(dead_letter_queue(queue), decoded, {DUE: "1"})


def _copy(topic: str, d: wire.Decoded, times: dict[str, str]) -> Outgoing:
    def headers(death: Death | None, history: tuple[Attempt, ...]) -> dict[str, str]:
        said = wire.encode(d.message, attempt=d.attempt, deferrals=d.deferrals, death=death, history=history)
        return said | times

    def lighter() -> Iterator[Mapping[str, str]]:
        return (headers(death, history) for death, history in wire.lighter(d.death, d.history))

    return outgoing(topic, d.message, headers(d.death, d.history), lighter)


def _now() -> int:
    return int(datetime.now(UTC).timestamp() * 1e6)
