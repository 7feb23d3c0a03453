"""What the contract suite must know about a driver and its server, and what its tests share."""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from forebay.brokers.api import (
    Ack,
    Attempt,
    Broker,
    Capabilities,
    Delivery,
    Depth,
    Failure,
    PublishResult,
    Subscription,
)
from forebay.ids import new_id
from forebay.message import Message


class BrokerHarness(ABC):
    """How the suite reaches your driver. What a harness cannot do skips the tests that need it."""

    patience: float = 5.0
    """Seconds within which a message that is ready must have arrived."""
    slack: float = 0.25
    """Seconds by which a delay may be late where any delay is exact (`retry_delays` is None)."""

    look: float = 0.0
    """Seconds that a random history waits for a message that may be there; more where the server pushes."""
    histories: int = 25
    """How many random histories are played; fewer where connecting takes its time."""

    lag: float = 0.0
    """Seconds by which what `depth` tells may be late."""

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[Broker]:
        """One more connection to the same server, as another process would have."""

    def open_small(self, max_bytes: int) -> AbstractAsyncContextManager[Broker]:
        """A connection that refuses publishes while more than `max_bytes` of bodies are stored."""
        pytest.skip("this harness cannot limit the size")

    def stalled(self) -> AbstractAsyncContextManager[None]:
        """While in this context the server takes connections and answers nothing."""
        pytest.skip("this harness cannot stall the server")

    async def restart(self) -> None:
        """Kill the server and start it again; return when it takes connections."""
        pytest.skip("this harness has no server to restart")

    async def write_foreign(self, queue: str, bodies: Sequence[bytes]) -> None:
        """Put these into the declared queue as another program would, which knows nothing of our headers."""
        pytest.skip("this harness cannot write as another program would")

    def latest(self, delay: float, capabilities: Capabilities) -> float:
        """Seconds after which a delayed message must be there."""
        if capabilities.retry_delays is None:
            return delay + self.slack
        return delay * 1.02 + min(capabilities.retry_delays) + self.patience

    def shortest_delay(self, capabilities: Capabilities) -> float:
        """A delay worth testing."""
        return 0.2 if capabilities.retry_delays is None else min(capabilities.retry_delays)


FAILURE = Failure(
    reason="23514 orders_amount_check",
    error_class="CheckViolation",
    destination="database:messages",
    detail="Failing row contains (42, -1, 'Grüße')",
)


def failed_attempts(count: int) -> tuple[Attempt, ...]:
    """So many that a message has behind it."""
    at = datetime.now(UTC).replace(microsecond=123_456)
    return tuple(
        Attempt(
            number=n,
            failed_at=at + timedelta(seconds=n),
            worker="host-\u00fc:4711",
            seconds=0.25 * n,
            error_class="CheckViolation",
            reason=f"23514 orders_amount_check \u2013 try {n}",
        )
        for n in range(1, count + 1)
    )


class ContractTests:
    """The fixtures of every part of the suite."""

    @pytest.fixture
    async def broker(self, harness: BrokerHarness) -> AsyncIterator[Broker]:
        async with harness.open() as broker:
            yield broker

    @pytest.fixture
    async def queue(self, broker: Broker) -> str:
        """A fresh queue, declared."""
        name = fresh_name()
        await broker.declare(name)
        return name


def fresh_name() -> str:
    return f"q-{uuid.uuid4().hex[:12]}"


def message(body: bytes = b"{}", **fields: Any) -> Message:
    fields.setdefault("id", new_id())
    fields.setdefault("accepted_at", datetime.now(UTC))
    return Message(body=body, **fields)


def messages(count: int) -> list[Message]:
    return [message(str(i).encode()) for i in range(count)]


async def publish(broker: Broker, queue: str, batch: Sequence[Message], *, timeout: float = 10.0) -> None:
    """Publish, all of it."""
    results = await broker.publish(queue, batch, timeout=timeout)
    assert [r.error for r in results] == [None] * len(batch)


async def collect(subscription: Subscription, count: int, within: float) -> list[Delivery]:
    """Receive until there are `count`, or time is up; settles nothing."""
    deadline = time.monotonic() + within
    out: list[Delivery] = []
    while len(out) < count and (left := deadline - time.monotonic()) > 0:
        out += await subscription.receive(count - len(out), left)
    return out


async def drain(broker: Broker, queue: str, count: int, within: float) -> list[Delivery]:
    """Receive and acknowledge `count` messages, or as many as come in time."""
    async with broker.subscribe(queue, prefetch=max(1, count)) as subscription:
        out = await collect(subscription, count, within)
        assert await subscription.settle([Ack(d) for d in out]) == []
    return out


async def is_empty(broker: Broker, queue: str, within: float = 0.2) -> bool:
    async with broker.subscribe(queue, prefetch=1) as subscription:
        return await subscription.receive(1, within) == []


async def until_depth(broker: Broker, queue: str, within: float, right: Callable[[Depth], bool]) -> Depth:
    """The depth when it is right; fails when it is not so in time."""
    deadline = time.monotonic() + within
    while not right(depth := await broker.depth(queue)):
        assert time.monotonic() < deadline, depth
        await asyncio.sleep(0.1)
    return depth


def ids(of: Sequence[Delivery] | Sequence[Message]) -> list[str]:
    return [x.message.id if isinstance(x, Delivery) else x.id for x in of]


def aligned(results: Sequence[PublishResult], sent: Sequence[Message]) -> bool:
    """Whether there is one result per message; one that names its message names the right one."""
    return all(r.message_id in ("", m.id) for r, m in zip(results, sent, strict=True))
