"""Whether this gateway can durably accept, told by what its publishes really did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

RECENT = 5.0
"""Seconds for which a publish that succeeded, or a ping, speaks for the broker."""
PING_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that readiness depends on."""

    name: str
    ok: bool
    detail: str
    age: float | None
    """Seconds since this was found out; None: it is known at any time."""


class Health:
    """
    Ready = not draining, and the broker takes messages.

    A publish that just succeeded proves more than any probe. After a failure, or
    when nothing was published lately, a ping decides; its answer is kept for a
    moment, so that many probes are one ping.
    """

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        *,
        name: str = "broker",
        more: Callable[[], list[Check]] = list,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ping = ping
        self._name = name
        """What the publishes and pings speak for."""
        self._more = more
        self._clock = clock
        self._lock = asyncio.Lock()
        self._published_at: float | None = None
        self._failed_at: float | None = None
        self._failure = ""
        self._pinged_at: float | None = None
        self._ping_error: str | None = None
        self.draining = False

    def now(self) -> float:
        return self._clock()

    def published(self) -> None:
        """A publish was confirmed."""
        self._published_at = self._clock()
        self._failed_at = None

    def failed(self, reason: str) -> None:
        """A publish failed through no fault of its message."""
        self._failed_at = self._clock()
        self._failure = reason

    async def checks(self) -> list[Check]:
        """Every check, the broker's by ping if nothing newer speaks for it. Never raises."""
        draining = Check(
            name="serving", ok=not self.draining, detail="draining" if self.draining else "ok", age=None
        )
        return [draining, await self._broker(), *self._more()]

    async def _broker(self) -> Check:
        now = self._clock()
        if self._published_at is not None and self._failed_at is None and now - self._published_at < RECENT:
            return Check(name=self._name, ok=True, detail="a publish succeeded", age=now - self._published_at)
        async with self._lock:
            if self._stale():
                await self._probe()
        now = self._clock()
        pinged_at = self._pinged_at if self._pinged_at is not None else now
        if self._ping_error is None:
            return Check(name=self._name, ok=True, detail="answers a ping", age=now - pinged_at)
        detail = self._ping_error
        if self._failed_at is not None:
            detail += f"; the last publish failed {now - self._failed_at:.1f} s ago: {self._failure}"
        return Check(name=self._name, ok=False, detail=detail, age=now - pinged_at)

    def _stale(self) -> bool:
        if self._pinged_at is None or self._clock() - self._pinged_at >= 1.0:
            return True
        return self._failed_at is not None and self._failed_at > self._pinged_at

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self._ping()
            self._ping_error = None
        except TimeoutError:
            self._ping_error = f"the broker does not answer within {PING_TIMEOUT:.0f} s"
        except Exception as error:
            # Whatever it is, a publish would meet it, too: not ready, and why.
            self._ping_error = f"{type(error).__name__}: {error}"
        self._pinged_at = self._clock()
