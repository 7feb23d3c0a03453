"""Which published messages the server has answered for: tags counted, no connection needed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from forebay.brokers.api import Durability, PublishResult
from forebay.errors import NotSent, PublishError, PublishUnconfirmed, QueueFull


class Batch:
    """The results of one `publish` call, filled in as they become known."""

    __slots__ = ("done", "durability", "ids", "open", "results")

    def __init__(self, ids: list[str], durability: Durability) -> None:
        self.ids = ids
        self.durability = durability
        self.results: list[PublishResult | None] = [None] * len(ids)
        self.open = len(ids)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, index: int, error: PublishError | None) -> None:
        """The first word about a message counts: what was given up as unconfirmed stays so."""
        if self.results[index] is not None:
            return
        id_ = self.ids[index]
        if error is None:
            self.results[index] = PublishResult(message_id=id_, durability=self.durability)
        else:
            self.results[index] = PublishResult(message_id=id_, error=error)
        self.open -= 1
        if not self.open and not self.done.done():
            self.done.set_result(None)

    def expire(self, text: str) -> None:
        """Everything that is still open may be stored or not."""
        for index, result in enumerate(self.results):
            if result is None:
                self.settle(index, PublishUnconfirmed(text))


class Confirms:
    """
    The unconfirmed messages of one channel, in the order they were sent.

    Both sides count: the n-th message published on a channel in confirm mode has
    tag n. The server answers with the tag, `multiple` meaning all up to it. A
    message that no queue takes (`mandatory`) is returned first, without its tag,
    and then acknowledged all the same.
    """

    def __init__(self, room: Callable[[], None]) -> None:
        self.count = 0
        self.bytes = 0
        self.answers = 0
        """How often the server has said anything."""
        self._tag = 0
        self._open: OrderedDict[int, tuple[Batch, int, int, tuple[str, str, str]]] = OrderedDict()
        self._returned: dict[tuple[str, str, str], int] = {}
        self._room = room

    def sent(self, batch: Batch, index: int, size: int, exchange: str, routing_key: str) -> None:
        self._tag += 1
        self._open[self._tag] = (batch, index, size, (batch.ids[index], exchange, routing_key))
        self.count += 1
        self.bytes += size

    def returned(self, message_id: str, exchange: str, routing_key: str) -> None:
        key = (message_id, exchange, routing_key)
        self._returned[key] = self._returned.get(key, 0) + 1

    def answered(self, tag: int, *, multiple: bool, taken: bool) -> None:
        self.answers += 1
        if not multiple:
            entry = self._open.pop(tag, None)
            if entry is not None:
                self._settle(entry, taken)
        else:
            # Tag 0 means all.
            while self._open and (tag == 0 or next(iter(self._open)) <= tag):
                self._settle(self._open.popitem(last=False)[1], taken)
        self._room()

    def _settle(self, entry: tuple[Batch, int, int, tuple[str, str, str]], taken: bool) -> None:
        batch, index, size, key = entry
        self.count -= 1
        self.bytes -= size
        error: PublishError | None = None
        if not taken:
            error = QueueFull(
                f"RabbitMQ refused a message for {key[2]!r}: the queue is at its limit,"
                " or no node leads it at the moment"
            )
        if self._returned:
            times = self._returned.pop(key, 0)
            if times:
                gone = f"delay queue {key[1]!r}" if key[1] else f"queue {key[2]!r}"
                error = NotSent(f"the {gone} is not there (any more)")
            if times > 1:
                self._returned[key] = times - 1
        batch.settle(index, error)

    def lost(self, reason: str) -> None:
        """The channel is gone, and with it all answers."""
        entries, self._open = self._open, OrderedDict()
        self.count = self.bytes = 0
        for batch, index, _, _ in entries.values():
            batch.settle(index, PublishUnconfirmed(f"the connection was lost before the answer: {reason}"))
        self._room()
