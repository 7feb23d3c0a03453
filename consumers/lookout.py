"""Sees early that a destination is back, where asking costs next to nothing."""

from __future__ import annotations

import asyncio

from consumers.breaker import BreakerState, CircuitBreaker
from consumers.worker import wait_for
from forebay.sinks import Sink

EVERY = 0.5
"""Seconds between two questions."""


class Lookout:
    """
    Asks a database whether it is there, twice a second, while its breaker is open.

    The breaker waits longer and longer before it lets a message through, and a message that finds a
    dead database is work for both. To be refused a connection is not. So the breaker is told at once
    when the answer changes from no to yes; a real message then is the proof. A destination that
    answers and still takes nothing is left to the breaker's own pace.
    """

    def __init__(self, breaker: CircuitBreaker, sink: Sink) -> None:
        self._breaker = breaker
        self._sink = sink
        self._opened = asyncio.Event()
        breaker.on_change(self._opened.set)

    async def run(self) -> None:
        """Look for ever; to be cancelled."""
        absent = False
        while True:
            if self._breaker.state is not BreakerState.OPEN or self._breaker.misconfigured:
                absent = False
                self._opened.clear()
                await wait_for(self._opened, EVERY if self._breaker.state is BreakerState.HALF_OPEN else 60.0)
                continue
            await asyncio.sleep(EVERY)
            try:
                await self._sink.probe()
            except Exception:
                absent = True
            else:
                if absent:
                    absent = False
                    self._breaker.look_again()


def is_cheap(sink: Sink) -> bool:
    """Whether its `probe` may be called twice a second: for a database yes, for a service no."""
    return bool(getattr(sink, "cheap_probe", False))
