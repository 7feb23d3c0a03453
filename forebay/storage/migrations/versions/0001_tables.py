"""
The messages, dead letters and once-only records.

A copy of the tables as they were then: later changes of `forebay.storage.tables`
must not change what this step does.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from forebay.storage.tables import UtcTime

revision = "0001"
down_revision: str | None = None


def upgrade() -> None:
    uuid = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite", "mysql", "mariadb")
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql").with_variant(sa.Text(), "sqlite")
    binary = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")

    text = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")

    op.create_table(
        "messages",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("queue", sa.String(80), nullable=False),
        sa.Column("key", text),
        sa.Column("content_type", text, nullable=False),
        sa.Column("headers", json, nullable=False),
        sa.Column("payload", json),
        sa.Column("body", binary, nullable=False),
        sa.Column("accepted_at", UtcTime, nullable=False),
        sa.Column("stored_at", UtcTime, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("messages_queue_stored_at", "messages", ["queue", "stored_at"])

    op.create_table(
        "dead_letters",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("destination", sa.String(200), primary_key=True),
        sa.Column("queue", sa.String(80), nullable=False),
        sa.Column("key", text),
        sa.Column("content_type", text, nullable=False),
        sa.Column("headers", json, nullable=False),
        sa.Column("body", binary, nullable=False),
        sa.Column("accepted_at", UtcTime, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("reason", text, nullable=False),
        sa.Column("error_class", sa.String(200), nullable=False),
        sa.Column("fingerprint", sa.String(32), nullable=False),
        sa.Column("detail", text, nullable=False),
        sa.Column("died_at", UtcTime, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("changed_at", UtcTime, nullable=False),
        sa.Column("original_id", uuid),
    )
    op.create_index("dead_letters_status_died_at", "dead_letters", ["status", "died_at"])
    op.create_index("dead_letters_fingerprint", "dead_letters", ["fingerprint", "died_at"])
    op.create_index("dead_letters_original_id", "dead_letters", ["original_id"])

    op.create_table(
        "processed_messages",
        sa.Column("destination", sa.String(200), primary_key=True),
        sa.Column("id", uuid, primary_key=True),
        sa.Column(
            "digest", sa.LargeBinary(32).with_variant(mysql.VARBINARY(32), "mysql", "mariadb"), nullable=False
        ),
        sa.Column("processed_at", UtcTime, nullable=False),
    )
    op.create_index("processed_messages_id", "processed_messages", ["id"])
    op.create_index("processed_messages_processed_at", "processed_messages", ["processed_at"])
