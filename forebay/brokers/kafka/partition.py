"""One partition during one epoch: what was read of it, what is on loan, what is finished."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from datetime import datetime

from forebay.brokers.api import Attempt, Delivery
from forebay.brokers.kafka.parking import Entry, Failed, Parking
from forebay.brokers.kafka.records import Incoming
from forebay.brokers.kafka.tracker import CommitTracker


@dataclass(slots=True, eq=False)
class Epoch:
    """
    Our time as the owner of one partition. A receipt refers to its epoch, never to the partition:

    aiokafka commits under the current generation, so that a late settlement would be
    taken for one of the new epoch, although somebody else read the partition between.
    """

    topic: str
    number: int
    tracker: CommitTracker
    parking: Parking
    ready: list[Entry] = field(default_factory=list)
    """Read, not on loan and behind no failed message, by offset."""
    lent: dict[int, tuple[Delivery, Incoming]] = field(default_factory=dict)
    stuck: list[tuple[float, int, Incoming]] = field(default_factory=list)
    """Records whose copies no topic takes, and when to try again, by the monotonic clock."""
    busy: int = 0
    """Records whose copies are being written."""
    committed: tuple[int, str] | None = None
    surplus: bool = False
    """Another consumer is to have it: nothing more is lent of it."""
    claimed_free: bool = False
    """The group was told that nothing of it is in hand: until it is dealt, nothing is lent of it."""
    over: bool = False
    _draining: set[str] = field(default_factory=set)
    """Keys of which something was sent back while more of them was on loan: that comes back first."""

    @property
    def progress(self) -> tuple[int, str]:
        """What a commit of it would say now."""
        return self.tracker.position, self.tracker.metadata(self.parking.failed)

    @property
    def in_hand(self) -> bool:
        return bool(self.lent) or self.busy > 0

    @property
    def waits(self) -> bool:
        """Whether there is anything that could be lent, now or later."""
        return bool(self.ready or self.parking.heads)

    def waits_for_its_head(self, now: int) -> bool:
        """Whether the first of what is ready is due later, and all behind it waits with it."""
        return bool(self.ready) and self.ready[0][1].due > now

    @property
    def oldest(self) -> datetime:
        """When the first of what waits was accepted; ask only where something does."""
        first = [incoming for _, incoming in self.ready[:1]]
        first += [head.incoming for head in self.parking.heads.values()]
        return min(incoming.decoded.message.accepted_at for incoming in first)

    def received(self, offset: int, incoming: Incoming) -> None:
        if self.tracker.receive(offset):
            ready = self.parking.received(offset, incoming) if self.parking.failed else incoming
            if ready is not None:
                self.ready.append((offset, ready))

    def lendable(self, count: int, now: int) -> list[Entry]:
        """
        Up to `count` of what may be lent now, the failed ones that are due first.

        What has to wait behind a failed one is set aside on the way.
        """
        if self._draining:
            self._draining.intersection_update([i.decoded.message.key for _, i in self.lent.values()])
        elif not self.parking.heads:
            return self._first(count, now)
        due = [(h.offset, h.incoming) for h in self.parking.due(now)]
        found = [entry for entry in due if not self._drains(entry[1])][:count]
        if self.parking.full:
            return found
        looked_at = 0
        passed: list[Entry] = []
        for offset, incoming in self.ready:
            # The head of a partition is waited for: what follows is due later, or keeps its order.
            if len(found) >= count or incoming.due > now or incoming.foreign:
                break
            looked_at += 1
            if self.parking.bars(offset, incoming):
                continue
            passed.append((offset, incoming))
            if not self._drains(incoming):
                found.append((offset, incoming))
        if len(passed) < looked_at:
            self.ready[:looked_at] = passed
        return found

    def _first(self, count: int, now: int) -> list[Entry]:
        """As `lendable`, where nothing waits for a key."""
        found = self.ready[:count]
        for at, (_, incoming) in enumerate(found):
            if incoming.due > now or incoming.foreign:
                return found[:at]
        return found

    def _drains(self, incoming: Incoming) -> bool:
        return bool(self._draining) and incoming.decoded.message.key in self._draining

    def send_back(self, incoming: Incoming) -> None:
        """In order: nothing more of its key is lent before all of it that is on loan is settled."""
        if (key := incoming.decoded.message.key) is not None:
            self._draining.add(key)

    def lend(self, offset: int, incoming: Incoming, delivery: Delivery) -> None:
        self.lent[offset] = (delivery, incoming)
        if self.parking.heads:
            self.parking.lent(offset, incoming)

    def drop(self, lent: list[Entry]) -> None:
        """Forget among the ready ones these, which were lent."""
        count = len(lent)
        if self.ready[:count] == lent:
            del self.ready[:count]
        else:
            self.ready = [entry for entry in self.ready if entry[0] not in self.lent]

    def put(self, offset: int, incoming: Incoming) -> None:
        """It is in nobody's hand again."""
        if not self.parking.handed_back(offset, incoming):
            bisect.insort(self.ready, (offset, incoming), key=lambda entry: entry[0])

    def fail(self, offset: int, incoming: Incoming, due: int, history: tuple[Attempt, ...] = ()) -> None:
        """To be tried again when it is due, before anything else of its key."""
        self.parking.fail(offset, incoming, Failed(incoming.decoded.attempt + 1, due), history)

    def finish(self, offset: int, incoming: Incoming) -> None:
        """Settled for good."""
        self.tracker.finish(offset)
        if self.parking.failed and (free := self.parking.end(offset, incoming)):
            self.ready = sorted([*self.ready, *free], key=lambda entry: entry[0])

    def free_stuck(self, now: float) -> None:
        """Those whose time has come are ready again."""
        for entry in [e for e in self.stuck if e[0] <= now]:
            self.stuck.remove(entry)
            self.put(*entry[1:])

    def release_all(self) -> None:
        lent, self.lent = self.lent, {}
        self._draining.clear()
        for offset, (_, incoming) in lent.items():
            self.put(offset, incoming)


@dataclass(slots=True)
class Receipt:
    epoch: Epoch
    offset: int
