"""
A broker in memory, for tests: gone with the process, exact in everything else.

The simplest thing that keeps the contract; the contract suite's model runs against
it as well as against the drivers that store.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice

from forebay.brokers.api import (
    Ack,
    Attempt,
    Capabilities,
    DeadLetter,
    Death,
    Delivery,
    Depth,
    Durability,
    Finding,
    PublishResult,
    Release,
    Retry,
    Settlement,
    Share,
    Subscription,
)
from forebay.brokers.naming import (
    DEAD_SUFFIX,
    check_queue_name,
    dead_letter_queue,
    is_dead_letter_queue,
)
from forebay.errors import BrokerClosed, MessageTooLarge, PublishError, QueueFull, QueueNotFound
from forebay.message import Message


@dataclass(slots=True)
class _Entry:
    message: Message
    attempt: int = 1
    deferrals: int = 0
    death: Death | None = None
    history: tuple[Attempt, ...] = ()


@dataclass(slots=True)
class _Queue:
    entries: dict[int, _Entry] = field(default_factory=dict)
    ready: list[int] = field(default_factory=list)
    """Numbers in order of arrival."""
    scheduled: list[tuple[float, int]] = field(default_factory=list)
    """(due, number), the first due one first."""
    held: dict[str, dict[int, object]] = field(default_factory=dict)
    """By ordering key: numbers on loan, and who holds them."""
    failed: dict[str, set[int]] = field(default_factory=dict)
    """By ordering key: what an ordered subscription retried, until it is settled for good."""
    draining: set[str] = field(default_factory=set)
    """Ordering keys of which something was sent back, and more is still on loan."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def ripen(self, now: float) -> None:
        while self.scheduled and self.scheduled[0][0] <= now:
            bisect.insort(self.ready, self.scheduled.pop(0)[1])

    def add(self, number: int, entry: _Entry, due: float = 0.0) -> None:
        self.entries[number] = entry
        if due > 0:
            bisect.insort(self.scheduled, (due, number))
        else:
            bisect.insort(self.ready, number)
        self.changed.set()

    def lendable(self, holder: object, *, ordered: bool) -> Iterator[int]:
        """Numbers that are ready and may be lent to `holder`, in order of arrival."""
        barred: set[str] = set()
        for number in self.ready:
            key = self.entries[number].message.key
            if key is not None:
                if key in barred:
                    continue
                elsewhere = any(h is not holder for h in self.held.get(key, {}).values())
                behind = ordered and number > min(self.failed.get(key, {number}))
                if elsewhere or behind or (ordered and key in self.draining):
                    barred.add(key)
                    continue
            yield number

    def lend(self, numbers: Sequence[int], holder: object) -> None:
        if self.ready[: len(numbers)] == numbers:
            del self.ready[: len(numbers)]
        else:
            lent = set(numbers)
            self.ready = [n for n in self.ready if n not in lent]
        for number in numbers:
            if (key := self.entries[number].message.key) is not None:
                self.held.setdefault(key, {})[number] = holder

    def take_back(self, number: int) -> None:
        """It is on loan no more."""
        if (key := self.entries[number].message.key) is not None:
            self.held[key].pop(number)
            if not self.held[key]:
                del self.held[key]
                self.draining.discard(key)

    def send_back(self, number: int) -> None:
        key = self.entries[number].message.key
        if key is not None and key in self.held:
            self.draining.add(key)

    def fail(self, number: int) -> None:
        if (key := self.entries[number].message.key) is not None:
            self.failed.setdefault(key, set()).add(number)

    def finish(self, number: int) -> None:
        """It is settled for good, and what is behind it may follow."""
        key = self.entries.pop(number).message.key
        if key is not None and key in self.failed:
            self.failed[key].discard(number)
            if not self.failed[key]:
                del self.failed[key]


