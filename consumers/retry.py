"""When a failed message is tried again, and when it is given up."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Protocol

from consumers.settings import RetrySettings


class RetryPolicy(Protocol):
    def next_delay(self, attempt: int, error: Exception, age: float) -> float | None:
        """
        Seconds to wait after failed attempt number `attempt` (from 1); None gives up.

        `age` is the time since the message could first be delivered, in seconds.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of what `forebay explain` prints: an attempt and the wait after it fails."""

    attempt: int
    longest_delay: float
    """No delay after this attempt is longer; on average it is half of this."""
    latest: float
    """Seconds after the first attempt at which the next one is made, if every delay is the longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialBackoff:
    """
    Delays that double, up to a cap, with full jitter.

    The k-th delay is uniform on [0, min(cap, base * 2**(k - 1))] seconds. Full
    jitter spreads a burst of failures best (Brooker, "Exponential Backoff And
    Jitter", 2015).

    `max_age` ends a message only from its second failure on: a queue that waited
    out an outage of a day must not be thrown away at its first stumble.
    """

    max_attempts: int = 12
    base: float = 1.0
    cap: float = 600.0
    max_age: float = 86_400.0
    rng: random.Random = field(default_factory=random.Random, repr=False)

    @classmethod
    def of(cls, settings: RetrySettings) -> ExponentialBackoff:
        return cls(
            max_attempts=settings.max_attempts,
            base=settings.base,
            cap=settings.cap,
            max_age=settings.max_age,
        )

    def next_delay(self, attempt: int, error: Exception, age: float) -> float | None:
        if attempt >= self.max_attempts or (attempt > 1 and age > self.max_age):
            return None
        return self.rng.uniform(0.0, self.longest_delay(attempt))

    def longest_delay(self, attempt: int) -> float:
        return _ceiling(self.base, self.cap, attempt)

    def schedule(self) -> list[Step]:
        """Every attempt that fails and is followed by another one."""
        steps = []
        latest = 0.0
        for attempt in range(1, self.max_attempts):
            delay = self.longest_delay(attempt)
            latest += delay
            steps.append(Step(attempt=attempt, longest_delay=delay, latest=latest))
        return steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Forever:
    """Never gives up. For the archiver: a dead letter has nowhere further to go."""

    base: float = 1.0
    cap: float = 600.0
    rng: random.Random = field(default_factory=random.Random, repr=False)

    def next_delay(self, attempt: int, error: Exception, age: float) -> float | None:
        return self.rng.uniform(0.0, _ceiling(self.base, self.cap, attempt))


def _ceiling(base: float, cap: float, attempt: int) -> float:
    # 2.0 ** 1024 overflows; by 2**60 any cap has long been reached.
    return min(cap, base * 2.0 ** min(attempt - 1, 60))
