"""Which published messages the server has answered for: tags counted, no connection needed."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import attrgetter

from forebay.brokers.api import Durability, PublishResult
from forebay.errors import NotSent, PublishError, PublishUnconfirmed, QueueFull


class Batch:
    """The results of one `publish` call, filled in as they become known."""

    __slots__ = ("done", "durability", "ids", "open", "results")

    def __init__(self, ids: Sequence[str], durability: Durability) -> None:
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
        self._settled(1)

    def stored(self, start: int, stop: int) -> None:
        """All of these, of which nothing was said before unless everything was given up."""
        if not self.open:
            return
        self.results[start:stop] = [PublishResult(durability=self.durability)] * (stop - start)
        self._settled(stop - start)

    def _settled(self, count: int) -> None:
        self.open -= count
        if not self.open and not self.done.done():
            self.done.set_result(None)

    def expire(self, text: str) -> None:
        """Everything that is still open may be stored or not."""
        for index, result in enumerate(self.results):
            if result is None:
                self.settle(index, PublishUnconfirmed(text))


class _Run:
    """Messages of one batch that went out one after the other, the same way: tags `first` to `end` - 1."""

    __slots__ = ("answered", "batch", "end", "exchange", "first", "offset", "routing_key", "sizes")

    def __init__(
        self, batch: Batch, start: int, first: int, sizes: list[int], exchange: str, routing_key: str
    ) -> None:
        self.batch = batch
        self.offset = start - first
        """From a tag to the index in the batch."""
        self.first = first
        self.end = first + len(sizes)
        self.sizes = sizes
        """Bytes of all messages up to `end`."""
        self.exchange = exchange
        self.routing_key = routing_key
        self.answered: set[int] = set()
        """Tags behind `first` that were answered out of turn."""

    def take(self, end: int) -> tuple[int, int]:
        """Go on to `end`; return how many messages and bytes were not answered before."""
        count, sizes = len(self.sizes), self.sizes
        left = self.end - end
        gone, self.sizes = sizes[: count - left], sizes[count - left :]
        number, size = len(gone), sum(gone)
        for tag in self.answered:
            if tag < end:
                number -= 1
                size -= gone[tag - self.first]
        self.first = end
        return number, size


_first = attrgetter("first")


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
        self._runs: list[_Run] = []
        """In order; none of them is answered as a whole."""
        self._returned: dict[tuple[str, str, str], int] = {}
        self._room = room

    def sent(self, batch: Batch, start: int, sizes: list[int], exchange: str, routing_key: str) -> None:
        """Messages of a batch, from index `start` on, with so many bytes each, all the same way."""
        self._runs.append(_Run(batch, start, self._tag + 1, sizes, exchange, routing_key))
        self._tag += len(sizes)
        self.count += len(sizes)
        self.bytes += sum(sizes)

    def returned(self, message_id: str, exchange: str, routing_key: str) -> None:
        key = (message_id, exchange, routing_key)
        self._returned[key] = self._returned.get(key, 0) + 1

    def taken(self, tag: int, multiple: bool) -> None:
        self.answered(tag, multiple=multiple, taken=True)

    def answered(self, tag: int, *, multiple: bool, taken: bool) -> None:
        self.answers += 1
        if multiple:
            self._up_to(tag or self._tag, taken)  # tag 0 means all
        else:
            self._only(tag, taken)
        self._room()

    def _up_to(self, tag: int, taken: bool) -> None:
        whole = 0
        for run in self._runs:
            if run.first > tag:
                break
            self._take(run, min(run.end, tag + 1), taken)
            whole += run.first == run.end
        if whole:
            del self._runs[:whole]

    def _only(self, tag: int, taken: bool) -> None:
        position = bisect_right(self._runs, tag, key=_first) - 1
        if position < 0:
            return
        run = self._runs[position]
        if tag >= run.end or tag in run.answered:
            return
        if tag != run.first:
            self.count -= 1
            self.bytes -= run.sizes[tag - run.first]
            self._settle(run, tag, tag + 1, taken)
            run.answered.add(tag)
            return
        end = tag + 1
        while end in run.answered:
            end += 1
        self._take(run, end, taken)
        if run.first == run.end:
            del self._runs[position]

    def _take(self, run: _Run, end: int, taken: bool) -> None:
        """What is open of a run up to `end` was answered."""
        first = run.first
        number, size = run.take(end)
        self.count -= number
        self.bytes -= size
        if not run.answered:
            self._settle(run, first, end, taken)
            return
        for tag in range(first, end):
            if tag not in run.answered:
                self._settle(run, tag, tag + 1, taken)
        run.answered = {tag for tag in run.answered if tag >= end}

    def _settle(self, run: _Run, first: int, end: int, taken: bool) -> None:
        start, stop = first + run.offset, end + run.offset
        if taken and not self._returned:
            run.batch.stored(start, stop)
            return
        for index in range(start, stop):
            key = (run.batch.ids[index], run.exchange, run.routing_key)
            run.batch.settle(index, self._error(key, taken))

    def _error(self, key: tuple[str, str, str], taken: bool) -> PublishError | None:
        times = self._returned.pop(key, 0)
        if times > 1:
            self._returned[key] = times - 1
        if times:
            gone = f"delay queue {key[1]!r}" if key[1] else f"queue {key[2]!r}"
            return NotSent(f"the {gone} is not there (any more)")
        if taken:
            return None
        return QueueFull(
            f"RabbitMQ refused a message for {key[2]!r}: the queue is at its limit,"
            " or no node leads it at the moment"
        )

    def lost(self, reason: str) -> None:
        """The channel is gone, and with it all answers."""
        runs, self._runs = self._runs, []
        self.count = self.bytes = 0
        for run in runs:
            for tag in range(run.first, run.end):
                if tag not in run.answered:
                    error = PublishUnconfirmed(f"the connection was lost before the answer: {reason}")
                    run.batch.settle(tag + run.offset, error)
        self._room()
