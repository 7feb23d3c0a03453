"""
The tables, as every supported database can hold them.

Times are UTC. On PostgreSQL ids are `uuid`, JSON is `jsonb`; on SQLite both are
text, and times are text that sorts ("2026-01-31 12:00:00.000000"). On MySQL and
MariaDB ids are text and are compared byte by byte, as all our text there: see
`forebay.storage.mysqlschema`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

metadata = sa.MetaData()

BROKER_LENGTH = 400
"""The most characters of a broker's identity that are kept: a key of every database can hold them."""


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A timezone-aware datetime, kept in UTC to the microsecond."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.TIMESTAMP(timezone=True))
        if dialect.name == "mysql":
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _id() -> TypeEngine[str]:
    # Text with hyphens where there is no uuid type: what a person searches for is what is stored.
    return sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite", "mysql", "mariadb")


class JsonText(sa.types.TypeDecorator[Any]):
    """
    JSON as text, for SQLite.

    A column that is declared JSON there has numeric affinity: the document 0 would be
    kept as an integer, and a long number as a float.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else orjson.dumps(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else orjson.loads(value)


def _json() -> TypeEngine[Any]:
    return (
        sa.JSON(none_as_null=True)
        .with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
        .with_variant(JsonText(), "sqlite")
    )


def _bytes() -> TypeEngine[bytes]:
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _text() -> TypeEngine[str]:
    # MySQL's TEXT ends at 64 KB.
    return sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def _digest() -> TypeEngine[bytes]:
    return sa.LargeBinary(32).with_variant(mysql.VARBINARY(32), "mysql", "mariadb")


messages = sa.Table(
    "messages",
    metadata,
    sa.Column("id", _id(), primary_key=True),
    sa.Column("queue", sa.String(80), nullable=False),
    sa.Column("key", _text()),
    sa.Column("content_type", _text(), nullable=False),
    sa.Column("headers", _json(), nullable=False),
    sa.Column("payload", _json()),
    sa.Column("body", _bytes(), nullable=False),
    sa.Column("accepted_at", UtcTime, nullable=False),
    sa.Column("stored_at", UtcTime, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    # "The latest of a queue", and pruning by age.
    sa.Index("messages_queue_stored_at", "queue", "stored_at"),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("id", _id(), primary_key=True),
    sa.Column("destination", sa.String(200), primary_key=True),
    sa.Column("queue", sa.String(80), nullable=False),
    sa.Column("key", _text()),
    sa.Column("content_type", _text(), nullable=False),
    sa.Column("headers", _json(), nullable=False),
    sa.Column("body", _bytes(), nullable=False),
    sa.Column("accepted_at", UtcTime, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("reason", _text(), nullable=False),
    sa.Column("error_class", sa.String(200), nullable=False),
    sa.Column("fingerprint", sa.String(32), nullable=False),
    sa.Column("detail", _text(), nullable=False),
    sa.Column("died_at", UtcTime, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("changed_at", UtcTime, nullable=False),
    sa.Column("original_id", _id()),
    sa.Column("history", _json()),
    sa.Column("edited_from", _id()),
    sa.Column("edited_to", _id()),
    sa.Column("discard_reason", sa.Text),
    sa.Column("changed_by", sa.String(200)),
    sa.Column("redrive_job", _id()),
    sa.Column("redriven_at", UtcTime),
    # Also answers "is any of them open?" in a moment, which every batch asks.
    sa.Index("dead_letters_status_died_at", "status", "died_at"),
    sa.Index("dead_letters_fingerprint", "fingerprint", "died_at"),
    sa.Index("dead_letters_original_id", "original_id"),
    sa.Index("dead_letters_redrive_job", "redrive_job", "status"),
    sa.Index("dead_letters_edited_to", "edited_to"),
)

redrive_jobs = sa.Table(
    "redrive_jobs",
    metadata,
    sa.Column("id", _id(), primary_key=True),
    sa.Column("selection", _json(), nullable=False),
    # Set while the job is not over: no two jobs over the same selection at a time.
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
    sa.Index("redrive_jobs_selection_key", "selection_key", unique=True),
    sa.Index("redrive_jobs_state", "state", "created_at"),
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", _id(), primary_key=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("who", sa.String(200), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("queue", sa.String(80)),
    sa.Column("selection", _json()),
    sa.Column("count", sa.BigInteger),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Index("audit_log_at", "at"),
)

processed_messages = sa.Table(
    "processed_messages",
    metadata,
    sa.Column("destination", sa.String(200), nullable=False),
    sa.Column("id", _id(), nullable=False),
    sa.Column("digest", _digest(), nullable=False),
    sa.Column("processed_at", UtcTime, nullable=False),
    # The id first: it is looked up alone, too.
    sa.PrimaryKeyConstraint("id", "destination"),
    sa.Index("processed_messages_processed_at", "processed_at"),
    sqlite_with_rowid=False,
)

answers = sa.Table(
    "answers",
    metadata,
    sa.Column("id", _id(), primary_key=True),
    sa.Column("destination", sa.String(200), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("headers", _json(), nullable=False),
    sa.Column("body", _bytes(), nullable=False),
    sa.Column("complete", sa.Boolean, nullable=False),
    # Of the request's body: another request may have come under its id.
    sa.Column("digest", _digest(), nullable=False),
    sa.Column("answered_at", UtcTime, nullable=False),
    sa.Index("answers_answered_at", "answered_at"),
)

consumer_reports = sa.Table(
    "consumer_reports",
    metadata,
    sa.Column("process", sa.String(200), primary_key=True),
    sa.Column("broker", sa.String(BROKER_LENGTH), primary_key=True),
    sa.Column("queue", sa.String(80), primary_key=True),
    sa.Column("in_hand", sa.BigInteger, nullable=False),
    sa.Column("waiting", sa.BigInteger),
    sa.Column("scheduled", sa.BigInteger),
    sa.Column("oldest_age", sa.Double),
    sa.Column("state", sa.String(16), nullable=False, server_default=""),
    sa.Column("pause_reason", sa.Text),
    sa.Column("reported_at", UtcTime, nullable=False),
)

broker_depths = sa.Table(
    "broker_depths",
    metadata,
    sa.Column("broker", sa.String(BROKER_LENGTH), primary_key=True),
    sa.Column("queue", sa.String(80), primary_key=True),
    sa.Column("url", _text(), nullable=False),
    sa.Column("held", sa.BigInteger, nullable=False),
    sa.Column("exact", sa.Boolean, nullable=False),
    sa.Column("seen_at", UtcTime, nullable=False),
)

queue_controls = sa.Table(
    "queue_controls",
    metadata,
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

crash_suspects = sa.Table(
    "crash_suspects",
    metadata,
    sa.Column("queue", sa.String(80), primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("alone", sa.Integer, nullable=False),
    sa.Column("seen_at", UtcTime, nullable=False),
)
