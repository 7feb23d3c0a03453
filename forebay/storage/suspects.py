"""
Messages that were in hand when a consumer process died: one of them may have killed it.

A consumer that finds such a message handles it alone, and forgets it here when it survives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from forebay.storage.database import Database
from forebay.storage.reports import now_in
from forebay.storage.tables import crash_suspects as table
from forebay.storage.upsert import upsert

Place = tuple[str, str]
"""Queue and message id."""

_CHUNK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """How many processes died with the message in hand, and how many of them had nothing else in hand."""

    crashes: int = 0
    alone: int = 0


def accuse(database: Database, places: Iterable[Place], *, alone: bool) -> None:
    """Note that a process died with these in hand; `alone`: with nothing beside it."""
    wanted = sorted(set(places))
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        with database.begin() as connection:
            now = connection.execute(sa.select(now_in(database))).scalar_one()
            upsert(
                connection,
                table,
                [{"queue": q, "id": i, "crashes": 0, "alone": 0, "seen_at": now} for q, i in chunk],
                update=(),
            )
            connection.execute(
                sa.update(table)
                .where(_any(chunk))
                .values(crashes=table.c.crashes + 1, alone=table.c.alone + int(alone), seen_at=now)
            )


def read(database: Database, queues: Collection[str]) -> dict[Place, Suspect]:
    """All suspects of these queues: none, as a rule."""
    query = sa.select(table).where(table.c.queue.in_(list(queues)))
    with database.read() as connection:
        return {
            (row.queue, row.id): Suspect(crashes=row.crashes, alone=row.alone)
            for row in connection.execute(query)
        }


def acquit(database: Database, places: Iterable[Place]) -> None:
    """Forget these: they were handled and nobody died, or are dead letters now."""
    wanted = sorted(set(places))
    for start in range(0, len(wanted), _CHUNK):
        with database.begin() as connection:
            connection.execute(sa.delete(table).where(_any(wanted[start : start + _CHUNK])))


def forget(database: Database, *, older_than: float) -> int:
    """
    Forget those of more than `older_than` seconds ago; return how many.

    One that another consumer had handled before anybody knew is never seen again, and nobody acquits it.
    """
    with database.begin() as connection:
        before = connection.execute(sa.select(now_in(database))).scalar_one() - timedelta(seconds=older_than)
        return connection.execute(sa.delete(table).where(table.c.seen_at < before)).rowcount


def _any(places: Collection[Place]) -> sa.ColumnElement[bool]:
    by_queue: dict[str, list[str]] = {}
    for queue, id in places:
        by_queue.setdefault(queue, []).append(id)
    return sa.or_(*(sa.and_(table.c.queue == q, table.c.id.in_(ids)) for q, ids in by_queue.items()))
