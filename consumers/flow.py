"""Whether messages may be taken from a queue now, and how many: all that is not the destination's say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal

from consumers.budget import DeadLetterBudget
from consumers.pace import RateLimit
from consumers.schedule import LOOK_AGAIN, Schedule, parse_schedule
from consumers.settings import QueueSettings
from forebay.brokers.api import Settlement
from forebay.storage.controls import Control

PausedBy = Literal["operator", "suspicious", "schedule"]


class Flow:
    """
    What holds one queue of one process back: an operator, its dead-letter budget, the hour, its rate.

    Shared by all workers of the queue, on every broker that it is read from.
    """

    def __init__(
        self,
        queue: str,
        settings: QueueSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime],
    ) -> None:
        self.queue = queue
        self.budget = DeadLetterBudget(settings.dead_letter_budget)
        self.budget.on_change(self._tell)
        self.control = Control(queue=queue)
        """What operators said last, as far as we know."""
        self._settings = settings
        self._now = now
        self._rate = RateLimit(settings.rate, clock=clock)
        self._schedule: Schedule | None = (
            parse_schedule(settings.schedule, settings.timezone, now=now) if settings.schedule else None
        )
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when what an operator or the budget says has changed."""
        self._listeners.append(listener)

    # ---- what the worker asks

    def closed_for(self) -> float:
        """Seconds until messages may be taken: 0.0 is now, infinity is "until `on_change` tells"."""
        if self._stopped() is not None:
            return math.inf
        wait = 0.0 if self._schedule is None else self._schedule.closed_for(self._now())
        return min(wait, LOOK_AGAIN) if wait > 0 else self._rate.closed_for()

    def writes(self) -> bool:
        """Whether what was taken, and not yet written, may still be written."""
        return self._stopped() is None and (
            self._schedule is None or self._schedule.closed_for(self._now()) == 0.0
        )

    def reserve(self, count: int) -> int:
        """How many of `count` messages may be taken now, at least 1; what is not taken is to be refunded."""
        return self._rate.reserve(count)

    def refund(self, count: int) -> None:
        self._rate.refund(count)

    def found_empty(self) -> None:
        """A long look at the queue found nothing."""
        if self._schedule is not None:
            self._schedule.found_empty(self._now())

    def spend(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """These settlements, without the dead letters that would be too many."""
        return self.budget.spend(settlements)

    # ---- what others ask and say

    @property
    def paused_by(self) -> PausedBy | None:
        """What keeps messages from being taken, other than the destination and the rate."""
        stopped = self._stopped()
        if stopped is None and self._schedule is not None and self._schedule.closed_for(self._now()) > 0:
            return "schedule"
        return stopped

    @property
    def reason(self) -> str | None:
        """Why nothing is taken, in words; None while it is not held back."""
        match self.paused_by:
            case "operator":
                why = f": {self.control.reason}" if self.control.reason else ""
                return f"paused by {self.control.changed_by}{why}; to go on: forebay resume {self.queue}"
            case "suspicious":
                reason = self.budget.reason or self.control.reason
                return (
                    f"{reason}; look: forebay dead-letters list --queue {self.queue} --groups,"
                    f" to go on: forebay resume {self.queue}"
                )
            case "schedule":
                assert self._schedule is not None
                return f"works {self._schedule.words}"
            case None:
                return None

    @property
    def stopped_for(self) -> float | None:
        """Seconds since an operator or a consumer paused it, as the database has it; None: not paused."""
        changed_at = self.control.changed_at if self.control.paused else None
        return None if changed_at is None else max(0.0, (self._now() - changed_at).total_seconds())

    @property
    def opens_in(self) -> float | None:
        """Seconds until its schedule opens; None when it is not the schedule that holds it back."""
        if self._stopped() is not None or self._schedule is None:
            return None
        return self._schedule.closed_for(self._now()) or None

    @property
    def rate(self) -> float | None:
        """Messages per second at most, as set by an operator or in the settings."""
        return self._rate.rate

    @property
    def tripped(self) -> str | None:
        """The budget's reason, while it is used up and the database need not know of it yet."""
        return None if self.control.paused else self.budget.reason

    def obey(self, control: Control) -> None:
        """Do as operators say; `control` is what the database holds now."""
        before = (self._stopped(), self.reason)
        if control.resumes > self.control.resumes:
            self.budget.restore(control.allowance or 0)
        self.control = control
        self._rate.change(self._settings.rate if control.rate is None else control.rate)
        if before != (self._stopped(), self.reason):
            self._tell()

    def begin(self, control: Control) -> None:
        """As `obey`, for what held before this process started: what was resumed then is no news."""
        self.control = Control(queue=self.queue, resumes=control.resumes)
        self.obey(control)

    def _stopped(self) -> Literal["operator", "suspicious"] | None:
        if self.control.paused:
            return self.control.paused_by or "operator"
        return None if self.budget.reason is None else "suspicious"

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
