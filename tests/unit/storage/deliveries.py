"""Deliveries and dead letters for the storage tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from forebay import ids
from forebay.brokers.api import Death, Delivery, Failure
from forebay.message import Message
from forebay.storage.database import Database
from forebay.storage.tables import messages

ACCEPTED = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


def delivery(
    body: bytes = b'{"n": 1}',
    *,
    id: str | None = None,
    queue: str = "orders",
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
    attempt: int = 1,
    death: Death | None = None,
) -> Delivery:
    message = Message(
        id=id or ids.new_id(),
        body=body,
        accepted_at=ACCEPTED,
        key=key,
        headers=headers or {},
        content_type=content_type,
    )
    return Delivery(message=message, queue=queue, attempt=attempt, receipt=None, death=death)


def dead(
    body: bytes = b'{"n": 1}',
    *,
    id: str | None = None,
    destination: str = "database",
    reason: str = "23514 CheckViolation, constraint positive",
    error_class: str = "CheckViolation",
    minute: int = 0,
    queue: str = "orders",
    original_id: str | None = None,
) -> Delivery:
    """A delivery as it comes from a dead-letter queue; it died `minute` minutes after the first ones."""
    death = Death(
        failure=Failure(reason=reason, error_class=error_class, destination=destination, detail="row (1)"),
        queue=queue,
        attempts=12,
        died_at=ACCEPTED + timedelta(hours=1, minutes=minute),
        original_id=original_id,
    )
    return delivery(body, id=id, queue=f"{queue}.dead", death=death)


def stored(database: Database, id: str) -> dict[str, Any]:
    """The row of a message."""
    with database.read() as connection:
        row = connection.execute(sa.select(messages).where(messages.c.id == id)).mappings().one()
        return dict(row)


def stored_body(database: Database, id: str) -> bytes:
    """The body of a message whose payload Python's parser may be too shallow to read."""
    with database.read() as connection:
        return bytes(connection.execute(sa.select(messages.c.body).where(messages.c.id == id)).scalar_one())


def stored_count(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(messages)).scalar_one())


def add_check(database: Database, name: str, condition: str) -> None:
    """A constraint of the user's own on `messages`."""
    with database.begin() as connection:
        if database.dialect != "sqlite":
            connection.exec_driver_sql(f"ALTER TABLE messages ADD CONSTRAINT {name} CHECK ({condition})")
            return
        # SQLite adds a constraint only to a new table.
        sql = connection.exec_driver_sql("SELECT sql FROM sqlite_schema WHERE name = 'messages'").scalar_one()
        connection.exec_driver_sql("DROP TABLE messages")
        connection.exec_driver_sql(
            f"{sql.rstrip().removesuffix(')')}, CONSTRAINT {name} CHECK ({condition}))"
        )


@contextmanager
def messages_locked(database: Database) -> Iterator[None]:
    """Meanwhile nobody else can write messages."""
    with database.begin() as connection:
        if database.dialect == "postgresql":
            connection.exec_driver_sql("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        if database.dialect == "mysql":
            connection.exec_driver_sql("LOCK TABLES messages WRITE")
        yield
        if database.dialect == "mysql":
            connection.exec_driver_sql("UNLOCK TABLES")
