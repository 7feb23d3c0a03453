"""
What operators say about queues, which messages may have killed their consumer, why a consumer waits.

A copy of the tables as they were then: later changes of `forebay.storage.tables`
must not change what this step does.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from forebay.storage.tables import UtcTime

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    op.create_table(
        "queue_controls",
        sa.Column("queue", sa.String(80), primary_key=True),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("paused_by", sa.String(16)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("rate", sa.Double),
        sa.Column("resumes", sa.Integer, nullable=False),
        sa.Column("allowance", sa.Integer),
        sa.Column("changed_at", UtcTime, nullable=False),
        sa.Column("changed_by", sa.String(200), nullable=False),
    )
    op.create_table(
        "crash_suspects",
        sa.Column("queue", sa.String(80), primary_key=True),
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("alone", sa.Integer, nullable=False),
        sa.Column("seen_at", UtcTime, nullable=False),
    )
    op.add_column("consumer_reports", sa.Column("state", sa.String(16), nullable=False, server_default=""))
    op.add_column("consumer_reports", sa.Column("pause_reason", sa.Text))
