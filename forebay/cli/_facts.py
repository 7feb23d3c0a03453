"""From two looks to what is so: each queue with its pace, and which part does not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from forebay.cli._depths import QueueDepth
from forebay.cli._looks import Look
from forebay.cli._pauses import Pause, Pauses
from forebay.cli._scrape import Asked, Pace, Process
from forebay.figures import total

FRESH = 5.0
"""Seconds; younger than this a message is on its way rather than behind."""

Room = Callable[[int, int], int | None]
"""Bytes that a queue still takes while it, and all queues, hold so many; None: not bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    """One queue between two looks. None: nobody knows."""

    queue: str
    broker: str = ""
    """Set for one on an old broker."""
    waiting: int | None
    """What could be worked on: on the broker, ready or in hand, and in journals."""
    retrying: int | None = 0
    """Delayed, or between two attempts."""
    journaled: int = 0
    """Of those that wait."""
    dead: int | None = 0
    """Given up, and still on the broker."""
    change: float | None = None
    """Of what waits, per second; negative while it drains."""
    coming: float | None = None
    """Accepted per second."""
    leaving: float | None = None
    """Stored, or given up, per second."""
    oldest: float | None = None
    """Seconds since the oldest was accepted."""
    full_in: float | None = None
    """Seconds until the broker takes no more, at the pace just seen; None: not in sight."""
    pause: Pause | None = None
    seen_ago: float | None = None
    """Seconds since somebody saw this; None: it is of now."""
    reported_age: float | None = None
    """Seconds since consumers reported what the broker cannot tell."""
    unknown: str = ""
    """Why a figure is None."""

    @property
    def label(self) -> str:
        return f"{self.queue} on {self.broker}" if self.broker else self.queue

    @property
    def fresh(self) -> bool:
        """All of it was accepted a moment ago: messages pass through, nothing is behind."""
        return self.oldest is not None and self.oldest < FRESH

    @property
    def drained_in(self) -> float | None:
        """Seconds, at the pace just seen; None: not in sight."""
        if not self.waiting or self.change is None or self.change >= 0:
            return None
        return self.waiting / -self.change

    def as_json(self) -> dict[str, Any]:
        pause = self.pause
        return {
            "queue": self.label,
            "behind": self.waiting,
            "scheduled": self.retrying,
            "journaled": self.journaled,
            "change_per_second": self.change,
            "in_per_second": self.coming,
            "out_per_second": self.leaving,
            "oldest_age": self.oldest,
            "drained_in_seconds": self.drained_in,
            "full_in_seconds": self.full_in,
            "dead_on_broker": self.dead,
            "seen_seconds_ago": self.seen_ago,
            "reported_age": self.reported_age,
            "unknown": self.unknown,
            "pause_reason": pause.reason if pause else None,
            "pause_advice": (pause.advice or None) if pause else None,
            "paused_since": pause.since.isoformat(timespec="seconds") if pause and pause.since else None,
            "next_try_in_seconds": pause.next_try_in if pause else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    queues: tuple[QueueFacts, ...]
    broker: str = "the broker"
    """What kind it is."""
    database: str = "the database"
    broker_trouble: str = ""
    database_trouble: str = ""
    unreached: tuple[str, ...] = ()
    """Old brokers and fallbacks that cannot be asked, each with the reason."""
    gateways: Asked = field(default_factory=Asked)
    consumers: Asked = field(default_factory=Asked)
    consumers_alive: int | None = None
    """Processes that reported to the database lately; None: nobody can tell."""
    dead_letters: int | None = 0
    """Open ones in the database."""
    journaled: int | None = None
    """Messages in journals, of all queues; None: nobody can tell."""
    journal_full_in: float | None = None


def facts(
    before: Look,
    after: Look,
    *,
    broker: str,
    database: str,
    in_database: Callable[[str], bool],
    room: Room,
    now: datetime,
) -> Facts:
    """
    What two looks tell together.

    `broker` and `database` are their kinds; `in_database` tells whether a queue's messages end there.
    """
    elapsed = max(after.at - before.at, 1e-3)
    processes = [*after.gateways.processes, *after.consumers.processes]
    pace = Pace([*before.gateways.processes, *before.consumers.processes], processes, elapsed)
    pauses = Pauses(after, processes, f"{database} unreachable", in_database, now)
    then = {depth.label: depth for depth in before.depths}
    held = _held(after.depths)
    found = []
    for depth in after.depths:
        was = then.get(depth.label)
        journaled = 0 if depth.draining else (after.journaled or {}).get(depth.queue, 0)
        earlier = 0 if depth.draining else (before.journaled or {}).get(depth.queue, 0)
        due, due_then = _plus(_due(depth), journaled), _plus(_due(was) if was else None, earlier)
        live = depth.depth
        found.append(
            QueueFacts(
                queue=depth.queue,
                broker=depth.broker if depth.draining else "",
                waiting=due,
                retrying=live.scheduled if live else 0,
                journaled=journaled,
                dead=total(depth.dead) if depth.dead else 0,
                change=None if due is None or due_then is None else (due - due_then) / elapsed,
                coming=pace.per_second("forebay_gateway_messages_total", depth.queue, ("accepted",)),
                leaving=pace.per_second(
                    "forebay_consumer_messages_total", depth.queue, ("stored", "duplicate", "dead")
                ),
                oldest=live.oldest_age if live else None,
                full_in=_full_in(was, depth, elapsed, room, held),
                pause=pauses.of(depth.queue),
                reported_age=depth.figures.reported_age if depth.figures else None,
                unknown=depth.figures.unknown if depth.figures else "",
            )
        )
    if after.broker_trouble:
        found = _without_broker(after, pace, pauses)
    return Facts(
        queues=tuple(found),
        broker=broker,
        database=database,
        broker_trouble=after.broker_trouble,
        database_trouble=after.stored.trouble,
        unreached=after.unreached,
        gateways=after.gateways,
        consumers=after.consumers,
        consumers_alive=after.stored.consumers,
        dead_letters=None if after.stored.trouble else sum(after.stored.dead_letters.values()),
        journaled=_journaled(after, processes),
        journal_full_in=_journal_full_in(before, after, elapsed),
    )


def _plus(count: int | None, more: int) -> int | None:
    return None if count is None else count + more


def _due(of: QueueDepth) -> int | None:
    if not of.declared:
        return 0
    if of.depth is None or of.depth.waiting is None:
        return None
    return of.depth.waiting + (of.depth.in_hand or 0)


def _bytes(of: QueueDepth | None) -> int | None:
    return of.depth.bytes if of is not None and of.depth is not None else None


def _held(depths: Iterable[QueueDepth]) -> int:
    return sum(_bytes(depth) or 0 for depth in depths if not depth.draining)


def _full_in(was: QueueDepth | None, of: QueueDepth, elapsed: float, room: Room, held: int) -> float | None:
    earlier, size = _bytes(was), _bytes(of)
    if of.draining or earlier is None or size is None or size <= earlier:
        return None
    left = room(size, held)
    return None if left is None else left / ((size - earlier) / elapsed)


def _without_broker(look: Look, pace: Pace, pauses: Pauses) -> list[QueueFacts]:
    """The queues as a consumer last saw them; what waits on the broker since then nobody knows."""
    stored, journaled = look.stored, look.journaled or {}
    names = {name.removesuffix(".dead") for name in stored.last_seen} | journaled.keys() | pauses.queues
    found = []
    for queue in sorted(names):
        seen, dead = stored.last_seen.get(queue), stored.last_seen.get(f"{queue}.dead")
        found.append(
            QueueFacts(
                queue=queue,
                waiting=None if seen is None else seen.held + journaled.get(queue, 0),
                retrying=None,
                journaled=journaled.get(queue, 0),
                dead=dead.held if dead else None,
                coming=pace.per_second("forebay_gateway_messages_total", queue, ("accepted",)),
                leaving=pace.per_second(
                    "forebay_consumer_messages_total", queue, ("stored", "duplicate", "dead")
                ),
                pause=pauses.of(queue),
                seen_ago=seen.age if seen else None,
                unknown="the broker does not answer",
            )
        )
    return found


def _journaled(look: Look, processes: Sequence[Process]) -> int | None:
    if look.journaled is not None:
        return sum(look.journaled.values())
    told = [n for p in processes if (n := p.total("forebay_journal_messages")) is not None]
    return int(sum(told)) if told else None


def _journal_full_in(before: Look, after: Look, elapsed: float) -> float | None:
    """Of the journal that is full first."""
    then = {p.address: p.total("forebay_journal_bytes") for p in before.gateways.processes}
    ends = []
    for process in after.gateways.processes:
        was, size = then.get(process.address), process.total("forebay_journal_bytes")
        limit = process.total("forebay_journal_limit_bytes")
        if was is not None and size is not None and limit and size > was:
            ends.append(max(0.0, limit - size) / ((size - was) / elapsed))
    return min(ends, default=None)
