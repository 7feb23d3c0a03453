"""Sinks and brokers that behave, and misbehave when told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry

from consumers.breaker import CircuitBreaker
from consumers.flow import Flow
from consumers.line import Line
from consumers.metrics import ConsumerMetrics, Tally
from consumers.processor import Processor
from consumers.quarantine import Quarantine
from consumers.recorder import Recorder
from consumers.retry import ExponentialBackoff, RetryPolicy
from consumers.settings import QueueSettings
from consumers.writing import utc_now
from forebay.brokers.api import Delivery, Settlement, Share, Subscription
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.errors import BrokerUnavailable
from forebay.ids import new_id
from forebay.message import Message
from forebay.sinks import Sink, WriteResult


class MemorySink:
    """Remembers what it was given. `errors` fail single messages, `down` the whole call."""

    destination = "memory"

    def __init__(self) -> None:
        self.stored: dict[str, Delivery] = {}
        self.calls: list[list[Delivery]] = []
        self.down: Exception | None = None
        self.errors: Callable[[Delivery], Exception | None] = lambda _: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.called = asyncio.Event()
        self.closed = False

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        self.calls.append(list(batch))
        self.called.set()
        await self.gate.wait()
        if self.down is not None:
            raise self.down
        results = []
        for d in batch:
            error = self.errors(d)
            results.append(
                WriteResult(message_id=d.message.id, error=error, duplicate=d.message.id in self.stored)
            )
            if error is None:
                self.stored.setdefault(d.message.id, d)
        return results

    async def probe(self) -> None:
        if self.down is not None:
            raise self.down

    async def close(self) -> None:
        self.closed = True


class FlakyBroker(MemoryBroker):
    """A memory broker whose subscriptions can be made to fail at one of their verbs."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        super().__init__(self.server)
        self.failing: str | None = None
        self.failures = 0
        self.receives = 0
        self.lent = 0

    @asynccontextmanager
    async def subscribe(
        self, queue: str, *, prefetch: int, ordered: bool = False
    ) -> AsyncIterator[Subscription]:
        self.fail("subscribe")
        async with super().subscribe(queue, prefetch=prefetch, ordered=ordered) as subscription:
            yield FlakySubscription(self, subscription)

    def fail(self, verb: str) -> None:
        if self.failing == verb:
            self.failures += 1
            raise BrokerUnavailable("connection reset")


class FlakySubscription:
    def __init__(self, broker: FlakyBroker, subscription: Subscription) -> None:
        self._broker = broker
        self._subscription = subscription

    async def receive(self, max_messages: int, max_wait: float) -> list[Delivery]:
        self._broker.fail("receive")
        self._broker.receives += 1
        deliveries = await self._subscription.receive(max_messages, max_wait)
        self._broker.lent += len(deliveries)
        return deliveries

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        self._broker.fail("settle")
        self._broker.lent -= len(settlements)
        return await self._subscription.settle(settlements)

    def share(self) -> Share:
        return self._subscription.share()


def no_quarantine() -> Quarantine:
    """Finds nobody: nothing is noted anywhere."""
    return Quarantine(Recorder(None), limit=2)


def line(
    sink: Sink,
    breaker: CircuitBreaker,
    *,
    queue: str = "orders",
    settings: QueueSettings | None = None,
    retry: RetryPolicy | None = None,
    quarantine: Quarantine | None = None,
    tally: Tally | None = None,
    batch_size: int = 10,
    ordered: bool = False,
) -> Line:
    """All that a worker of `queue` shares with others."""
    return Line(
        queue=queue,
        sink=sink,
        processor=Processor(retry=retry or ExponentialBackoff(), destination=sink.destination),
        breaker=breaker,
        flow=Flow(queue, settings or QueueSettings(), now=utc_now),
        tally=tally or Tally(metrics=ConsumerMetrics(CollectorRegistry()), queue=queue),
        quarantine=quarantine or no_quarantine(),
        batch_size=batch_size,
        ordered=ordered,
    )


def messages(count: int, *, body: bytes = b"{}") -> list[Message]:
    return [Message(id=new_id(), body=body, accepted_at=datetime.now(UTC)) for _ in range(count)]
