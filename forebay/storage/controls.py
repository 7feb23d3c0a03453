"""
What operators, and consumers in distress, say about a queue: pause, resume, throttle.

One row per queue that anybody ever said something about, in the table `queue_controls`. Every
consumer reads it each second and obeys; while the database is away it keeps to what it read last.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
import stamina

from forebay.storage import audit
from forebay.storage.classify import TransientError
from forebay.storage.database import Database
from forebay.storage.reports import now_in
from forebay.storage.tables import queue_controls as table
from forebay.storage.upsert import upsert

# Two who speak of one queue at once, or somebody else's long transaction: soon it will work.
_patient = stamina.retry(on=TransientError, attempts=5, timeout=10.0, wait_initial=0.05, wait_max=1.0)

PausedBy = Literal["operator", "suspicious"]
"""`suspicious`: a consumer met more rejections than the queue's dead-letter budget allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What holds for one queue until somebody says otherwise."""

    queue: str
    paused: bool = False
    paused_by: PausedBy | None = None
    """Set while it is paused."""
    reason: str = ""
    """Why it is paused, in the words of whoever paused it."""
    rate: float | None = None
    """Messages per second and process at most; None: as the settings say."""
    resumes: int = 0
    """How often it was resumed. A consumer forgets its count of dead letters when this grows."""
    allowance: int | None = None
    """Dead letters that the last resume allows beyond the budget; None: only the budget."""
    changed_at: datetime | None = None
    changed_by: str = ""


def read(database: Database) -> dict[str, Control]:
    """All controls, by queue; a queue that nobody said anything about is absent."""
    with database.read() as connection:
        return {row["queue"]: _control(row) for row in connection.execute(sa.select(table)).mappings()}


def pause(database: Database, queue: str, *, reason: str = "", by: str) -> Control:
    """Have every consumer stop taking from `queue`; what is in hand is finished or handed back."""
    return _change(
        database, queue, "pause", by, detail=reason, paused=True, paused_by="operator", reason=reason
    )


def resume(database: Database, queue: str, *, by: str, allowance: int | None = None) -> Control:
    """
    Have the consumers go on with `queue`, whoever paused it.

    With `allowance` so many more messages may be given up before it counts as suspicious again,
    by each consumer process.
    """
    return _change(
        database,
        queue,
        "resume",
        by,
        detail="" if allowance is None else f"{allowance} more dead letters allowed",
        paused=False,
        paused_by=None,
        reason="",
        allowance=allowance,
        resumed=True,
    )


def throttle(database: Database, queue: str, *, rate: float | None, by: str) -> Control:
    """Let each consumer process take at most `rate` messages per second; None: as the settings say."""
    detail = "as the settings say" if rate is None else f"{rate:g} messages per second and process"
    return _change(database, queue, "throttle", by, detail=detail, rate=rate)


@_patient
def trip(database: Database, queue: str, *, reason: str, by: str, resumes: int) -> Control:
    """
    Pause `queue` as suspicious, for a consumer that has seen `resumes` of its controls.

    If it was resumed since, it stays so: that operator knew. If it is paused, by whomever, it stays
    as it is. Returns what holds.
    """
    with database.begin() as connection:
        control = _locked(database, connection, queue)
        if control.paused or control.resumes > resumes:
            return control
        audit.record(database, connection, who=by, action="trip", queue=queue, detail=reason)
        return _store(database, connection, control, by, paused=True, paused_by="suspicious", reason=reason)


@_patient
def _change(
    database: Database,
    queue: str,
    action: str,
    by: str,
    *,
    detail: str,
    resumed: bool = False,
    **changes: Any,
) -> Control:
    with database.begin() as connection:
        control = _locked(database, connection, queue)
        audit.record(database, connection, who=by, action=action, queue=queue, detail=detail)
        return _store(database, connection, control, by, resumes=control.resumes + resumed, **changes)


def _locked(database: Database, connection: sa.Connection, queue: str) -> Control:
    """The row of `queue`, made if need be, that nobody else can change until the transaction ends."""
    fresh = {"queue": queue, "paused": False, "reason": "", "resumes": 0, "changed_by": ""}
    upsert(connection, table, [fresh | {"changed_at": _time(database, connection)}], update=())
    query = sa.select(table).where(table.c.queue == queue)
    # SQLite has one writer at a time, and no FOR UPDATE.
    row = connection.execute(query if database.dialect == "sqlite" else query.with_for_update())
    return _control(row.mappings().one())


def _store(
    database: Database, connection: sa.Connection, control: Control, by: str, **changes: Any
) -> Control:
    values = changes | {"changed_by": by[:200], "changed_at": _time(database, connection)}
    connection.execute(sa.update(table).where(table.c.queue == control.queue).values(values))
    found = connection.execute(sa.select(table).where(table.c.queue == control.queue))
    return _control(found.mappings().one())


def _time(database: Database, connection: sa.Connection) -> datetime:
    value: datetime = connection.execute(sa.select(now_in(database))).scalar_one()
    return value


def _control(row: Any) -> Control:
    return Control(**{name: row[name] for name in row if name in Control.__slots__})
