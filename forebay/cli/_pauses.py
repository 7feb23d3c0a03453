"""Why nothing is taken from a queue, by whoever knows it best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from forebay.cli._looks import Look
from forebay.cli._scrape import Process

if TYPE_CHECKING:
    from forebay.storage.controls import Control


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Why nothing is taken from a queue."""

    reason: str
    since: datetime | None = None
    advice: str = ""
    """What a person has to do for it to go on; empty: it goes on by itself."""
    next_try_in: float | None = None
    """Seconds."""


class Pauses:
    """Who says why nothing is taken from a queue: its consumers, else the database, else that it is gone."""

    def __init__(
        self,
        look: Look,
        processes: Sequence[Process],
        unreachable: str,
        in_database: Callable[[str], bool],
        now: datetime,
    ) -> None:
        self._stored = look.stored
        self._unreachable = unreachable if look.stored.trouble else ""
        self._in_database = in_database
        self._now = now
        self._by: dict[str, set[str]] = {}
        self._since: dict[str, float] = {}
        self._next: dict[str, float] = {}
        for process in processes:
            for labels, value in process.values("forebay_consumer_queue_paused"):
                reasons = self._by.setdefault(labels["queue"], set())
                if value:
                    reasons.add(labels["reason"])
            for labels, value in process.values("forebay_consumer_queue_paused_seconds"):
                self._since[labels["queue"]] = max(value, self._since.get(labels["queue"], 0.0))
            for labels, value in process.values("forebay_consumer_next_try_seconds"):
                self._next[labels["queue"]] = min(value, self._next.get(labels["queue"], value))

    @property
    def queues(self) -> set[str]:
        """Those that a consumer tells of, or somebody has paused."""
        return {*self._by, *self._stored.paused, *self._stored.controls}

    def of(self, queue: str) -> Pause | None:
        control, said = self._stored.controls.get(queue), self._stored.paused.get(queue)
        by, resume = self._by.get(queue), f"to go on: forebay resume {queue}"
        if control is not None:
            # What an operator says holds in a moment, whatever a consumer reported before.
            return Pause(reason=_in_words(control), since=control.changed_at, advice=resume)
        if by is None:  # None of its consumers was asked.
            if said is not None:
                return Pause(reason=said)
            return Pause(reason=self._unreachable) if self._unreachable and self._in_database(queue) else None
        if not by:
            return None  # What they reported may be some seconds old.
        for_seconds = self._since.get(queue)
        return Pause(
            reason=self._why(queue, by, said),
            since=None if for_seconds is None else self._now - timedelta(seconds=for_seconds),
            advice=resume if by & {"operator", "suspicious"} else "",
            next_try_in=self._next.get(queue),
        )

    def _why(self, queue: str, by: set[str], said: str | None) -> str:
        if "unavailable" in by and self._unreachable and self._in_database(queue):
            return self._unreachable
        return said or _WORDS[sorted(by)[0]]


def _in_words(control: Control) -> str:
    who = f"by {control.changed_by}"
    if control.paused_by == "suspicious":
        who = "too many messages were given up"
    return f"{who} ({control.reason})" if control.reason else who


_WORDS: Mapping[str, str] = {
    "misconfigured": "its destination refuses us; the consumers' log says why",
    "operator": "by an operator",
    "schedule": "its schedule is closed",
    "suspicious": "too many messages were given up",
    "unavailable": "its destination is unreachable; the consumers' log says why",
}
