"""The once-only record: which messages a destination has handled, in the same transaction as the effect."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import sqlalchemy as sa

from forebay.brokers.api import Delivery
from forebay.sinks import WriteResult
from forebay.storage.dead_letters import resolve
from forebay.storage.messages import known_result, statements_for


class Claims(set[str]):
    """The ids that are new, and what became of each delivery of the batch."""

    def __init__(self, new: set[str], results: list[WriteResult]) -> None:
        super().__init__(new)
        self.results = results
        """
        Aligned with the batch: a plain result means that this delivery is to be handled;
        the others are duplicates, or carry an IdempotencyConflict.
        """


def claim(connection: sa.Connection, destination: str, batch: Sequence[Delivery]) -> Claims:
    """
    Record `batch` as handled by `destination`, in the transaction of `connection`.

    What is handled afterwards in this transaction happens once: both are committed or
    neither is. Another process that claims the same id meanwhile waits for this one to
    end. An id repeated in the batch is new for its first delivery only. Open dead
    letters of these ids for this destination are marked resolved.

    Raises:
        SQLAlchemy's or the driver's errors; see `forebay.storage.classify`.
    """
    if not batch:
        return Claims(set(), [])
    sql = statements_for(connection.dialect.name)
    first: dict[str, Delivery] = {}
    for delivery in batch:
        first.setdefault(delivery.message.id, delivery)
    ids = sorted(first)  # as for `messages`: two claims of the same ids never form a deadlock
    digests = [hashlib.sha256(first[i].message.body).digest() for i in ids]
    new = sql.claim(connection, destination, ids, digests)
    recorded = dict(zip(ids, digests, strict=True))
    known = [i for i in ids if i not in new]
    if known:
        recorded |= sql.claimed_digests(connection, destination, known)
    resolve(connection, destination, {i: first[i].message.body for i in new})
    return Claims(
        new,
        [
            WriteResult(message_id=d.message.id)
            if d.message.id in new and first[d.message.id] is d
            else known_result(d, recorded)
            for d in batch
        ],
    )
