"""
What waits behind a failed message of its ordering key, in an ordered subscription.

A failed message is the *head* of its key until it is settled for good: one row of `parked`. What is
behind it is set aside when somebody comes across it: its slot moves to `due = -head`, out of the way
of those who look for work, and all of these come back together when the head is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from forebay.brokers.sqlite.writer import Transaction

MOST_SET_ASIDE = 10_000
"""
Messages set aside behind one head: so many come back in one transaction. What is behind these stays
where it is, and is looked through by whoever looks for work.
"""

ANY_PARKED = "select 1 from parked where queue = ? limit 1"
_HEAD = "select seq, followers from parked where queue = ? and key = ? order by seq limit 1"
_EXISTS = "select 1 from message where seq = ?"
_PARK = "insert into parked (queue, key, seq, followers) values (?, ?, ?, 0) on conflict do nothing"
_END = "delete from parked where queue = ? and key = ? and seq = ?"
_SET_ASIDE = "update slot set due = ? where queue = ? and due = ? and seq = ?"
_COUNT = "update parked set followers = ? where queue = ? and key = ? and seq = ?"
_BRING_BACK = "update slot set due = 0 where queue = ? and due = ?"
_BRING_ALL_BACK = "update slot set due = 0 where queue = ? and due < 0"
_END_ALL = "delete from parked where queue = ?"


class Heads:
    """The failed messages of one queue, as one lease sees them."""

    def __init__(self, tx: Transaction, queue_id: int) -> None:
        self._tx = tx
        self._queue_id = queue_id
        self._known: dict[str, tuple[int, int] | None] = {}
        """By key: the head's number, and how many are set aside behind it."""
        self.set_aside = 0

    def bars(self, due: int, seq: int, key: str | None) -> bool:
        """Whether a message must wait behind one that has failed; if so, it is set aside."""
        if key is None:
            return False
        head = self._head(key)
        if head is None or seq <= head[0]:
            return False
        number, followers = head
        if followers < MOST_SET_ASIDE:
            db = self._tx.db
            db.execute(_SET_ASIDE, (-number, self._queue_id, due, seq))
            db.execute(_COUNT, (followers + 1, self._queue_id, key, number))
            self._known[key] = (number, followers + 1)
            self.set_aside += 1
        return True

    def _head(self, key: str) -> tuple[int, int] | None:
        if key not in self._known:
            db = self._tx.db
            head: tuple[Any, ...] | None = db.execute(_HEAD, (self._queue_id, key)).fetchone()
            if head is not None and db.execute(_EXISTS, (head[0],)).get is None:
                # Somebody removed the message by hand, and nothing would ever end its turn. What comes
                # back now may be before what this lease has read: the next one sees all of it.
                end(self._tx, self._queue_id, [(key, head[0])])
                self.set_aside += 1
                head = (0, MOST_SET_ASIDE)
            self._known[key] = head
        return self._known[key]


class Gate:
    """What of some rows (due, seq, …) may be lent to one owner now."""

    def __init__(self, barred: frozenset[str], heads: Heads | None, key_column: int) -> None:
        self._barred = barred
        self._heads = heads
        self._key = key_column
        self._held_up = False

    def free(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        if self._barred:
            found = [row for row in rows if row[self._key] not in self._barred]
            self._held_up |= len(found) < len(rows)
            rows = found
        if self._heads is not None:
            rows = [row for row in rows if not self._heads.bars(row[0], row[1], row[self._key])]
        return rows

    @property
    def look_again(self) -> bool:
        """Whoever holds a key rings no bell when it lets go; and what was set aside made room for more."""
        return self._held_up or (self._heads is not None and self._heads.set_aside > 0)


def any_parked(db: apsw.Connection, queue_id: int) -> bool:
    return db.execute(ANY_PARKED, (queue_id,)).get is not None


def park(tx: Transaction, queue_id: int, failed: Sequence[tuple[str, int]]) -> None:
    """Note failed messages, by key and number, as heads; those that are so already stay it."""
    tx.db.executemany(_PARK, [(queue_id, key, seq) for key, seq in failed])


def end(tx: Transaction, queue_id: int, done: Sequence[tuple[str, int]]) -> None:
    """Settled for good: what is behind these is free again. Those that were no heads are passed over."""
    for key, seq in done:
        tx.db.execute(_END, (queue_id, key, seq))
        if tx.db.changes():
            tx.db.execute(_BRING_BACK, (queue_id, -seq))
            tx.ring.add(queue_id)


def forget(tx: Transaction, queue_id: int) -> None:
    """The queue is no longer read in order: nothing waits for a head."""
    tx.db.execute(_BRING_ALL_BACK, (queue_id,))
    tx.db.execute(_END_ALL, (queue_id,))


def gate(tx: Transaction, queue_id: int, barred: frozenset[str], *, key_column: int, ordered: bool) -> Gate:
    """For an owner that is to get nothing of the `barred` keys."""
    heads = None
    if any_parked(tx.db, queue_id):
        if ordered:
            heads = Heads(tx, queue_id)
        else:
            forget(tx, queue_id)
    return Gate(barred, heads, key_column)
