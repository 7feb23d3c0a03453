"""What waits behind a failed message of its key, in one partition of an ordered subscription."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from forebay.brokers.api import Attempt
from forebay.brokers.kafka.records import Incoming

MOST_HEADS = 60
"""Failed messages of one partition at once; beyond, nothing but these is lent of it."""
MOST_SET_ASIDE = 1_000
"""Messages set aside behind these; beyond, the partition is not read further."""

Entry = tuple[int, Incoming]
"""A record and its offset."""


class Failed(NamedTuple):
    """What a commit says of a message that is to be tried again."""

    attempt: int
    """The one that comes next."""
    due: int
    """Microseconds."""


@dataclass(slots=True, eq=False)
class Head:
    """The failed message that its key waits for."""

    offset: int
    incoming: Incoming
    due: int
    lent: bool = False
    behind: list[Entry] = field(default_factory=list)
    """By offset."""


class Parking:
    """
    The failed messages of a partition, each with what is set aside behind it.

    They stay unfinished, so that the commit stays below them; how often each was tried, and when it
    is due, travels in the commit's metadata (`failed`).
    """

    def __init__(self, *, ordered: bool, failed: dict[int, Failed] | None = None) -> None:
        self._ordered = ordered
        self.failed = failed or {}
        """By offset; also what an earlier owner left and we have not read yet."""
        self.heads: dict[str, Head] = {}
        self.set_aside = 0

    @property
    def full(self) -> bool:
        return len(self.heads) >= MOST_HEADS

    @property
    def crowded(self) -> bool:
        return self.set_aside >= MOST_SET_ASIDE

    def received(self, offset: int, incoming: Incoming) -> Incoming | None:
        """What becomes of a record that was just read: it is ready, or (None) waits as a head."""
        failed = self.failed.get(offset)
        if failed is None:
            return incoming
        if incoming.foreign:
            del self.failed[offset]
            return incoming
        if incoming.decoded.message.key is None or not self._ordered:
            return _counted(incoming, failed.attempt)
        self.fail(offset, incoming, failed)
        return None

    def fail(
        self, offset: int, incoming: Incoming, failed: Failed, history: tuple[Attempt, ...] = ()
    ) -> None:
        """It failed, and is to be tried again when it is due. The `history` is known to us alone."""
        key = incoming.decoded.message.key
        assert key is not None
        self.failed[offset] = failed
        incoming = _counted(incoming, failed.attempt, history)
        head = self.heads.get(key)
        if head is not None and head.offset < offset:
            self._put_behind(head, (offset, incoming))
            return
        new = Head(offset, incoming, failed.due)
        if head is not None:
            new.behind = head.behind
            if head.offset > offset and not head.lent:
                self._put_behind(new, (head.offset, head.incoming))
        self.heads[key] = new

    def bars(self, offset: int, incoming: Incoming) -> bool:
        """Whether it has to wait behind one that failed; if so, it is set aside."""
        if not self.heads or (key := incoming.decoded.message.key) is None:
            return False
        head = self.heads.get(key)
        if head is None or head.offset >= offset:
            return False
        self._put_behind(head, (offset, incoming))
        return True

    def _put_behind(self, head: Head, entry: Entry) -> None:
        bisect.insort(head.behind, entry, key=lambda e: e[0])
        self.set_aside += 1

    def due(self, now: int) -> list[Head]:
        return [h for h in self.heads.values() if h.due <= now and not h.lent]

    def next_due(self, now: int) -> int | None:
        """When the next of those that wait will be due; None if none is due later."""
        return min((h.due for h in self.heads.values() if h.due > now and not h.lent), default=None)

    def lent(self, offset: int, incoming: Incoming) -> None:
        if (head := self._head_at(offset, incoming)) is not None:
            head.lent = True

    def handed_back(self, offset: int, incoming: Incoming) -> bool:
        """Whether it was a head, which waits here and not among what is ready."""
        head = self._head_at(offset, incoming)
        if head is None:
            return False
        head.lent = False
        return True

    def end(self, offset: int, incoming: Incoming) -> Sequence[Entry]:
        """It is settled for good. Returns what is ready now, because nothing is before it."""
        if self.failed.pop(offset, None) is None:
            return ()
        head = self._head_at(offset, incoming)
        if head is None:
            return ()
        key = head.incoming.decoded.message.key
        assert key is not None
        del self.heads[key]
        self.set_aside -= len(head.behind)
        for i, (at, entry) in enumerate(head.behind):
            if (failed := self.failed.get(at)) is not None:
                # It failed as well, while it was in hand with the other.
                next_head = Head(at, entry, failed.due, behind=head.behind[i + 1 :])
                self.heads[key] = next_head
                self.set_aside += len(next_head.behind)
                return head.behind[:i]
        return head.behind

    def _head_at(self, offset: int, incoming: Incoming) -> Head | None:
        key = incoming.decoded.message.key
        head = None if key is None else self.heads.get(key)
        return head if head is not None and head.offset == offset else None


def _counted(incoming: Incoming, attempt: int, history: tuple[Attempt, ...] = ()) -> Incoming:
    return replace(incoming, decoded=replace(incoming.decoded, attempt=attempt, history=history))
