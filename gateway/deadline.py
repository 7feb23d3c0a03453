"""A deadline that moves all the time, at the price of an assignment."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Deadline:
    """
    Calls `expired` once `at` has come, on the loop's clock.

    There is one timer at most. It is only set anew for an earlier deadline; when it goes off before
    the deadline, which has moved meanwhile, it is set for that one. Setting and
    cancelling a timer for every request costs more than all else that is done for a connection.
    """

    __slots__ = ("_armed_for", "_expired", "_loop", "_timer", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self.at = math.inf
        """Read only; `clear` may be written as `at = math.inf`."""
        self._loop = loop
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = math.inf

    def set(self, at: float) -> None:
        self.at = at
        if at < self._armed_for:
            self._arm(at)

    def after(self, seconds: float) -> None:
        self.set(self._loop.time() + seconds)

    def clear(self) -> None:
        """There is none for now."""
        self.at = math.inf

    def cancel(self) -> None:
        """There is none any more: nothing is kept alive by a timer."""
        self.at = self._armed_for = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        self._armed_for = math.inf
        if self.at == math.inf:
            return
        # A loop's timer may go off a little early: its clock has a resolution.
        if self.at <= self._loop.time() + 0.001:
            self.at = math.inf
            self._expired()
        else:
            self._arm(self.at)
