"""
What services have answered to forwarded requests, kept for a while for those who sent them.

Only adds. A copy of the tables as they were then: later changes of `forebay.storage.tables`
must not change what this step does.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from forebay.storage.tables import UtcTime

revision = "0005"
down_revision: str | None = "0004"


def upgrade() -> None:
    uuid = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite", "mysql", "mariadb")
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql").with_variant(sa.Text(), "sqlite")
    body = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
    digest = sa.LargeBinary(32).with_variant(mysql.VARBINARY(32), "mysql", "mariadb")

    op.create_table(
        "answers",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("destination", sa.String(200), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("headers", json, nullable=False),
        sa.Column("body", body, nullable=False),
        sa.Column("complete", sa.Boolean, nullable=False),
        sa.Column("digest", digest, nullable=False),
        sa.Column("answered_at", UtcTime, nullable=False),
    )
    op.create_index("answers_answered_at", "answers", ["answered_at"])
