"""Stops taking messages for a destination that is down, and starts again gently."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from enum import StrEnum

from consumers.settings import BreakerSettings
from forebay.errors import SinkMisconfigured, SinkUnavailable

RETRY_AFTER_CAP = 300.0
"""A destination that asks for more silence than this is asked again after this, in seconds."""


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """
    Decides whether, and how much, may be sent to one destination.

    `failure_threshold` failed calls in a row open it: nothing is sent for
    `recovery_time` seconds. Then it is half open: one real message is let through.
    Success closes it, and the batches grow again 1, 2, 4… up to their full size,
    so that a destination that has just come up is not thrown over by the backlog.
    Failure, or one failure while the batches grow, opens it for twice as long, up
    to `max_recovery_time`. Each wait is shortened at random by up to a quarter, so
    that several processes do not knock together.

    A destination that refuses us as such (SinkMisconfigured) opens it at the first
    failure, for `max_recovery_time`: someone must act, and knocking often helps nobody.
    One that says when to come again (Retry-After) opens it at the first failure too, for
    as long.

    One breaker is shared by all who write to a destination. Every call begins with
    `begin()` and ends with one of `succeeded`, `failed` and `abandoned`.
    """

    def __init__(
        self,
        settings: BreakerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._threshold = settings.failure_threshold
        self._base = settings.recovery_time
        self._cap = max(settings.recovery_time, settings.max_recovery_time)
        self._clock = clock
        self._rng = rng or random.Random()
        self._failures = 0
        self._recovery = self._base
        self._open_until: float | None = None
        self._probe: int | None = None
        self._ramp: int | None = None
        # Calls begun before the breaker opened tell nothing about the time after:
        # each opening starts a new round, and only calls of the round count.
        self._round = 0
        self._error: Exception | None = None
        self._down_since: float | None = None
        self._listeners: list[Callable[[], None]] = []

    # ---- what callers ask

    @property
    def state(self) -> BreakerState:
        if self._open_until is None:
            return BreakerState.CLOSED
        if self._clock() < self._open_until:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    @property
    def reason(self) -> str | None:
        """Why it is not closed, in the destination's words; None while it is closed."""
        return None if self._error is None else str(self._error) or type(self._error).__name__

    @property
    def misconfigured(self) -> bool:
        """Whether it waits for a person rather than for the destination."""
        return isinstance(self._error, SinkMisconfigured)

    @property
    def down_for(self) -> float | None:
        """Seconds since it was closed last; None while it is."""
        return None if self._down_since is None else self._clock() - self._down_since

    def retry_after(self) -> float:
        """Seconds until a call may begin: 0.0 is now, infinity is "when the probe under way has ended"."""
        if self._open_until is None:
            return 0.0
        if (left := self._open_until - self._clock()) > 0:
            return left
        return math.inf if self._probe is not None else 0.0

    def batch_limit(self, batch_size: int) -> int:
        """How many messages one call may carry now; ask `retry_after` first whether one may begin."""
        if self._open_until is not None:
            return 1
        return batch_size if self._ramp is None else min(self._ramp, batch_size)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of state and at the end of every probe."""
        self._listeners.append(listener)

    # ---- one call

    def begin(self) -> int | None:
        """A ticket for one call, or None if none may begin now."""
        match self.state:
            case BreakerState.CLOSED:
                return self._round
            case BreakerState.HALF_OPEN if self._probe is None:
                self._probe = self._round
                return self._round
            case _:
                return None

    def holds(self, ticket: int) -> bool:
        """Whether a call that has its ticket, but has not been made, may still be made."""
        return ticket == self._round

    def succeeded(self, ticket: int, batch_size: int) -> None:
        """The call worked. `batch_size` is the full size that the ramp grows to."""
        if ticket != self._round:
            return
        self._failures = 0
        if self._open_until is not None:
            self._open_until = self._probe = self._error = self._down_since = None
            self._ramp = 2
            self._changed()
        elif self._ramp is not None:
            self._ramp *= 2
        if self._ramp is not None and self._ramp >= batch_size:
            self._ramp = None
            self._recovery = self._base

    def failed(self, ticket: int, error: Exception) -> None:
        """The destination as a whole did not take the call."""
        if ticket != self._round:
            return
        self._failures += 1
        misconfigured = isinstance(error, SinkMisconfigured)
        probing = self._open_until is not None or self._ramp is not None
        asks_for_time = isinstance(error, SinkUnavailable) and error.retry_after is not None
        if not (misconfigured or probing or asks_for_time or self._failures >= self._threshold):
            return
        wait = self._cap if misconfigured else self._recovery
        wait *= 1.0 - self._rng.random() / 4
        if isinstance(error, SinkUnavailable) and error.retry_after is not None:
            wait = max(wait, min(error.retry_after, RETRY_AFTER_CAP))
        self._open_until = self._clock() + wait
        self._recovery = min(self._cap, self._recovery * 2)
        self._probe = self._ramp = None
        if self._down_since is None:
            self._down_since = self._clock()
        self._round += 1
        self._error = error
        self._changed()

    def abandoned(self, ticket: int) -> None:
        """
        The call was never made, or cancelled: it taught us nothing.

        Of a call whose outcome has been told it is a harmless afterthought.
        """
        if ticket == self._probe:
            self._probe = None
            self._changed()

    def look_again(self) -> None:
        """
        Half open now rather than when the wait is over: there is a sign that the destination is back.

        Not for one that refuses us as such, nor for one that asked for silence.
        """
        if self.state is BreakerState.OPEN and not self.misconfigured and not self.asked_for_silence:
            self._open_until = self._clock()
            self._changed()

    @property
    def asked_for_silence(self) -> bool:
        """Whether the destination itself said when to come again."""
        return isinstance(self._error, SinkUnavailable) and self._error.retry_after is not None

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
