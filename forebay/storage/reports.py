"""
What consumers tell each other, operators and gateways of their queues, by way of the database.

Two tables. `consumer_reports`: what each process has in hand, and what of its queues only
it can know, written every few seconds; together with `Broker.depth` that makes the
figures complete. `broker_depths`: how much each broker held when it was last looked at,
kept after its consumers are gone: so a swap of the broker that forgot messages is noticed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from forebay.brokers.api import Depth, Share
from forebay.figures import Figures, Place, Reported, add_up, complete
from forebay.storage.database import Database
from forebay.storage.tables import BROKER_LENGTH, UtcTime, broker_depths, consumer_reports, dead_letters
from forebay.storage.upsert import upsert

FRESH = 15.0
"""Seconds. A process whose report is older does not report any more, or cannot reach the database."""
GONE = 60.0
"""After this long its report is removed: a broker has by then given what it held to others."""
KEPT = timedelta(days=30)
"""How long a broker that nobody consumes any more is remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReport:
    """What one process knows of one queue on one broker."""

    broker: str
    url: str
    """How it is reached, without credentials: for people."""
    queue: str
    share: Share
    """Of all its subscriptions, added up."""
    depth: Depth | None
    """As the broker told it; None when it did not answer."""
    state: str = ""
    """How its consumer is doing: "running", "paused", …"""
    pause_reason: str | None = None
    """Why nothing is taken, while it is paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftBehind:
    """A broker that held messages when a consumer last looked, and that none looks after now."""

    broker: str
    url: str
    held: int
    exact: bool
    """False: at least `held`; a part of it could not be told."""
    queues: tuple[str, ...]
    age: float
    """Seconds since that look."""

    @property
    def sentence(self) -> str:
        where = ", ".join(self.queues)
        if self.held or self.exact:
            count = f"held {'' if self.exact else 'at least '}{_messages(self.held)}"
        else:
            count = "may have held messages that wait for their time"
        return (
            f"{self.broker} {count} ({where}) when a consumer last looked, {_ago(self.age)} ago,"
            " and no consumer reads it now"
        )

    @property
    def setting(self) -> str:
        """What to write so that they are consumed; the password is the reader's to fill in."""
        return f'broker.drain = ["{self.url}"]'


def exchange(
    database: Database, process: str, reports: Sequence[QueueReport], *, tidy: bool
) -> dict[Place, Figures]:
    """
    Write what `process` knows, and learn the rest: the figures of each queue whose depth is known.

    With `tidy`, reports of processes that are gone are removed. Not at the first time
    after an outage of the database: then all reports are old, also of those alive.
    """
    now = now_in(database)
    with database.begin() as connection:
        rows = [
            {
                "process": process, "broker": _name(r.broker), "queue": r.queue, "in_hand": r.share.in_hand,
                "waiting": r.share.waiting, "scheduled": r.share.scheduled,
                "oldest_age": r.share.oldest_age, "state": r.state, "pause_reason": r.pause_reason,
                "reported_at": now,
            }
            for r in reports
        ]  # fmt: skip
        upsert(connection, consumer_reports, rows)
        if tidy:
            before = _before(database, GONE)
            connection.execute(sa.delete(consumer_reports).where(consumer_reports.c.reported_at < before))
            old = _before(database, KEPT.total_seconds())
            connection.execute(sa.delete(broker_depths).where(broker_depths.c.seen_at < old))
        reported = _read(database, connection, {r.broker for r in reports})
        figures = {
            (r.broker, r.queue): complete(r.depth, reported.get((_name(r.broker), r.queue)))
            for r in reports
            if r.depth is not None
        }
        seen = []
        for r in reports:
            if (found := figures.get((r.broker, r.queue))) is None:
                continue
            known = [found.depth.waiting, found.depth.scheduled, found.depth.in_hand]
            if known == [None] * 3:
                continue  # What was seen before tells more.
            seen.append(
                {
                    "broker": _name(r.broker), "queue": r.queue, "url": r.url,
                    "held": sum(n or 0 for n in known), "exact": None not in known, "seen_at": now,
                }
            )  # fmt: skip
        upsert(connection, broker_depths, seen)
    return figures


def withdraw(database: Database, process: str) -> None:
    """Remove what `process` reported: it has ended in order, and holds nothing any more."""
    with database.begin() as connection:
        connection.execute(sa.delete(consumer_reports).where(consumer_reports.c.process == process))


