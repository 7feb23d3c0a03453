"""Who did what: one row for each thing that an operator did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from forebay import ids
from forebay.storage.clock import server_time
from forebay.storage.database import Database
from forebay.storage.rows import clean
from forebay.storage.tables import audit_log as table


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One thing that somebody did."""

    id: str
    at: datetime
    who: str
    action: str
    """redrive, redrive-stop, redrive-resume, redrive-end, discard, edit, pause, resume, throttle; trip, which
    is a consumer's own pause."""
    queue: str | None
    selection: dict[str, Any] | None
    """Which dead letters, as `DeadLetterFilter.as_json` has it."""
    count: int | None
    """How many it was about, or was meant to be when it began."""
    detail: str


def record(
    database: Database,
    connection: sa.Connection,
    *,
    who: str,
    action: str,
    queue: str | None = None,
    selection: Mapping[str, Any] | None = None,
    count: int | None = None,
    detail: str = "",
) -> str:
    """Write one entry in the caller's transaction, with the deed or not at all; return its id."""
    id = ids.new_id()
    connection.execute(
        sa.insert(table).values(
            id=id,
            at=server_time(database, connection),
            who=clean(who)[:200],
            action=action,
            queue=queue,
            selection=None if selection is None else dict(selection),
            count=count,
            detail=clean(detail),
        )
    )
    return id


def amend(connection: sa.Connection, id: str, *, count: int, detail: str) -> None:
    """What became of it in the end, where that was not known when it was written."""
    connection.execute(sa.update(table).where(table.c.id == id).values(count=count, detail=clean(detail)))


def entries(
    database: Database,
    *,
    limit: int,
    who: str | None = None,
    action: str | None = None,
    queue: str | None = None,
    since: datetime | None = None,
    before: str | None = None,
) -> list[AuditEntry]:
    """The latest first. `before` is the id of the last entry of the page before."""
    query = sa.select(table)
    for column, value in ((table.c.who, who), (table.c.action, action), (table.c.queue, queue)):
        if value is not None:
            query = query.where(column == value)
    if since is not None:
        query = query.where(table.c.at > since)
    with database.read() as connection:
        if before is not None:
            # A scalar, not a subquery: an id that is gone ends the list instead of starting it again.
            at = connection.execute(sa.select(table.c.at).where(table.c.id == before)).scalar_one_or_none()
            if at is None:
                return []
            query = query.where(sa.or_(table.c.at < at, sa.and_(table.c.at == at, table.c.id < before)))
        rows = connection.execute(query.order_by(table.c.at.desc(), table.c.id.desc()).limit(limit))
        return [AuditEntry(**row) for row in rows.mappings()]
