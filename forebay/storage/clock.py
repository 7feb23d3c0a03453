"""The database's clock: those of the hosts that share it may differ."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from forebay.storage.database import Database

_ASK = {"postgresql": "SELECT clock_timestamp()", "mysql": "SELECT utc_timestamp(6)"}


def server_time(database: Database, connection: sa.Connection) -> datetime:
    """Now, in UTC. A SQLite file has no clock but ours."""
    ask = _ASK.get(database.dialect)
    if ask is None:
        return datetime.now(UTC)
    now: datetime = connection.exec_driver_sql(ask).scalar_one()
    return now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC)
