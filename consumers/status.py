"""What `snapshot()` says about each queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STALLED = 120.0
"""A step that takes longer is taken for stuck: readiness says so."""

PausedBy = Literal["operator", "suspicious", "schedule", "destination"]

WorkerState = Literal["waiting", "starting", "running", "paused", "reconnecting", "stopped"]
"""`waiting`: for an old broker to be empty of the queue, to keep its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """How the consumer of one queue (or the archiver of one dead-letter queue) is doing."""

    queue: str
    broker: str
    """Which broker it is on, by its identity."""
    draining: bool
    """It is an old broker, read beside the one in use until it is empty."""
    destination: str
    state: WorkerState
    paused_by: PausedBy | None
    """What keeps messages from being taken; None: nothing does."""
    pause_reason: str | None
    """Why nothing is taken, in words: the destination's, the operator's, ours."""
    needs_someone: bool
    """Waiting will not help: the destination refuses us as such, or someone has to resume the queue."""
    paused_for: float | None
    """Seconds since it was paused; None while it is not, and where that is not known."""
    next_try_in: float | None
    """Seconds until the destination is tried again, or the schedule opens, while it is paused."""
    rate: float | None
    """Messages per second that are taken at most; None: no limit."""
    busy_for: float
    """Seconds that the slowest step under way has taken so far."""
    stored: int
    duplicates: int
    retried: int
    dead: int
    released: int
    restarts: int
    last_error: str | None

    @property
    def stalled(self) -> bool:
        return self.busy_for > STALLED
