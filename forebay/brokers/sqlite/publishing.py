"""The jobs of the publishing writer. They are applied under `synchronous = full`: a result is a promise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from forebay.brokers.api import PublishResult
from forebay.brokers.naming import dead_letter_queue
from forebay.brokers.sqlite.files import SideFiles
from forebay.brokers.sqlite.schema import one_row
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.brokers.sqlite.storing import MOST_ROWS, is_text, store
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


@dataclass(frozen=True, slots=True)
class Limits:
    """Whether there is room for more."""

    files: SideFiles
    settings: SQLiteSettings
    at_once: bool = False
    """Delayed messages are lent before their time: whoever takes them keeps it."""

    def room(self, tx: Transaction) -> int:
        """How many more bytes of bodies may be stored; asked once per transaction."""
        if tx.room is not None:
            return tx.room
        free, low_water = self.files.free_and_low_water()
        if free < low_water:
            tx.room = 0
            tx.no_room = (
                f"the disk under {self.files.database} has {free} bytes free;"
                f" publishes are refused below {low_water} (broker.sqlite.min_free_bytes)"
            )
            return 0
        self.files.ballast.restore(free, low_water)
        (stored,) = one_row(tx.db, "select coalesce(sum(bytes), 0) from queue")
        limit = self.settings.max_bytes
        tx.room = limit - stored
        tx.no_room = (
            f"the queue file holds {stored} bytes of messages; its limit is {limit} (broker.sqlite.max_bytes)"
        )
        return tx.room


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

    __slots__ = ("bodies", "limits", "messages", "queue_id")

    def __init__(self, limits: Limits, queue_id: int, messages: Sequence[Message]) -> None:
        super().__init__()
        self.limits = limits
        self.queue_id = queue_id
        self.messages = messages
        self.bodies = bodies_of(messages)
        self.weight = sum(map(len, self.bodies))

    def apply(self, tx: Transaction) -> list[PublishResult]:
        room = self.limits.room(tx)
        count = len(self.messages)
        largest = max(map(len, self.bodies), default=0)
        if 0 < count <= MOST_ROWS and self.weight <= room and largest <= self.limits.settings.max_body_bytes:
            try:
                # Nearly always all of them are taken, and nothing is to be said of any.
                self._store(tx, self.messages, self.weight)
            except UnicodeEncodeError:
                pass  # raised before anything was written
            else:
                return [STORED] * count
        return self._one_by_one(tx, room)

    def _one_by_one(self, tx: Transaction, room: int) -> list[PublishResult]:
        """Store what can be stored, and say what is wrong with the others."""
        max_body = self.limits.settings.max_body_bytes
        results: list[PublishResult] = []
        taken: list[Message] = []
        stored_bytes = 0
        for m in self.messages:
            size = len(m.body)
            error: PublishError
            if size > max_body:
                error = MessageTooLarge(size, max_body)
            elif stored_bytes >= room:
                error = QueueFull(tx.no_room)
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
            self._store(tx, taken, stored_bytes)
        return results

    def _store(self, tx: Transaction, messages: Sequence[Message], size: int) -> None:
        store(tx.db, self.queue_id, messages, None if self.limits.at_once else tx.now)
        tx.db.execute(_COUNT, (len(messages), size, self.queue_id))
        assert tx.room is not None, "it was asked for"
        tx.room -= size
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
        return None if self.limits.room(tx) > 0 else BrokerUnavailable(tx.no_room)
