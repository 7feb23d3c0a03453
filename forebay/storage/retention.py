"""How long it is remembered which messages were handled, and forgetting the rest in small batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from forebay.storage.database import Database
from forebay.storage.dead_letters import OPEN
from forebay.storage.prune import delete_in_batches
from forebay.storage.tables import dead_letters, processed_messages

PAUSE = 0.05
"""Seconds between two batches: others write into the same table."""


def oldest_open_dead_letter(database: Database) -> datetime | None:
    """When the oldest message that may still be sent back was accepted; None when there is none."""
    query = sa.select(sa.func.min(dead_letters.c.accepted_at)).where(dead_letters.c.status.in_(OPEN))
    with database.read() as connection:
        found: datetime | None = connection.execute(query).scalar_one()
    return found


def forget_processed(
    database: Database,
    *,
    older_than: float,
    batch: int = 1_000,
    at_most: int = 100_000,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """
    Delete once-only records of more than `older_than` seconds ago; return how many.

    Never one that is younger than the oldest message among the open dead letters: what is sent
    back from there must still be recognised if it was handled after all.
    """
    before = datetime.now(UTC) - timedelta(seconds=older_than)
    if (oldest := oldest_open_dead_letter(database)) is not None:
        before = min(before, oldest)
    total = 0
    old = [processed_messages.c.processed_at < before]
    for deleted in delete_in_batches(database, processed_messages, old, batch):
        total += deleted
        if total >= at_most:
            break
        sleep(PAUSE)
    return total
