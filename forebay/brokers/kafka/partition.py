"""One partition during one epoch: what was read of it, what is on loan, what is finished."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from forebay.brokers.api import Delivery
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
    ready: list[tuple[int, Incoming]] = field(default_factory=list)
    """Read and not on loan, by offset."""
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

    @property
    def progress(self) -> tuple[int, str]:
        """What a commit of it would say now."""
        return self.tracker.position, self.tracker.metadata()

    @property
    def in_hand(self) -> bool:
        return bool(self.lent) or self.busy > 0

    def put(self, offset: int, incoming: Incoming) -> None:
        bisect.insort(self.ready, (offset, incoming), key=lambda entry: entry[0])

    def free_stuck(self, now: float) -> None:
        """Those whose time has come are ready again."""
        for entry in [e for e in self.stuck if e[0] <= now]:
            self.stuck.remove(entry)
            self.put(*entry[1:])

    def release_all(self) -> None:
        for offset, (_, incoming) in self.lent.items():
            self.put(offset, incoming)
        self.lent.clear()


@dataclass(frozen=True, slots=True)
class Receipt:
    epoch: Epoch
    offset: int
