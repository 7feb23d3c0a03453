"""What may be lent of the partitions that are ours, in which order, and what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from aiokafka.structs import TopicPartition

from forebay.brokers.api import Delivery, Share
from forebay.brokers.kafka import copies
from forebay.brokers.kafka.partition import Epoch, Receipt


def lendable(epochs: Iterable[Epoch]) -> Iterator[Epoch]:
    for epoch in epochs:
        if not (epoch.over or epoch.surplus or epoch.claimed_free) and epoch.waits:
            yield epoch


def on_loan(epochs: Iterable[Epoch]) -> int:
    return sum(len(e.lent) + e.busy for e in epochs)


def next_due(epochs: Iterable[Epoch], now: int) -> float | None:
    """Seconds until the next of the failed messages is to be tried again."""
    due = (epoch.parking.next_due(now) for epoch in lendable(epochs))
    return min(((at - now) / 1e6 for at in due if at is not None), default=None)


def available(epochs: Iterable[Epoch], target: int, now: int) -> int:
    """How many may be lent now; counted no further than `target`."""
    found = 0
    for epoch in lendable(epochs):
        found += len(epoch.lendable(target - found, now))
        if found >= target:
            break
    return found


def lend(epochs: Iterable[Epoch], count: int, queue: str, now: int) -> list[Delivery]:
    """Up to `count`, from the partition whose first message is the oldest one."""
    out: list[Delivery] = []
    for epoch in sorted(lendable(epochs), key=lambda e: e.oldest):
        entries = epoch.lendable(count - len(out), now)
        for offset, incoming in entries:
            delivery = copies.delivery_of(incoming, queue, Receipt(epoch, offset))
            epoch.lend(offset, incoming, delivery)
            out.append(delivery)
        epoch.drop(entries)
    return out


def share(
    epochs: Mapping[TopicPartition, Epoch], ends: Mapping[TopicPartition, int], queue: str, now: int
) -> Share:
    """
    What these partitions hold. `ends`: how far they reach, when it was asked last.

    What was not read yet of a retry topic counts as scheduled.
    """
    waiting = scheduled = in_hand = 0
    oldest: list[datetime] = []
    for tp, epoch in epochs.items():
        in_hand += len(epoch.lent) + epoch.busy
        later = sum(incoming.due > now for _, incoming in epoch.ready)
        parked = [head for head in epoch.parking.heads.values() if not head.lent]
        not_due = sum(head.due > now for head in parked)
        scheduled += later + not_due
        waiting += (
            len(epoch.ready) - later + len(parked) - not_due + epoch.parking.set_aside + len(epoch.stuck)
        )
        unread = max(0, ends.get(tp, 0) - epoch.tracker.next - epoch.tracker.to_skip)
        if tp.topic == queue:
            waiting += unread
        else:
            scheduled += unread
        messages = [d.message for d, _ in epoch.lent.values()]
        messages += [incoming.decoded.message for _, incoming in epoch.ready[:1]]
        messages += [head.incoming.decoded.message for head in parked]
        oldest += [m.accepted_at for m in messages]
    known = epochs.keys() <= ends.keys()
    return Share(
        in_hand=in_hand,
        waiting=waiting if known else None,
        scheduled=scheduled if known else None,
        oldest_age=(datetime.now(UTC) - min(oldest)).total_seconds() if oldest else None,
    )
