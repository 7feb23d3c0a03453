"""
How the batches of a queue with `order = "key"` are written, so that no failure turns two messages round.

Pure: who writes and settles asks here what may be written next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from forebay.brokers.api import Delivery, Release, Retry, Settlement


class Waves:
    """
    One batch, cut into calls of the sink that hold no key twice.

    The first message of each key is in the first wave, the second in the second, and so on; those
    without a key are all in the first. Once one is to be tried again or handed back, what is behind
    it in this batch is handed back too.
    """

    def __init__(self, batch: Sequence[Delivery]) -> None:
        self._left = list(batch)
        self._stopped: set[str] = set()

    def next(self) -> list[Delivery]:
        """What the sink is to be given next; nothing when all is written or has to go back."""
        wave: list[Delivery] = []
        left: list[Delivery] = []
        seen: set[str] = set()
        for d in self._left:
            key = d.message.key
            if key is None or (key not in seen and key not in self._stopped):
                wave.append(d)
            else:
                left.append(d)
            if key is not None:
                seen.add(key)
        self._left = left
        return wave

    def decided(self, settlements: Iterable[Settlement]) -> None:
        """What was decided about the last wave."""
        self._stopped |= keys_sent_back(settlements)

    def rest(self) -> list[Settlement]:
        """For what was not written: it goes back, uncounted."""
        left, self._left = self._left, []
        return [Release(d) for d in left]


def keys_sent_back(settlements: Iterable[Settlement]) -> set[str]:
    """The keys of which something comes again."""
    return {
        key
        for s in settlements
        if isinstance(s, (Retry, Release)) and (key := s.delivery.message.key) is not None
    }


@dataclass(slots=True)
class _Hold:
    unsettled: int = 0
    """Batches in which something of the key was decided to go back, and `settle` was not called yet."""
    until: int = 0
    """The last call of `receive` that may have brought something from behind."""


class Holds:
    """
    Which keys must go back unwritten, because something before them in an earlier batch went back.

    While one batch is written, the next ones are received. What they hold of a key was lent before it
    was known that an earlier message failed. From the call of `settle` on the subscription returns
    the key from the failed message on, and only when we hold nothing of it: so a hold ends with the
    last call of `receive` that had returned before.
    """

    def __init__(self) -> None:
        self._returned = 0
        self._holds: dict[str, _Hold] = {}

    def returned(self) -> int:
        """The number of a call of `receive` that has just returned."""
        self._returned += 1
        return self._returned

    def split(
        self, batch: Sequence[Delivery], calls: Sequence[int]
    ) -> tuple[list[Delivery], list[Settlement]]:
        """Of a batch whose turn it is: what may be written, what goes back. `calls`: which brought each."""
        if not self._holds:
            return list(batch), []
        first = min(calls, default=0)
        self._holds = {key: h for key, h in self._holds.items() if h.unsettled or h.until >= first}
        live: list[Delivery] = []
        back: list[Settlement] = []
        behind: set[str] = set()
        for d, call in zip(batch, calls, strict=True):
            key = d.message.key
            hold = None if key is None else self._holds.get(key)
            if key is not None and hold is not None and (hold.unsettled or hold.until >= call):
                behind.add(key)
            if key in behind:
                back.append(Release(d))
            else:
                live.append(d)
        return live, back

    def decided(self, settlements: Iterable[Settlement]) -> None:
        """What was decided about a batch, and is not settled yet."""
        for key in keys_sent_back(settlements):
            self._holds.setdefault(key, _Hold()).unsettled += 1

    def settling(self, settlements: Iterable[Settlement]) -> None:
        """Right before `settle` is called; to be told in the order in which it was decided."""
        for key in keys_sent_back(settlements):
            hold = self._holds[key]
            hold.unsettled -= 1
            hold.until = self._returned
