"""
What operators do with dead letters: redrive jobs, edits, reasons, and who did it.

Only adds: consumers of the release before go on writing. A copy of the tables as they
were then: later changes of `forebay.storage.tables` must not change what this step does.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from forebay.storage.tables import UtcTime

revision = "0004"
down_revision: str | None = "0003"


def upgrade() -> None:
    uuid = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite", "mysql", "mariadb")
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql").with_variant(sa.Text(), "sqlite")

    op.add_column("dead_letters", sa.Column("history", json))
    op.add_column("dead_letters", sa.Column("edited_from", uuid))
    op.add_column("dead_letters", sa.Column("edited_to", uuid))
    op.add_column("dead_letters", sa.Column("discard_reason", sa.Text))
    op.add_column("dead_letters", sa.Column("changed_by", sa.String(200)))
    op.add_column("dead_letters", sa.Column("redrive_job", uuid))
    op.add_column("dead_letters", sa.Column("redriven_at", UtcTime))
    op.create_index("dead_letters_redrive_job", "dead_letters", ["redrive_job", "status"])
    op.create_index("dead_letters_edited_to", "dead_letters", ["edited_to"])

    op.create_table(
        "redrive_jobs",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("selection", json, nullable=False),
        sa.Column("selection_key", sa.String(64)),
        sa.Column("requested_by", sa.String(200), nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("canary", sa.Boolean, nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("stage_sent", sa.BigInteger, nullable=False),
        sa.Column("stage_died", sa.BigInteger, nullable=False),
        sa.Column("rate", sa.Double),
        sa.Column("max_died_share", sa.Double, nullable=False),
        sa.Column("patience", sa.Double, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("sent", sa.BigInteger, nullable=False),
        sa.Column("arrived", sa.BigInteger, nullable=False),
        sa.Column("died_again", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("changed_at", UtcTime, nullable=False),
        sa.Column("ended_at", UtcTime),
        sa.Column("lease_owner", sa.String(200)),
        sa.Column("lease_until", UtcTime),
    )
    op.create_index("redrive_jobs_selection_key", "redrive_jobs", ["selection_key"], unique=True)
    op.create_index("redrive_jobs_state", "redrive_jobs", ["state", "created_at"])

    op.create_table(
        "audit_log",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("queue", sa.String(80)),
        sa.Column("selection", json),
        sa.Column("count", sa.BigInteger),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("audit_log_at", "audit_log", ["at"])
