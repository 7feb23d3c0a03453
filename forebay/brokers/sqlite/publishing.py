"""The jobs of the publishing writer. They are applied under `synchronous = full`: a result is a promise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from forebay.brokers.api import PublishResult
from forebay.brokers.naming import dead_letter_queue
from forebay.brokers.sqlite.files import SideFiles
from forebay.brokers.sqlite.schema import one_row
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.brokers.sqlite.writer import Transaction
from forebay.brokers.wire import to_micros
from forebay.errors import (
    BrokerError,
    BrokerUnavailable,
    MessageTooLarge,
    PublishError,
    PublishRejected,
    PublishUnconfirmed,
    QueueFull,
)
from forebay.message import Message

_INSERT_MESSAGE = (
    "insert into message (id, key, content_type, headers, accepted_at, not_before, expires_at, body)"
    " values (?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_SLOTS = (
    "insert into slot (queue, due, seq, attempt, deferrals)"
    " select ?, 0, seq, 1, 0 from message where seq between ? and ?"
)
_INSERT_SLOT = "insert into slot (queue, due, seq, attempt, deferrals) values (?, ?, ?, 1, 0)"


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

    __slots__ = ("limits", "messages", "queue_id")

    def __init__(self, limits: Limits, queue_id: int, messages: Sequence[Message]) -> None:
        super().__init__()
        self.limits = limits
        self.queue_id = queue_id
        self.messages = messages
        self.weight = sum([len(m.body) for m in messages])

    def apply(self, tx: Transaction) -> list[PublishResult]:
        room = self.limits.room(tx)
        max_body = self.limits.settings.max_body_bytes
        results: list[PublishResult] = []
        rows: list[tuple[object, ...]] = []
        delayed: list[tuple[int, int]] = []
        stored_bytes = 0
        for m in self.messages:
            size = len(m.body)
            error: PublishError
            if size > max_body:
                error = MessageTooLarge(size, max_body)
            elif stored_bytes >= room:
                error = QueueFull(tx.no_room)
            elif (row := _row(m)) is None:
                error = PublishRejected(
                    "id, key, content type or a header holds text that is not valid Unicode"
                )
            else:
                if (
                    m.not_before is not None
                    and (due := to_micros(m.not_before)) > tx.now
                    and not self.limits.at_once
                ):
                    delayed.append((len(rows), due))
                rows.append(row)
                stored_bytes += size
                results.append(PublishResult(message_id=m.id, durability="synced"))
                continue
            results.append(PublishResult(message_id=m.id, error=error))
        if rows:
            self._insert(tx, rows, delayed)
            tx.db.execute(
                "update queue set messages = messages + ?, bytes = bytes + ? where id = ?",
                (len(rows), stored_bytes, self.queue_id),
            )
            tx.room = room - stored_bytes
            tx.ring.add(self.queue_id)
        return results

    def _insert(
        self, tx: Transaction, rows: list[tuple[object, ...]], delayed: list[tuple[int, int]]
    ) -> None:
        db = tx.db
        db.executemany(_INSERT_MESSAGE, rows)
        # Nobody else writes now, and an autoincrement key only grows by one: the rows are consecutive.
        first = db.last_insert_rowid() - len(rows) + 1
        start = 0
        for i, due in delayed:
            if i > start:
                db.execute(_INSERT_SLOTS, (self.queue_id, first + start, first + i - 1))
            db.execute(_INSERT_SLOT, (self.queue_id, due, first + i))
            start = i + 1
        if start < len(rows):
            db.execute(_INSERT_SLOTS, (self.queue_id, first + start, first + len(rows) - 1))

    def unknown(self, error: BrokerError) -> list[PublishResult]:
        return failed(self.messages, PublishUnconfirmed(str(error)))

    def full_disk(self) -> list[PublishResult]:
        return failed(self.messages, QueueFull(f"the disk under {self.limits.files.database} is full"))


def failed(messages: Sequence[Message], error: PublishError) -> list[PublishResult]:
    return [PublishResult(message_id=m.id, error=error) for m in messages]


def _row(m: Message) -> tuple[object, ...] | None:
    """The message's columns, or None if its texts cannot be stored: half a surrogate pair is no text."""
    if not (m.id.isascii() and m.content_type.isascii() and (m.key is None or m.key.isascii())):
        try:
            f"{m.id}{m.content_type}{m.key}".encode()
        except UnicodeEncodeError:
            return None
    headers = None
    if m.headers:
        headers = headers_to_text(m.headers)
        if headers is None:
            return None
    return (
        m.id,
        m.key,
        m.content_type,
        headers,
        to_micros(m.accepted_at),
        None if m.not_before is None else to_micros(m.not_before),
        None if m.expires_at is None else to_micros(m.expires_at),
        m.body,
    )


def headers_to_text(headers: Mapping[str, str]) -> str | None:
    try:
        return orjson.dumps(dict(headers)).decode()
    except TypeError:
        return None


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
