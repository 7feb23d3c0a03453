"""What a caller is told while the server is silent or gone, and that it was the truth."""

from __future__ import annotations

import asyncio
import time

import pytest

from forebay.brokers.api import Ack, Broker
from forebay.errors import BrokerUnavailable, PublishUnconfirmed
from forebay.testing.broker_contract.harness import (
    BrokerHarness,
    ContractTests,
    aligned,
    collect,
    drain,
    ids,
    message,
    messages,
    publish,
)


class OutageContract(ContractTests):
    async def test_a_publish_to_a_silent_server_ends_at_its_deadline_with_the_truth(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """Unconfirmed may be there later; BrokerUnavailable says that nothing was sent, and must mean it."""
        await publish(broker, queue, [message(b"before")])
        sent = messages(3)
        withdrawn = False
        async with harness.stalled():
            started = time.monotonic()
            try:
                results = await broker.publish(queue, sent, timeout=0.3)
                assert aligned(results, sent)
                assert all(isinstance(r.error, PublishUnconfirmed) for r in results)
            except BrokerUnavailable:
                withdrawn = True
            assert time.monotonic() - started < 1.5
        after = message(b"after")
        await self.until_published(broker, queue, after.id, harness.patience)

        bodies = [d.message.body for d in await drain(broker, queue, 5, 1.5)]

        assert b"before" in bodies
        assert b"after" in bodies
        if withdrawn:
            assert len(bodies) == 2, "reported as not sent, and delivered all the same"

    async def until_published(self, broker: Broker, queue: str, id_: str, within: float) -> None:
        """A client's patience: the same message with the same id until it is confirmed."""
        deadline = time.monotonic() + within
        while True:
            try:
                [result] = await broker.publish(queue, [message(b"after", id=id_)], timeout=1)
                if result.ok:
                    return
            except BrokerUnavailable:
                pass
            assert time.monotonic() < deadline, "the broker did not recover"
            await asyncio.sleep(0.05)

    async def test_ping_does_not_call_a_silent_server_well(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message()])
        async with harness.stalled():
            started = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                await broker.ping()
            assert time.monotonic() - started < 10

    async def test_a_cancelled_publish_to_a_silent_server_harms_nobody(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message(b"before")])
        async with harness.stalled():
            task = asyncio.create_task(broker.publish(queue, [message(b"cancelled")], timeout=30))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait([task])
        await self.until_published(broker, queue, message().id, harness.patience)
        bodies = [d.message.body for d in await drain(broker, queue, 3, 1.5)]
        assert {b"before", b"after"} <= set(bodies)

    async def test_close_is_bounded_while_the_server_is_silent(
        self, harness: BrokerHarness, queue: str
    ) -> None:
        async with harness.open() as other:
            await publish(other, queue, [message()])
            async with harness.stalled():
                started = time.monotonic()
                await other.close()
                assert time.monotonic() - started < 10

    async def test_a_restart_in_the_middle_loses_nothing(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """Confirmed before, held during, acknowledged after: every id is delivered."""
        sent = messages(100)
        await publish(broker, queue, sent[:50])
        seen: set[str] = set()
        async with broker.subscribe(queue, prefetch=20) as subscription:
            held = await collect(subscription, 20, harness.patience)
            await subscription.settle([Ack(d) for d in held[:10]])
            seen.update(ids(held[:10]))
        await harness.restart()
        async with harness.open() as other:
            for m in sent[50:]:
                await self.until_published(other, queue, m.id, 10 * harness.patience)
            deadline = time.monotonic() + 10 * harness.patience
            async with other.subscribe(queue, prefetch=100) as subscription:
                while len(seen) < 100 and time.monotonic() < deadline:
                    got = await subscription.receive(100, 0.5)
                    await subscription.settle([Ack(d) for d in got])
                    seen.update(ids(got))
        assert set(ids(sent)) - seen == set(), "confirmed, and never delivered"
