"""When a queue may be worked on: at certain hours, or every so often."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

EXAMPLES = 'write hours, "01:00-05:00" or "22:00-06:00, 12:00-13:00", or a cron expression, "*/10 * * * *"'

_WINDOW = re.compile(r"(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)")

LOOK_AGAIN = 60.0
"""Seconds after which the clock is looked at again: it may be set, and summer time begins."""
AT_LEAST = 10.0
"""Seconds that a cron schedule stays open at least: a consumer that was away is first to get messages."""


class Schedule(Protocol):
    def closed_for(self, now: datetime) -> float:
        """Seconds until it opens, 0.0 while it is open; by a time-zone-aware clock."""
        ...

    def found_empty(self, now: datetime) -> None:
        """There is nothing more to take now."""
        ...

    @property
    def words(self) -> str:
        """For people: "from 01:00 to 05:00 (UTC)"."""
        ...


@dataclass(frozen=True, slots=True)
class Windows:
    """Open every day between these times of the day; one that ends before it begins goes over midnight."""

    windows: tuple[tuple[time, time], ...]
    zone: ZoneInfo

    def closed_for(self, now: datetime) -> float:
        local = now.astimezone(self.zone)
        moment = local.time()
        if any(_within(moment, start, end) for start, end in self.windows):
            return 0.0
        day = timedelta(days=1)
        here = timedelta(hours=moment.hour, minutes=moment.minute, seconds=moment.second)
        ahead = [
            (timedelta(hours=start.hour, minutes=start.minute) - here) % day for start, _ in self.windows
        ]
        # Never 0.0: the fraction of a second before the minute would be a busy loop.
        return max(0.05, min(ahead).total_seconds())

    def found_empty(self, now: datetime) -> None:
        """It stays open: more may come."""

    @property
    def words(self) -> str:
        spans = (f"from {start:%H:%M} to {end:%H:%M}" for start, end in self.windows)
        return f"{' and '.join(spans)} ({self.zone.key})"


def _within(moment: time, start: time, end: time) -> bool:
    return start <= moment < end if start < end else moment >= start or moment < end


class Cron:
    """Opens at each time that a cron expression names, until all that has gathered is taken."""

    def __init__(self, expression: str, zone: ZoneInfo, *, started_at: datetime) -> None:
        self._expression = expression
        self._zone = zone
        self._opened_at: datetime | None = None
        self._opens_at = self._after(started_at)

    def closed_for(self, now: datetime) -> float:
        if now >= self._opens_at:
            self._opened_at, self._opens_at = now, self._after(now)
        if self._opened_at is not None:
            return 0.0
        return (self._opens_at - now).total_seconds()

    def found_empty(self, now: datetime) -> None:
        if self._opened_at is not None and (now - self._opened_at).total_seconds() >= AT_LEAST:
            self._opened_at = None

    @property
    def words(self) -> str:
        return f"at {self._expression} ({self._zone.key}), whatever has gathered"

    def _after(self, moment: datetime) -> datetime:
        from cronsim import CronSim

        found: datetime = next(CronSim(self._expression, moment.astimezone(self._zone)))
        return found


def parse_schedule(text: str, zone: str, *, now: Callable[[], datetime]) -> Schedule:
    """
    The schedule that a setting describes.

    Raises:
        ValueError: with an example of what can be written.
    """
    where = _zone(zone)
    if _WINDOW.search(text):
        return Windows(tuple(_window(part) for part in text.split(",")), where)
    from cronsim import CronSim, CronSimError

    if len(text.split()) != 5:
        raise ValueError(f"{text!r} is no schedule; {EXAMPLES}")
    try:
        next(CronSim(text, now().astimezone(where)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(
            f"{text!r} is no cron expression ({error or 'it never comes'}); {EXAMPLES}"
        ) from None
    return Cron(text, where, started_at=now())


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f'{name!r} is no time zone that this machine knows; write one like "UTC" or "Europe/Berlin"'
            " (where there is no such data: pip install tzdata)"
        ) from None


def _window(text: str) -> tuple[time, time]:
    match = _WINDOW.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text.strip()!r} is no span of hours; {EXAMPLES}")
    try:
        start, end = time(int(match[1]), int(match[2])), _end(int(match[3]), int(match[4]))
    except ValueError:
        raise ValueError(f"{text.strip()!r} has a time that no clock shows; {EXAMPLES}") from None
    if start == end:
        raise ValueError(f"{text.strip()!r} begins when it ends; leave the schedule out to be always open")
    return start, end


def _end(hour: int, minute: int) -> time:
    return time(0, 0) if (hour, minute) == (24, 0) else time(hour, minute)
