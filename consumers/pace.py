"""A limit on messages per second."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST = 0.1
"""Seconds' worth of messages that may go at once: a batch of a tenth, ten times a second."""


class RateLimit:
    """
    A token bucket: `reserve` takes tokens before messages are received, `refund` gives back the rest.

    Small on purpose: what was not used in an idle minute must not hit the destination at once.
    """

    def __init__(self, rate: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate = rate
        self._tokens = 1.0
        self._at = clock()

    @property
    def rate(self) -> float | None:
        """Messages per second; None: no limit."""
        return self._rate

    def change(self, rate: float | None) -> None:
        self._refill()
        self._rate = rate

    def closed_for(self) -> float:
        """Seconds until the next message may be taken."""
        if self._rate is None:
            return 0.0
        self._refill()
        return max(0.0, (1.0 - self._tokens) / self._rate)

    def reserve(self, count: int) -> int:
        """How many of `count` messages may be taken now, at least 1: ask `closed_for` first."""
        if self._rate is None:
            return count
        self._refill()
        granted = max(1, min(count, int(self._tokens)))
        self._tokens -= granted
        return granted

    def refund(self, count: int) -> None:
        """So many of those reserved were not taken."""
        if self._rate is not None:
            self._tokens += count

    def _refill(self) -> None:
        now = self._clock()
        if self._rate is not None:
            full = max(1.0, self._rate * BURST)
            self._tokens = min(full, self._tokens + (now - self._at) * self._rate)
        self._at = now