class MemoryServer:
    """What several MemoryBrokers share, as connections share a server."""

    def __init__(
        self,
        *,
        max_body_bytes: int = 900_000,
        max_bytes: int = 2**30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_bytes = max_bytes
        self.clock = clock
        self.queues: dict[str, _Queue] = {}
        self._last = 0

    def number(self) -> int:
        self._last += 1
        return self._last

    def queue(self, name: str) -> _Queue:
        try:
            return self.queues[name]
        except KeyError:
            raise QueueNotFound(name) from None

    def stored_bytes(self) -> int:
        return sum(len(e.message.body) for q in self.queues.values() for e in q.entries.values())


class MemoryBroker:
    """One connection to a MemoryServer; without one, to a server of its own."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        self._server = server or MemoryServer()
        self._subscriptions: set[_MemorySubscription] = set()
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            durability="unsynced",
            ordering="by_key",
            bounded=True,
            max_body_bytes=self._server.max_body_bytes,
            retry_delays=None,
        )

    @property
    def identity(self) -> str:
        return f"memory {id(self._server):x}"

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        self._check_open()
        server = self._server
        q = server.queue(queue)
        stored = server.stored_bytes()
        results = []
        for m in messages:
            error: PublishError
            if len(m.body) > server.max_body_bytes:
                error = MessageTooLarge(len(m.body), server.max_body_bytes)
            elif stored >= server.max_bytes:
                error = QueueFull(f"{stored} bytes are stored; the limit is {server.max_bytes}")
            else:
                due = 0.0 if m.not_before is None else m.not_before.timestamp()
                q.add(server.number(), _Entry(m), due if due > server.clock() else 0.0)
                stored += len(m.body)
                results.append(PublishResult(message_id=m.id, durability="unsynced"))
                continue
            results.append(PublishResult(message_id=m.id, error=error))
        return results

    async def declare(self, queue: str) -> Durability:
        self._check_open()
        check_queue_name(queue)
        for name in (queue, dead_letter_queue(queue)):
            self._server.queues.setdefault(name, _Queue())
        return self.capabilities.durability

    async def declared_queues(self) -> list[str]:
        self._check_open()
        return sorted(name for name in self._server.queues if not name.endswith(DEAD_SUFFIX))

    @contextlib.asynccontextmanager
    async def subscribe(
        self, queue: str, *, prefetch: int, ordered: bool = False
    ) -> AsyncIterator[Subscription]:
        self._check_open()
        self._server.queue(queue)
        subscription = _MemorySubscription(self._server, queue, prefetch, ordered=ordered)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()

    async def depth(self, queue: str) -> Depth:
        self._check_open()
        q = self._server.queue(queue)
        now = self._server.clock()
        q.ripen(now)
        accepted = [e.message.accepted_at.timestamp() for e in q.entries.values()]
        return Depth(
            waiting=len(q.ready),
            scheduled=len(q.scheduled),
            in_hand=len(q.entries) - len(q.ready) - len(q.scheduled),
            bytes=sum(len(e.message.body) for e in q.entries.values()),
            oldest_age=max(0.0, now - min(accepted)) if accepted else None,
        )

    async def examine(self, queues: Sequence[str]) -> list[Finding]:
        self._check_open()
        return []

    async def ping(self) -> None:
        self._check_open()

    async def close(self) -> None:
        self._closed = True
        for s in self._subscriptions:
            s.close()

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed("this broker was closed")


class _MemorySubscription:
    def __init__(self, server: MemoryServer, queue: str, prefetch: int, *, ordered: bool) -> None:
        self._server = server
        self._name = queue
        self._queue = server.queue(queue)
        self._prefetch = prefetch
        self._ordered = ordered
        self._held: dict[int, Delivery] = {}
        self._closed = False

    async def receive(self, max_messages: int, max_wait: float) -> list[Delivery]:
        q = self._queue
        deadline = time.monotonic() + max_wait
        while True:
            if self._closed:
                raise BrokerClosed("this subscription was closed")
            now = self._server.clock()
            q.ripen(now)
            target = min(max_messages, self._prefetch - len(self._held))
            left = deadline - time.monotonic()
            # Nothing is taken before it is handed out: a cancelled call loses nothing.
            ready = list(islice(q.lendable(self, ordered=self._ordered), max(0, target)))
            if len(ready) >= target > 0 or left <= 0:
                return self._lend(ready)
            if q.scheduled:
                left = min(left, max(0.001, q.scheduled[0][0] - now))
            q.changed.clear()
            try:
                async with asyncio.timeout(left):
                    await q.changed.wait()
            except TimeoutError:
                pass

    def _lend(self, numbers: Sequence[int]) -> list[Delivery]:
        q = self._queue
        q.lend(numbers, self)
        out = []
        for number in numbers:
            e = q.entries[number]
            d = Delivery(
                message=e.message,
                queue=self._name,
                attempt=e.attempt,
                receipt=number,
                deferrals=e.deferrals,
                death=e.death,
                history=e.history,
            )
            self._held[number] = d
            out.append(d)
        return out

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        if self._closed:
            raise BrokerClosed("this subscription was closed")
        if is_dead_letter_queue(self._name) and any(isinstance(s, DeadLetter) for s in settlements):
            raise ValueError("what comes from a dead-letter queue cannot be dead-lettered again")
        stale = []
        for s in settlements:
            number = s.delivery.receipt
            assert isinstance(number, int)
            if self._held.get(number) is not s.delivery:
                stale.append(s.delivery)
                continue
            del self._held[number]
            self._queue.take_back(number)
            if isinstance(s, (Retry, Release)):
                self._queue.send_back(number)
            self._apply(s, number, self._queue.entries[number])
        # Those who wait for room within their prefetch look again.
        self._queue.changed.set()
        return stale

    def share(self) -> Share:
        return Share(in_hand=len(self._held))

    def _apply(self, s: Settlement, number: int, entry: _Entry) -> None:
        now = self._server.clock()
        match s:
            case Ack():
                self._queue.finish(number)
            case Retry(delay=delay):
                entry.attempt += 1
                entry.history = s.history
                if self._ordered:
                    self._queue.fail(number)
                self._queue.add(number, entry, now + delay if delay > 0 else 0.0)
            case Release():
                entry.deferrals += 1
                self._queue.add(number, entry)
            case DeadLetter(failure=failure, new_id=new_id):
                self._queue.finish(number)
                m = entry.message
                death = Death(
                    failure=failure,
                    queue=self._name,
                    attempts=entry.attempt,
                    died_at=datetime.fromtimestamp(now, UTC),
                    original_id=None if new_id is None else m.id,
                    history=s.history,
                )
                if new_id is not None:
                    m = replace(m, id=new_id)
                self._server.queue(dead_letter_queue(self._name)).add(number, _Entry(m, death=death))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for number in self._held:
                entry = self._queue.entries[number]
                entry.deferrals += 1
                self._queue.take_back(number)
                self._queue.add(number, entry)
            self._held.clear()
            self._queue.changed.set()