def read_reports(database: Database, brokers: Collection[str]) -> dict[Place, Reported]:
    """What the consumers of these brokers last reported, by broker and queue."""
    with database.read() as connection:
        found = _read(database, connection, brokers)
    names = {_name(broker): broker for broker in brokers}
    return {(names[broker], queue): reported for (broker, queue), reported in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """A queue from which at least one consumer takes nothing."""

    queue: str
    reason: str
    consumers: int
    """How many say so."""


def paused_queues(database: Database) -> list[Paused]:
    """The queues that consumers alive have reported as paused, for a reason of their own."""
    c = consumer_reports.c
    query = (
        sa.select(c.queue, c.pause_reason, sa.func.count().label("consumers"))
        .where(c.state == "paused", c.pause_reason.is_not(None), c.reported_at > _before(database, FRESH))
        .group_by(c.queue, c.pause_reason)
        .order_by(c.queue, sa.desc("consumers"))
    )
    found: dict[str, Paused] = {}
    with database.read() as connection:
        for row in connection.execute(query):
            found.setdefault(
                row.queue, Paused(queue=row.queue, reason=row.pause_reason or "", consumers=row.consumers)
            )
    return list(found.values())


def open_dead_letters(database: Database) -> dict[str, int]:
    """How many dead letters nobody has dealt with, by the queue they come from."""
    c = dead_letters.c
    query = sa.select(c.queue, sa.func.count()).where(c.status == "dead").group_by(c.queue)
    with database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def reported_queues(database: Database) -> set[str]:
    """Queues that a consumer has reported, on any broker, without their dead-letter queues."""
    found: set[str] = set()
    with database.read() as connection:
        for table in (consumer_reports, broker_depths):
            found |= set(connection.execute(sa.select(table.c.queue).distinct()).scalars())
    return {queue for queue in found if not queue.endswith(".dead")}


@dataclass(frozen=True, slots=True, kw_only=True)
class LastSeen:
    """How much a queue held when a consumer last asked its broker."""

    held: int
    exact: bool
    """False: at least so many."""
    age: float
    """Seconds since then."""


def last_seen(database: Database, url: str) -> dict[str, LastSeen]:
    """What the broker at `url`, without credentials, held, by queue; for when it cannot be asked."""
    d = broker_depths.c
    query = sa.select(d.queue, d.held, d.exact, d.seen_at, now_in(database).label("now")).where(d.url == url)
    with database.read() as connection:
        return {
            row.queue: LastSeen(held=row.held, exact=row.exact, age=_age(row.seen_at, row.now))
            for row in connection.execute(query)
        }


def consumers_alive(database: Database) -> int:
    """How many consumer processes have reported lately."""
    c = consumer_reports.c
    query = sa.select(sa.func.count(c.process.distinct())).where(c.reported_at > _before(database, FRESH))
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def left_behind(database: Database, *, known: Collection[str], urls: Collection[str]) -> list[LeftBehind]:
    """
    Brokers, other than those in use, that may still hold messages and that no consumer looks after.

    In use are those with an identity in `known`, and those that were reached by one of `urls`.
    """
    d, c = broker_depths.c, consumer_reports.c
    served = sa.select(c.broker).where(c.reported_at > _before(database, FRESH))
    query = (
        sa.select(*broker_depths.columns, now_in(database).label("now"))
        .where(d.broker.not_in([_name(k) for k in known]), d.url.not_in(list(urls)))
        .where(d.broker.not_in(served))
        .where(sa.or_(d.held > 0, sa.not_(d.exact)))
        .order_by(d.broker, d.queue)
    )
    rows: dict[str, list[Any]] = {}
    with database.read() as connection:
        for row in connection.execute(query):
            rows.setdefault(row.broker, []).append(row)
    return [
        LeftBehind(
            broker=broker,
            url=of[0].url,
            held=sum(row.held for row in of),
            exact=all(row.exact for row in of),
            queues=tuple(row.queue for row in of),
            age=_age(min(row.seen_at for row in of), of[0].now),
        )
        for broker, of in rows.items()
    ]


def _read(database: Database, connection: sa.Connection, brokers: Collection[str]) -> dict[Place, Reported]:
    c = consumer_reports.c
    query = sa.select(consumer_reports, now_in(database).label("now")).where(
        c.broker.in_([_name(broker) for broker in brokers])
    )
    rows: dict[Place, list[Any]] = {}
    for row in connection.execute(query.order_by(c.reported_at)):
        rows.setdefault((row.broker, row.queue), []).append(row)
    found = {}
    for place, of in rows.items():
        oldest = of[0]
        age = _age(oldest.reported_at, oldest.now)
        missing = ""
        if age > FRESH:
            missing = f"the consumer {oldest.process} has not reported for {age:.0f} s"
        share = add_up(
            Share(
                in_hand=row.in_hand, waiting=row.waiting, scheduled=row.scheduled, oldest_age=row.oldest_age
            )
            for row in of
        )
        found[place] = Reported(share=share, age=age, missing=missing)
    return found


def now_in(database: Database) -> sa.ColumnElement[datetime]:
    """The database's clock: those of the consumers' hosts may differ. A SQLite file has none but ours."""
    if database.dialect == "postgresql":
        return sa.cast(sa.func.clock_timestamp(), UtcTime)
    if database.dialect == "mysql":
        return sa.func.utc_timestamp(6, type_=UtcTime)
    return sa.literal(datetime.now(UTC), UtcTime)


def _before(database: Database, seconds: float) -> sa.ColumnElement[datetime]:
    if database.dialect == "postgresql":
        return sa.cast(
            sa.func.clock_timestamp() - sa.literal(timedelta(seconds=seconds), sa.Interval), UtcTime
        )
    if database.dialect == "mysql":
        microseconds: sa.ColumnElement[timedelta] = sa.literal_column(
            f"INTERVAL {round(seconds * 1e6)} MICROSECOND"
        )
        return sa.func.date_sub(sa.func.utc_timestamp(6), microseconds, type_=UtcTime)
    return sa.literal(datetime.now(UTC) - timedelta(seconds=seconds), UtcTime)


def _messages(count: int) -> str:
    return f"{count:,} message" + ("" if count == 1 else "s")


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _age(then: datetime, now: datetime) -> float:
    return max(0.0, (now - then).total_seconds())


def _name(broker: str) -> str:
    """An identity as the tables hold it."""
    return broker[:BROKER_LENGTH]
