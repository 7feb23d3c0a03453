"""What the demo has seen: moments of it, the requests of each side, and the lines of its CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from forebay.demo.connection import NO_ANSWER, NOT_SENT, TIMED_OUT
from forebay.demo.load import Outcomes, Tick, quantile

_COLUMNS = (
    *("seconds", "accepted", "waiting", "stored", "dead", "direct_accepted", "direct_failed"),
    *("p50_ms", "p99_ms", "direct_p50_ms", "direct_p99_ms", "direct_oldest_s"),
)

BUCKET = 0.5
"""Seconds of requests that one point of a latency curve stands for."""


@dataclass(frozen=True)
class Mark:
    """Something that happened, in seconds after the start."""

    at: float
    name: str


@dataclass(frozen=True)
class Sample:
    """One moment. Of what the database holds: as last seen."""

    at: float
    accepted: int
    stored: int
    dead: int
    forebay: Tick
    direct: Tick

    @property
    def waiting(self) -> int:
        """Accepted, and neither stored nor dead as far as one can see: on the broker, journaled, in hand."""
        return self.accepted - self.stored - self.dead


@dataclass(frozen=True)
class Side:
    """All requests of one side. Latencies are in seconds, from the moment when a request was due."""

    sent: int
    accepted: int
    refused: int
    """Answered, and not with 2xx."""
    timed_out: int
    no_answer: int
    not_sent: int
    """We had no socket left: not the server's failure."""
    p50: float | None
    p99: float | None
    slowest: float | None

    @property
    def failed(self) -> int:
        return self.sent - self.accepted


def as_figures(side: Side) -> dict[str, int | float | None]:
    """For JSON."""
    return {"failed": side.failed, **asdict(side)}


def side_of(outcomes: Outcomes) -> Side:
    statuses = list(outcomes.status)
    good = [took for took, status in zip(outcomes.took, statuses, strict=True) if 200 <= status < 300]
    return Side(
        sent=len(statuses),
        accepted=len(good),
        refused=sum(status >= 300 for status in statuses),
        timed_out=statuses.count(TIMED_OUT),
        no_answer=statuses.count(NO_ANSWER),
        not_sent=statuses.count(NOT_SENT),
        p50=quantile(good, 0.5),
        p99=quantile(good, 0.99),
        slowest=max(good, default=None),
    )


@dataclass(frozen=True)
class Point:
    """The requests that were due in one `BUCKET` of time."""

    at: float
    p50: float | None
    p99: float | None
    good: int
    failed: int


def points(outcomes: Outcomes, seconds: float) -> list[Point]:
    """One for each bucket of the time in which was sent."""
    good: list[list[float]] = [[] for _ in range(round(seconds / BUCKET) + 1)]
    failed = [0] * len(good)
    for due, took, status in zip(outcomes.due, outcomes.took, outcomes.status, strict=True):
        if 200 <= status < 300:
            good[int(due / BUCKET)].append(took)
        else:
            failed[int(due / BUCKET)] += 1
    return [
        Point((n + 0.5) * BUCKET, quantile(took, 0.5), quantile(took, 0.99), len(took), failed[n])
        for n, took in enumerate(good)
        if took or failed[n]
    ]


def write_csv(path: Path, samples: Sequence[Sample]) -> None:
    """A line for each sample; the latencies are of the requests that ended since the last one."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for s in samples:
            held = [f"{s.at:.2f}", s.accepted, s.waiting, s.stored, s.dead]
            took = [_ms(s.forebay.p50), _ms(s.forebay.p99), _ms(s.direct.p50), _ms(s.direct.p99)]
            rows.writerow([*held, s.direct.accepted, s.direct.failed, *took, f"{s.direct.oldest:.1f}"])


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f}"
