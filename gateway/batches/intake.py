"""One batch on its way in: what has arrived of it, what waits for a publish, what runs."""

from __future__ import annotations

from itertools import accumulate

from gateway.batches.items import NO_ROOM, Maker
from gateway.batches.publishing import BEHIND, Course, Lane
from gateway.batches.results import NO_ID, Span
from gateway.batches.splitting import BrokenBatch, Item, Splitter
from gateway.ingest import Ingest
from gateway.permits import exceeded_detail
from gateway.problems import NOT_SENT, OVERLOADED, QUOTA_EXCEEDED

CHUNK_ITEMS = 500
CHUNK_BYTES = 2**20
"""As many items or bytes make a publish; fewer go when none is running, or the batch is at its end."""

RUNNING = 2
"""Publishes of one batch at a time: one is prepared while the other is confirmed."""

SPARE = 16 * 2**20
"""Bytes of a batch that may be in none of its items. A bomb of line ends must stop somewhere."""

ITEM_COST = 400
"""Bytes counted for an item beside its own: objects, of which a short line needs as many as a long one."""

LEAST = 64
"""Bytes that are not divided any further to find room for them."""

CUT_SHORT = "The gateway is stopping; this item was not sent, and not stored."


class TooManyItems(Exception):
    """The batch has more items than it may."""


class TooLittleInIt(Exception):
    """Most of the body is no item, or in items that are too large."""


