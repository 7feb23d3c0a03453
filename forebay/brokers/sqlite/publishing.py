"""The jobs of the publishing writer. They are applied under `synchronous = full`: a result is a promise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from forebay.brokers.api import PublishResult
from forebay.brokers.naming import dead_letter_queue
from forebay.brokers.sqlite.files import SideFiles
from forebay.brokers.sqlite.schema import one_row
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.brokers.sqlite.storing import MOST_ROWS, Rows, is_text
from forebay.brokers.sqlite.writer import Transaction
from forebay.errors import (
    BrokerError,
    BrokerUnavailable,
    MessageTooLarge,
    PublishError,
    PublishRejected,
    PublishUnconfirmed,
    QueueFull,
)
from forebay.message import Message, bodies_of

_COUNT = "update queue set messages = messages + ?, bytes = bytes + ? where id = ?"

STORED = PublishResult(durability="synced")
"""What is said of every message that was stored; never changed, as no result is."""


LOOK_EVERY = 20_000
"""Microseconds for which plenty of room is believed to be there, without another look."""
PLENTY = 256 * 2**20
"""Bytes that nobody fills in that time."""


class Room(NamedTuple):
    """How many more bytes of bodies may be stored, and why not more."""

    bytes: int
    why: str


class Limits:
    """Whether there is room for more."""

    def __init__(self, files: SideFiles, settings: SQLiteSettings, *, at_once: bool = False) -> None:
        self.files = files
        self.max_body_bytes = settings.max_body_bytes
        self.at_once = at_once
        """Delayed messages are lent before their time: whoever takes them keeps it."""
        self._max_bytes = settings.max_bytes
        self._plenty_at: int | None = None
        """When there was plenty of room, at the last look."""

    def allow(self, size: int, tx: Transaction) -> bool:
        """Whether so many bytes more may be stored; mostly without a look."""
        since = None if self._plenty_at is None else tx.now - self._plenty_at
        if since is not None and 0 <= since < LOOK_EVERY and size < PLENTY // 4:
            return True
        return size <= self.room(tx).bytes

    def room(self, tx: Transaction) -> Room:
        """Look how much room there is, besides what the transaction has stored already."""
        self._plenty_at = None
        free, low_water = self.files.free_and_low_water()
        if free < low_water:
            return Room(
                0,
                f"the disk under {self.files.database} has {free} bytes free;"
                f" publishes are refused below {low_water} (broker.sqlite.min_free_bytes)",
            )
        self.files.ballast.restore(free, low_water)
        (stored,) = one_row(tx.db, "select coalesce(sum(bytes), 0) from queue")
        limit = self._max_bytes
        if min(free - low_water, limit - stored) > PLENTY:
            self._plenty_at = tx.now
        return Room(
            limit - stored,
            f"the queue file holds {stored} bytes of messages;"
            f" its limit is {limit} (broker.sqlite.max_bytes)",
        )


class FutureJob:
    """A job whose result is awaited."""

    __slots__ = ("future", "weight")

    def __init__(self) -> None:
        self.future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.weight = 0

    def apply(self, tx: Transaction) -> object:
        raise NotImplementedError

    def deliver(self, result: object) -> None:
        if self.future.done():
            return  # its caller has gone, or was told at the deadline
        if isinstance(result, BrokerError) and not isinstance(result, PublishError):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)

    def unknown(self, error: BrokerError) -> object:
        return error


class Publish(FutureJob):
    """Store messages in one queue. The result is the list of PublishResults."""

    __slots__ = ("_rows", "limits", "messages", "queue_id")

    def __init__(self, limits: Limits, queue_id: int, messages: Sequence[Message]) -> None:
        super().__init__()
        self.limits = limits
        self.queue_id = queue_id
        self.messages = messages
        sizes = [*map(len, bodies_of(messages))]
        self.weight = sum(sizes)
        self._rows: Rows | None = None
        """All of them as rows, where nothing is to be said of any: nearly always."""
        if 0 < len(sizes) <= MOST_ROWS and max(sizes) <= limits.max_body_bytes:
            with contextlib.suppress(ValueError):
                self._rows = Rows(messages)

    def apply(self, tx: Transaction) -> list[PublishResult]:
        if self._rows is not None and self.limits.allow(self.weight, tx):
            try:
                self._store(tx, self._rows, len(self.messages), self.weight)
            except ValueError:
                pass  # raised before anything was written
            else:
                return [STORED] * len(self.messages)
        return self._one_by_one(tx)

    def _one_by_one(self, tx: Transaction) -> list[PublishResult]:
        """Store what can be stored, and say what is wrong with the others."""
        room, max_body = self.limits.room(tx), self.limits.max_body_bytes
        results: list[PublishResult] = []
        taken: list[Message] = []
        stored_bytes = 0
        for m in self.messages:
            size = len(m.body)
            error: PublishError
            if size > max_body:
                error = MessageTooLarge(size, max_body)
            elif stored_bytes >= room.bytes:
                error = QueueFull(room.why)
            elif not is_text(m):
                error = PublishRejected(
                    "id, key, content type or a header holds text that is not valid Unicode"
                )
            else:
                taken.append(m)
                stored_bytes += size
                results.append(STORED)
                continue
            results.append(PublishResult(message_id=m.id, error=error))
        if taken:
            self._store(tx, Rows(taken), len(taken), stored_bytes)
        return results

    def _store(self, tx: Transaction, rows: Rows, count: int, size: int) -> None:
        rows.insert(tx.db, self.queue_id, None if self.limits.at_once else tx.now)
        tx.db.execute(_COUNT, (count, size, self.queue_id))
        tx.ring.add(self.queue_id)

    def unknown(self, error: BrokerError) -> list[PublishResult]:
        return failed(self.messages, PublishUnconfirmed(str(error)))

    def full_disk(self) -> list[PublishResult]:
        return failed(self.messages, QueueFull(f"the disk under {self.limits.files.database} is full"))


def failed(messages: Sequence[Message], error: PublishError) -> list[PublishResult]:
    return [PublishResult(message_id=m.id, error=error) for m in messages]


class Declare(FutureJob):
    """Create a queue and its dead-letter queue."""

    __slots__ = ("queue",)

    def __init__(self, queue: str) -> None:
        super().__init__()
        self.queue = queue

    def apply(self, tx: Transaction) -> None:
        for name in (self.queue, dead_letter_queue(self.queue)):
            tx.db.execute("insert into queue (name) values (?) on conflict do nothing", (name,))


class Ping(FutureJob):
    """Find out whether a publish would be stored now: it has had the turn and the write lock."""

    __slots__ = ("limits",)

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits

    def apply(self, tx: Transaction) -> object:
        room = self.limits.room(tx)
        return None if room.bytes > 0 else BrokerUnavailable(room.why)
