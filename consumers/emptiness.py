"""Whether queues are certainly empty, and when a run that is to empty them is over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from forebay.figures import Figures, Place

K = TypeVar("K")

COMES_BACK_SOON = 60.0
"""Seconds. A failed message that is due again within them is waited for; one that is due later is left."""
ARRIVES = 3.0
"""Seconds that a message may be late when it comes back: brokers with a delay ladder hop by a second."""


@dataclass(slots=True)
class Emptiness(Generic[K]):
    """
    Which queues have been found empty beyond doubt.

    One look is not enough: a message on its way between two queues of a broker may be
    seen in neither, and what a consumer has taken since its last report is not in the
    report. So all figures have to be younger than the first look that found nothing.
    """

    since: dict[K, float] = field(default_factory=dict)
    """Since when a queue has been found empty at every look; by the clock."""
    certain: set[K] = field(default_factory=set)
    """Those that are certainly empty."""

    def saw(self, queue: K, empty: bool, *, age: float, now: float, between: float) -> None:
        """Note what one look found, by figures at most `age` seconds old; looks are `between` apart."""
        if not empty:
            self.since.pop(queue, None)
            self.certain.discard(queue)
            return
        if now - self.since.setdefault(queue, now) >= max(between, age):
            self.certain.add(queue)


@dataclass(slots=True)
class Returns:
    """When the messages that this process handed back for another attempt are due."""

    soon: float = -math.inf
    """The latest of those that are waited for; by the clock."""
    last: float = -math.inf
    """The latest of all."""
    clock: Callable[[], float] = time.monotonic

    def note(self, delay: float) -> None:
        due = self.clock() + delay
        self.last = max(self.last, due)
        if delay <= COMES_BACK_SOON:
            self.soon = max(self.soon, due)


class UntilEmpty:
    """
    Decides when queues have been emptied: nothing waits, nobody has anything in hand.

    What waits for its time does not count, but for messages that failed in this
    process and are due within COMES_BACK_SOON: who came to empty the queue would
    otherwise leave after the first hiccup. Messages that others handed back are
    theirs to wait for.
    """

    def __init__(
        self, returns: Returns, *, between: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._returns = returns
        self._between = between
        self._clock = clock
        self._empty: Emptiness[Place] = Emptiness()

    def over(self, places: Collection[Place], figures: Mapping[Place, Figures]) -> bool:
        """Whether all of `places` were empty at this look, and long enough before it."""
        now = self._clock()
        for place in places:
            found = figures.get(place)
            depth = found.depth if found else None
            self._empty.saw(
                place,
                depth is not None and depth.waiting == 0 and depth.in_hand == 0,
                age=_age(found) if found else 0.0,
                now=now,
                between=self._between,
            )
        return self._empty.certain.issuperset(places) and now > self._returns.soon + ARRIVES


def _age(figures: Figures) -> float:
    """
    Seconds by which what waits and what is in hand may be behind.

    `lag` counts where the broker tells what is in hand. Where consumers tell it, `lag` is that of messages
    on their way back from a delay, and whoever waits for one of those knows when it is due.
    """
    reported = figures.reported_age or 0.0
    return reported if "in_hand" in figures.reported else max(reported, figures.depth.lag)