class Intake:
    """
    Takes a body piece by piece and publishes its items, holding no more of it than it has to.

    Bytes are counted in the gateway's budget from their arrival until their publish has ended. When
    there is no room, a piece waits for this batch's own publishes; if that does not help, its items
    are to be sent again.
    """

    def __init__(
        self,
        ingest: Ingest,
        lane: Lane,
        course: Course,
        splitter: Splitter,
        maker: Maker,
        *,
        max_items: int,
        ordered: bool,
    ) -> None:
        self._ingest = ingest
        self._lane = lane
        self._course = course
        self._splitter = splitter
        self._maker = maker
        self._max_items = max_items
        self._ordered = ordered
        self._caller = course.ticket.caller
        self._paid = 1
        """Messages that the caller's quota was charged for and that are not sent yet: one for the request."""
        self._waiting: list[Item] = []
        self._waiting_size = 0
        self._spare = SPARE
        self._taken = 0
        """Items so far."""
        self.reserved = 0
        """Bytes counted for the item that is not complete yet."""
        course.on_settled = self._settled

    def expect(self) -> None:
        """The next piece is waited for: if that takes long, others may have the room of what is here."""
        if self.reserved:
            self._ingest.bodies_on_their_way.add(self, self._give_way)

    def _give_way(self) -> None:
        self._splitter.drop(OVERLOADED)
        self._ingest.give_back(self.reserved, self._caller)
        self.reserved = 0

    async def take(self, data: bytes, *, more: bool) -> None:
        """
        One piece of the body; `more`: another one may be long in coming.

        Raises:
            TooManyItems: those that it may have are taken.
            BrokenBatch: those before the broken place are taken.
            TooLittleInIt
        """
        self._ingest.bodies_on_their_way.remove(self)
        room = True
        need = len(data) + ITEM_COST * self._splitter.most(data)
        while room and not self._ingest.hold(self, need, self._caller, arrived=len(data)):
            room = bool(self._course.running or self._waiting)
            if room:
                await self._progress()
        if not room and len(data) > LEAST:
            # Perhaps there is for half of it: its items can be gone before the other half needs some.
            await self.take(data[: len(data) // 2], more=more)
            await self.take(data[len(data) // 2 :], more=more)
            return
        broken: BrokenBatch | None = None
        before = self._splitter.held + len(data)
        if not room:
            self._give_way()
        try:
            items = self._splitter.feed(data)
        except BrokenBatch as error:
            broken = error
            items = error.args[1]
        if not room:
            self._give_way()
            items = [OVERLOADED] * len(items)
        size, count = _measure(items)
        self._spare -= max(0, before - self._splitter.held - size - 2 * count)
        await self._add(items, size + ITEM_COST * count)
        if more and self._waiting and not self._course.running:
            self._send()
        if broken is not None:
            raise broken
        if self._spare < 0:
            raise TooLittleInIt

    async def finish(self) -> None:
        """
        The body was whole.

        Raises:
            As `take`.
        """
        self._ingest.bodies_on_their_way.remove(self)
        items = self._splitter.finish()
        await self._add(items, _cost(items))

    async def settle(self) -> None:
        """There is no more to come: publish what waits, and wait until every item has its result."""
        self._forget_the_rest()
        while self._waiting or self._course.running:
            await self._progress()

    def abandon(self) -> None:
        """Wait for nothing: what is being published goes on, and the rest is forgotten."""
        self._forget_the_rest()
        self._course.stopped = NOT_SENT, CUT_SHORT
        while self._waiting:
            self._send()

    def _forget_the_rest(self) -> None:
        self._ingest.bodies_on_their_way.remove(self)
        self._ingest.give_back(self.reserved, self._caller)
        self.reserved = 0

    async def _add(self, items: list[Item], size: int) -> None:
        fits = self._max_items - self._taken
        too_many = len(items) > fits
        if too_many:
            items = items[:fits]
            size = _cost(items)
        self._ingest.give_back(self.reserved - self._splitter.held - size, self._caller)
        self.reserved = self._splitter.held
        self._waiting += items
        self._waiting_size += size
        self._taken += len(items)
        if too_many:
            raise TooManyItems
        while len(self._waiting) >= CHUNK_ITEMS or self._waiting_size >= CHUNK_BYTES:
            await self._progress()

    async def _progress(self) -> None:
        """Send a chunk if one may be sent, else wait for one that was."""
        if self._waiting and self._course.running < (1 if self._ordered else RUNNING):
            self._send()
            return
        self._course.changed.clear()
        await self._course.changed.wait()

    def _settled(self) -> None:
        if self._waiting and not self._course.running:
            self._send()

    def _send(self) -> None:
        first = self._taken - len(self._waiting)
        items, size = self._next()
        course = self._course
        if course.stopped is None:
            sent = self._allowed(items)
            size_sent = size if sent == len(items) else _cost(items[:sent])
            if sent:
                self._start(first, items[:sent], size_sent)
            if sent == len(items):
                return
            first, items, size = first + sent, items[sent:], size - size_sent
        assert course.stopped is not None, "why else are not all of them sent"
        code = course.results.failed(*course.stopped)
        course.results.add(Span(first, NO_ID * len(items), bytearray((code,)) * len(items)))
        self._ingest.give_back(size, self._caller)

    def _start(self, first: int, items: list[Item], size: int) -> None:
        course = self._course
        chunk = self._maker.chunk(first, items, size)
        if course.failed_keys:
            chunk.withhold(course.failed_keys, course.results.failed(NOT_SENT, BEHIND))
        course.results.add(chunk.span)
        self._lane.start(course, chunk)

    def _allowed(self, items: list[Item]) -> int:
        """How many of these may be sent; if not all, none behind them may, or the order would be lost."""
        count = len(items)
        quota = self._caller.quota
        if quota is not None:
            count = self._paid + quota.take_some(count - self._paid)
            self._paid = 0
            if count < len(items):
                self._course.stopped = QUOTA_EXCEEDED, exceeded_detail(self._caller)
        if self._ordered and OVERLOADED in items[:count]:
            count = items.index(OVERLOADED)
            self._course.stopped = OVERLOADED, NO_ROOM
        return count

    def _next(self) -> tuple[list[Item], int]:
        """The items of the next chunk, taken off those that wait."""
        items, size = self._waiting, self._waiting_size
        if len(items) > CHUNK_ITEMS:
            items = items[:CHUNK_ITEMS]
            size = _cost(items)
        if size > CHUNK_BYTES:
            costs = accumulate([_cost([item]) for item in items])
            fewer = next(n for n, cost in enumerate(costs, 1) if cost >= CHUNK_BYTES)
            items = items[:fewer]
            size = _cost(items)
        self._waiting = self._waiting[len(items) :]
        self._waiting_size -= size
        return items, size


def _measure(items: list[Item]) -> tuple[int, int]:
    """Of those that were kept the bytes, and how many they are."""
    try:
        return sum(map(len, items)), len(items)  # type: ignore[arg-type]  # mostly all are bytes
    except TypeError:
        kept = [len(item) for item in items if isinstance(item, bytes)]
        return sum(kept), len(kept)


def _cost(items: list[Item]) -> int:
    """Bytes counted for items."""
    size, count = _measure(items)
    return size + ITEM_COST * count
