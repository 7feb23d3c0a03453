"""
What consumers report of their queues, and how much each broker last held.

A copy of the tables as they were then: later changes of `forebay.storage.tables`
must not change what this step does.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from forebay.storage.tables import UtcTime

revision = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    op.create_table(
        "consumer_reports",
        sa.Column("process", sa.String(200), primary_key=True),
        sa.Column("broker", sa.String(400), primary_key=True),
        sa.Column("queue", sa.String(80), primary_key=True),
        sa.Column("in_hand", sa.BigInteger, nullable=False),
        sa.Column("waiting", sa.BigInteger),
        sa.Column("scheduled", sa.BigInteger),
        sa.Column("oldest_age", sa.Double),
        sa.Column("reported_at", UtcTime, nullable=False),
    )
    op.create_table(
        "broker_depths",
        sa.Column("broker", sa.String(400), primary_key=True),
        sa.Column("queue", sa.String(80), primary_key=True),
        sa.Column("url", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb"), nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("exact", sa.Boolean, nullable=False),
        sa.Column("seen_at", UtcTime, nullable=False),
    )
