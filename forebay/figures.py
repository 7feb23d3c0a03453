"""
How much a queue holds: what its broker tells, and for the rest what its consumers last reported.

Pure: who asked the broker, and who read the reports, hands them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from forebay.brokers.api import Depth, Share
from forebay.brokers.naming import dead_letter_queue

Place = tuple[str, str]
"""The identity of a broker, and a queue on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """The reports of all consumers of one queue, added up."""

    share: Share
    age: float
    """Seconds since the oldest of them."""
    missing: str = ""
    """Why the sum is not the queue's figure, as a clause; empty: it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of one queue, or of one dead-letter queue."""

    depth: Depth
    reported: tuple[str, ...] = ()
    """Those that come from reports."""
    reported_age: float | None = None
    """Seconds since the oldest of the reports used."""

    @property
    def age(self) -> float:
        """Seconds by which the oldest of them may be behind."""
        return max(self.reported_age or 0.0, self.depth.lag)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """A queue together with its dead-letter queue."""

    live: Figures
    dead: Figures | None
    """None: there is no dead-letter queue."""

    @property
    def reported_age(self) -> float | None:
        ages = [f.reported_age for f in (self.live, self.dead) if f and f.reported_age is not None]
        return max(ages, default=None)

    @property
    def reported(self) -> tuple[str, ...]:
        return (*self.live.reported, *(["dead"] if self.dead and "in_hand" in self.dead.reported else []))

    @property
    def unknown(self) -> str:
        """Why a figure is missing."""
        return self.live.depth.unknown or (self.dead.depth.unknown if self.dead else "")

    def as_json(self) -> dict[str, Any]:
        depth = self.live.depth
        return {
            "waiting": depth.waiting,
            "scheduled": depth.scheduled,
            "in_hand": depth.in_hand,
            "dead": total(self.dead.depth) if self.dead else None,
            "bytes": depth.bytes,
            "oldest_age": depth.oldest_age,
            "reported": list(self.reported),
            "reported_age": self.reported_age,
            "unknown": self.unknown,
        }


def total(depth: Depth | None) -> int | None:
    """All that a queue holds; None when a part of it is unknown."""
    if depth is None or depth.waiting is None or depth.scheduled is None or depth.in_hand is None:
        return None
    return depth.waiting + depth.scheduled + depth.in_hand


def add_up(shares: Iterable[Share]) -> Share:
    """What several subscriptions, or processes, know together. What one of them cannot tell none can."""
    given = list(shares)
    waiting = [s.waiting for s in given]
    scheduled = [s.scheduled for s in given]
    ages = [s.oldest_age for s in given if s.oldest_age is not None]
    return Share(
        in_hand=sum(s.in_hand for s in given),
        waiting=None if not given or None in waiting else sum(n for n in waiting if n is not None),
        scheduled=None if not given or None in scheduled else sum(n for n in scheduled if n is not None),
        oldest_age=max(ages, default=None),
    )


def lacks(depth: Depth | None) -> bool:
    """Whether there is something to complete."""
    return depth is not None and bool(_gaps(depth))


def complete(depth: Depth, reported: Reported | None) -> Figures:
    """`depth`, and what it does not tell from the reports, if those are complete. None: there are none."""
    if reported is None or reported.missing:
        why = reported.missing if reported else "no consumer has reported"
        return Figures(depth=replace(depth, unknown=f"{depth.unknown}; {why}") if _gaps(depth) else depth)
    found = {gap: n for gap in _gaps(depth) if (n := getattr(reported.share, gap)) is not None}
    if not found:
        return Figures(depth=depth)
    merged = replace(depth, **found)
    if merged.bytes is not None and not _gaps(merged):
        merged = replace(merged, unknown="")
    return Figures(depth=merged, reported=tuple(found), reported_age=reported.age)


def complete_queue(
    place: Place, live: Depth, dead: Depth | None, reports: Mapping[Place, Reported] | str
) -> QueueFigures:
    """The same for a queue and its dead letters. `reports` may be why there are none, as a clause."""
    broker, queue = place

    def completed(depth: Depth, name: str) -> Figures:
        if isinstance(reports, str):
            return complete(depth, Reported(share=Share(in_hand=0), age=0.0, missing=reports))
        return complete(depth, reports.get((broker, name)))

    return QueueFigures(
        live=completed(live, queue), dead=None if dead is None else completed(dead, dead_letter_queue(queue))
    )


def _gaps(depth: Depth) -> list[str]:
    gaps = [name for name in ("waiting", "scheduled", "in_hand") if getattr(depth, name) is None]
    # The oldest of nothing is no gap.
    return [*gaps, "oldest_age"] if depth.oldest_age is None and (gaps or total(depth)) else gaps
