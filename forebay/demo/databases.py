"""The demo's own tables, on whatever database it plays with, and what it looks up there."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "sqlite": "sqlite"}


def engine_for(url: str, *, pool: int | None = None, patience: float = 30.0) -> sa.Engine:
    """
    An engine as one makes it for a web application: SQLAlchemy's own pool, 5 connections and 10 in need.

    With `pool` there are so many connections and no more. `patience` is how many seconds a connection is
    waited for, and on SQLite a lock.
    """
    made = sa.make_url(url)
    made = made.set(drivername=_DRIVERS[made.get_backend_name()])
    sqlite = made.get_backend_name() == "sqlite"
    options: dict[str, Any] = {"pool_timeout": patience, "pool_pre_ping": not sqlite}
    if pool is not None:
        options |= {"pool_size": pool, "max_overflow": 0}
    connect = {"timeout": patience} if sqlite else {"connect_timeout": max(1, round(min(patience, 10)))}
    return sa.create_engine(made, poolclass=sa.QueuePool, connect_args=connect, **options)


def orders_table(name: str) -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("customer", sa.String(80), nullable=False),
        sa.Column("total", sa.Numeric(12, 2), nullable=False),
    )
