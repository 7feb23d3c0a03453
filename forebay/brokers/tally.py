"""One line in the log for many events of a kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

EVERY = 1.0
"""Seconds between two lines."""


class Tally:
    """
    Counts what may happen thousands of times at once, and says it once a second at most.

    `say` gets the `count`, and the fields of the first event that it stands for. It is
    called a second after that one, and by `close` for what was not said yet. For the
    thread of the event loop only.
    """

    def __init__(self, say: Callable[..., object]) -> None:
        self._say = say
        self._count = 0
        self._first: dict[str, Any] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, **first: Any) -> None:
        """Count one more; `first` is what to say of it, should it be the first."""
        if self._timer is None:
            self._first = first
            self._timer = asyncio.get_running_loop().call_later(EVERY, self.close)
        self._count += 1

    def close(self) -> None:
        """Say now what there is to say."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        count, self._count = self._count, 0
        self._say(count=count, **self._first)
