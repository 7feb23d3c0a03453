"""The database's clock, for code that decides by it: those of the hosts that share it may differ."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from forebay.storage.database import Database
from forebay.storage.reports import now_in


def server_time(database: Database, connection: sa.Connection) -> datetime:
    """Now, in UTC, as the server has it."""
    now: datetime = connection.execute(sa.select(now_in(database))).scalar_one()
    return now
