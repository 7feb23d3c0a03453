"""What the queues hold, on the broker in use and on those to drain, as the reading commands show it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from forebay.brokers.api import Depth
from forebay.brokers.naming import dead_letter_queue
from forebay.errors import ForebayError, QueueNotFound
from forebay.figures import Figures, Place, QueueFigures, Reported, complete_queue, lacks, total

if TYPE_CHECKING:
    from forebay.brokers.api import Broker
    from forebay.settings import Settings


@dataclass(slots=True)
class Brokers:
    """The brokers that could be opened, that in use first."""

    in_use: Broker
    old: list[Broker] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    """Old ones and fallbacks that could not be opened, each with the reason."""


@asynccontextmanager
async def open_brokers(settings: Settings) -> AsyncIterator[Brokers]:
    """
    The brokers of the settings, without ever creating a queue file.

    Raises:
        SettingsError: no URL is set.
        BrokerUnavailable, CommandError: the one in use cannot be opened.
    """
    from forebay.cli._common import open_broker
    from forebay.wiring import safe_url

    async with AsyncExitStack() as stack:
        brokers = Brokers(await stack.enter_async_context(open_broker(settings.broker)))
        for old in settings.broker.others():
            try:
                brokers.old.append(await stack.enter_async_context(open_broker(old)))
            except ForebayError as error:
                what = "fallback" if old.url in settings.broker.fallback else "old broker"
                brokers.unreached.append(f"the {what} {safe_url(old)} cannot be asked: {error}")
        yield brokers


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One queue and its dead-letter queue on one broker at one moment. None: unknown, or no such queue."""

    queue: str
    depth: Depth | None
    dead: Depth | None
    declared: bool = True
    broker: str = ""
    """The identity."""
    draining: bool = False
    """It is on an old broker."""
    figures: QueueFigures | None = None
    """`depth` and `dead`, completed by what consumers reported."""

    @property
    def held(self) -> int | None:
        """Everything in both."""
        if not self.declared:
            return 0
        live, dead = total(self.depth), total(self.dead)
        return None if live is None or dead is None else live + dead

    @property
    def label(self) -> str:
        return f"{self.queue} on {self.broker}" if self.draining else self.queue

    def as_json(self) -> dict[str, Any]:
        named = {
            "queue": self.queue, "broker": self.broker, "draining": self.draining, "declared": self.declared
        }  # fmt: skip
        return named | (self.figures or UNKNOWN).as_json()


UNKNOWN = QueueFigures(
    live=Figures(depth=Depth(waiting=None, scheduled=None, in_hand=None, bytes=None, oldest_age=None)),
    dead=None,
)
"""Of a queue that is not there."""


async def look(brokers: Brokers, queues: Iterable[str]) -> list[QueueDepth]:
    """
    Ask each broker for each queue.

    First the queue and only then its dead-letter queue: in this order a message that dies
    in between is counted twice, in the other one not at all. Of an old broker only the
    queues that it has are told.

    Raises:
        BrokerUnavailable.
    """
    queues = list(queues)
    found = [await _look(brokers.in_use, queue, draining=False) for queue in queues]
    for old in brokers.old:
        found += [d for queue in queues if (d := await _look(old, queue, draining=True)).declared]
    return found


async def with_reports(depths: Sequence[QueueDepth], settings: Settings) -> list[QueueDepth]:
    """What the brokers cannot tell as their consumers last reported it: seconds old."""
    gaps = {d.broker for d in depths if lacks(d.depth) or lacks(d.dead)}
    reports = await asyncio.to_thread(_reports, settings, gaps) if gaps else {}
    return [completed(d, reports) for d in depths]


async def _look(broker: Broker, queue: str, *, draining: bool) -> QueueDepth:
    identity = broker.identity
    try:
        depth = await broker.depth(queue)
    except QueueNotFound:
        return QueueDepth(queue, None, None, declared=False, broker=identity, draining=draining)
    try:
        dead = await broker.depth(dead_letter_queue(queue))
    except QueueNotFound:
        dead = None
    return QueueDepth(queue, depth, dead, broker=identity, draining=draining)


def completed(of: QueueDepth, reports: Mapping[Place, Reported] | str) -> QueueDepth:
    """What the broker told, and what it did not tell from these reports, or why there are none."""
    if of.depth is None:
        return of
    figures = complete_queue((of.broker, of.queue), of.depth, of.dead, reports)
    return replace(
        of, depth=figures.live.depth, dead=figures.dead.depth if figures.dead else None, figures=figures
    )


def _reports(settings: Settings, brokers: Collection[str]) -> dict[Place, Reported] | str:
    """What consumers reported, or why that cannot be read."""
    from forebay.cli._common import open_database
    from forebay.storage.reports import read_reports

    if settings.database.url is None:
        return "database.url, where consumers report the rest, is not set here"
    try:
        with open_database(settings) as database:
            return read_reports(database, brokers)
    except ForebayError:
        return "the database, where consumers report the rest, does not answer"


async def known_queues(brokers: Brokers, named: Iterable[str]) -> list[str]:
    """The queues of the settings and those that the brokers have."""
    known: set[str] = set(named)
    for broker in (brokers.in_use, *brokers.old):
        known |= set(await broker.declared_queues() or ())
    return sorted(known)


def reasons(depths: Sequence[QueueDepth]) -> dict[str, list[str]]:
    """Why figures are missing, with the queues of which they are; bytes are not missed."""
    found: dict[str, list[str]] = {}
    for depth in depths:
        if depth.held is None and depth.figures is not None:
            found.setdefault(depth.figures.unknown, []).append(depth.label)
    return found
