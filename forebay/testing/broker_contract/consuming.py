"""Receiving and settling: loans, attempts, limits, and who holds what."""

from __future__ import annotations

import asyncio
import time

import pytest

from forebay.brokers.api import Ack, Broker, DeadLetter, Delivery, Depth, Release, Retry
from forebay.errors import BrokerClosed, QueueNotFound
from forebay.testing.broker_contract.harness import (
    FAILURE,
    BrokerHarness,
    ContractTests,
    collect,
    drain,
    fresh_name,
    ids,
    message,
    messages,
    publish,
    until_depth,
)


class ConsumingContract(ContractTests):
    async def test_an_empty_queue_answers_after_max_wait(self, broker: Broker, queue: str) -> None:
        async with broker.subscribe(queue, prefetch=10) as subscription:
            started = time.monotonic()
            assert await subscription.receive(10, 0.2) == []
            assert 0.19 <= time.monotonic() - started < 1.0

    async def test_receive_returns_as_soon_as_there_is_enough(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, messages(3))
        async with broker.subscribe(queue, prefetch=10) as subscription:
            started = time.monotonic()
            assert len(await subscription.receive(3, 60)) == 3
            assert time.monotonic() - started < harness.patience

    async def test_an_idle_subscription_wakes_for_another_connections_message(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        async with harness.open() as publisher, broker.subscribe(queue, prefetch=10) as subscription:
            receiving = asyncio.create_task(subscription.receive(1, 60))
            await asyncio.sleep(0.1)
            sent = message()
            await publish(publisher, queue, [sent])
            async with asyncio.timeout(harness.patience):
                assert ids(await receiving) == [sent.id]

    async def test_never_more_than_asked_for(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = messages(10)
        await publish(broker, queue, sent)
        async with broker.subscribe(queue, prefetch=100) as subscription:
            first = await subscription.receive(4, harness.patience)
            rest = await collect(subscription, 6, harness.patience)
        assert len(first) == 4
        assert sorted(ids(first + rest)) == sorted(ids(sent))

    async def test_prefetch_bounds_the_unsettled(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, messages(5))
        async with broker.subscribe(queue, prefetch=3) as subscription:
            held = await collect(subscription, 3, harness.patience)
            assert await subscription.receive(10, 0.2) == []
            await subscription.settle([Ack(held[0])])
            assert len(await subscription.receive(10, 0.5)) == 1

    async def test_settling_wakes_a_receive_that_waits_for_room(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, messages(2))
        async with broker.subscribe(queue, prefetch=1) as subscription:
            [held] = await subscription.receive(1, harness.patience)
            receiving = asyncio.create_task(subscription.receive(1, 60))
            await asyncio.sleep(0.05)
            assert not receiving.done()
            await subscription.settle([Ack(held)])
            async with asyncio.timeout(harness.patience):
                assert len(await receiving) == 1

    async def test_an_acknowledged_message_is_gone(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, messages(3))
        assert len(await drain(broker, queue, 3, harness.patience)) == 3
        async with harness.open() as other, other.subscribe(queue, prefetch=10) as subscription:
            assert await subscription.receive(1, 0.3) == []

    async def test_a_retry_comes_back_counted_and_never_early(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = message(b"again", key="k", headers={"a": "b"})
        await publish(broker, queue, [sent])
        delay = harness.shortest_delay(broker.capabilities)
        async with broker.subscribe(queue, prefetch=10) as subscription:
            [first] = await subscription.receive(1, harness.patience)
            settled = time.monotonic()
            assert await subscription.settle([Retry(first, delay, FAILURE)]) == []
            [second] = await subscription.receive(1, harness.latest(delay, broker.capabilities) + 1)
            waited = time.monotonic() - settled
        assert (second.message, second.attempt) == (sent, 2)
        assert delay <= waited + 0.001
        assert waited <= harness.latest(delay, broker.capabilities)

    async def test_attempts_add_up_over_subscriptions_and_connections(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message()])
        within = harness.latest(0, broker.capabilities) + harness.patience
        for expected in (1, 2, 3):
            async with harness.open() as other, other.subscribe(queue, prefetch=10) as subscription:
                [delivery] = await subscription.receive(1, within)
                assert delivery.attempt == expected
                await subscription.settle([Retry(delivery, 0, FAILURE)])

    async def test_a_release_comes_back_uncounted(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = message()
        await publish(broker, queue, [sent])
        async with broker.subscribe(queue, prefetch=10) as subscription:
            for _ in range(3):
                [delivery] = await subscription.receive(1, harness.patience)
                assert (delivery.message, delivery.attempt) == (sent, 1)
                assert await subscription.settle([Release(delivery)]) == []

    async def test_a_released_message_goes_to_another_subscription_that_waits(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message()])
        async with broker.subscribe(queue, prefetch=1) as one:
            [delivery] = await one.receive(1, harness.patience)
            async with harness.open() as other, other.subscribe(queue, prefetch=1) as two:
                receiving = asyncio.create_task(two.receive(1, 60))
                await asyncio.sleep(0.05)
                await one.settle([Release(delivery)])
                async with asyncio.timeout(harness.patience):
                    assert len(await receiving) == 1

    async def test_leaving_the_context_releases_uncounted(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = messages(4)
        await publish(broker, queue, sent)
        async with broker.subscribe(queue, prefetch=10) as subscription:
            assert len(await collect(subscription, 4, harness.patience)) == 4
        got = await drain(broker, queue, 4, harness.patience)
        assert sorted(ids(got)) == sorted(ids(sent))
        assert {d.attempt for d in got} == {1}

    async def test_closing_the_broker_releases_uncounted(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, messages(2))
        async with harness.open() as other, other.subscribe(queue, prefetch=10) as subscription:
            assert len(await collect(subscription, 2, harness.patience)) == 2
            await other.close()
        got = await drain(broker, queue, 2, harness.patience)
        assert [d.attempt for d in got] == [1, 1]

    async def test_settling_twice_is_stale_and_harmless(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, messages(2))
        async with broker.subscribe(queue, prefetch=10) as subscription:
            one, two = await collect(subscription, 2, harness.patience)
            assert await subscription.settle([Ack(one)]) == []
            assert await subscription.settle([Ack(one), Ack(two)]) == [one]

    async def test_a_settlement_of_an_earlier_loan_is_stale(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """The message is lent anew; the word of who had it before no longer counts."""
        await publish(broker, queue, [message()])
        async with broker.subscribe(queue, prefetch=10) as subscription:
            [earlier] = await subscription.receive(1, harness.patience)
            await subscription.settle([Release(earlier)])
            [later] = await subscription.receive(1, harness.patience)
            assert await subscription.settle([DeadLetter(earlier, FAILURE)]) == [earlier]
            assert await subscription.settle([Ack(later)]) == []

    async def test_a_late_settlement_of_an_early_message_does_not_lose_it(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """Later ones are settled, the first is not: after a stop it comes back, and only it."""
        sent = messages(5)
        await publish(broker, queue, sent)
        async with harness.open() as other, other.subscribe(queue, prefetch=10) as subscription:
            first, *rest = await collect(subscription, 5, harness.patience)
            await subscription.settle([Ack(d) for d in rest])
        got = await drain(broker, queue, 2, min(1.0, harness.patience))
        assert ids(got) == [first.message.id]

    async def test_one_settle_takes_every_kind(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = messages(4)
        await publish(broker, queue, sent)
        async with broker.subscribe(queue, prefetch=10) as subscription:
            a, b, c, d = await collect(subscription, 4, harness.patience)
            assert (
                await subscription.settle([Ack(a), Retry(b, 0, FAILURE), DeadLetter(c, FAILURE), Release(d)])
                == []
            )
            within = harness.latest(0, broker.capabilities) + harness.patience
            back = await collect(subscription, 2, within)
        assert {x.message.id: x.attempt for x in back} == {b.message.id: 2, d.message.id: 1}

    async def test_settling_nothing_does_nothing(self, broker: Broker, queue: str) -> None:
        async with broker.subscribe(queue, prefetch=1) as subscription:
            assert await subscription.settle([]) == []

    async def test_two_connections_share_a_queue_without_overlap(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = messages(300)
        got: list[str] = []

        async def consume(of: Broker) -> None:
            async with of.subscribe(queue, prefetch=20) as subscription:
                quiet_at = time.monotonic() + harness.patience
                while len(got) < len(sent) and time.monotonic() < quiet_at:
                    batch = await subscription.receive(20, 0.05)
                    got.extend(ids(batch))
                    await subscription.settle([Ack(d) for d in batch])

        async with harness.open() as other, asyncio.TaskGroup() as tasks:
            tasks.create_task(consume(broker))
            tasks.create_task(consume(other))
            for start in range(0, 300, 30):
                await publish(broker, queue, sent[start : start + 30])
        assert sorted(got) == sorted(ids(sent))

    async def test_a_key_keeps_its_order_over_two_subscriptions(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """As long as whoever holds a message handles it before it is settled."""
        if broker.capabilities.ordering != "by_key":
            pytest.skip("this broker keeps no order over several subscriptions")
        sent = [message(str(i).encode(), key=f"k{i % 7}") for i in range(280)]
        handled: list[Delivery] = []
        holders: dict[str | None, list[Broker]] = {m.key: [] for m in sent}

        async def consume(of: Broker) -> None:
            async with of.subscribe(queue, prefetch=20) as subscription:
                quiet_at = time.monotonic() + 2 * harness.patience
                while len(handled) < len(sent) and time.monotonic() < quiet_at:
                    batch = await subscription.receive(10, 0.05)
                    for d in batch:
                        holders[d.message.key].append(of)
                        assert {*holders[d.message.key]} == {of}, "two subscriptions hold messages of a key"
                    for d in batch:
                        await asyncio.sleep(0.0005)
                        handled.append(d)
                        holders[d.message.key].remove(of)
                        await subscription.settle([Ack(d)])

        async with harness.open() as other, asyncio.TaskGroup() as tasks:
            tasks.create_task(consume(broker))
            tasks.create_task(consume(other))
            for start in range(0, len(sent), 20):
                await publish(broker, queue, sent[start : start + 20])
        for key in {m.key for m in sent}:
            assert ids([d for d in handled if d.message.key == key]) == ids([m for m in sent if m.key == key])

    async def test_cancelling_a_receive_loses_nothing(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = messages(50)
        got: list[str] = []
        async with broker.subscribe(queue, prefetch=100) as subscription:
            sending = asyncio.create_task(publish(broker, queue, sent))
            for pause in range(30):
                receiving = asyncio.create_task(subscription.receive(7, 60))
                await asyncio.sleep(pause * 0.0003)
                receiving.cancel()
                await asyncio.wait([receiving])
                if not receiving.cancelled():
                    got += ids(receiving.result())
            await sending
            got += ids(await collect(subscription, 50 - len(got), harness.patience))
        assert sorted(got) == sorted(ids(sent))

    async def test_closing_ends_a_receive_that_waits(self, harness: BrokerHarness, queue: str) -> None:
        async with harness.open() as other, other.subscribe(queue, prefetch=1) as subscription:
            receiving = asyncio.create_task(subscription.receive(1, 60))
            await asyncio.sleep(0.05)
            await other.close()
            async with asyncio.timeout(harness.patience):
                with pytest.raises(BrokerClosed):
                    await receiving

    async def test_subscribing_to_an_undeclared_queue_is_refused(self, broker: Broker) -> None:
        with pytest.raises(QueueNotFound):
            async with broker.subscribe(fresh_name(), prefetch=1):
                pass

    async def test_depth_tells_what_the_queue_holds(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message(b"12345") for _ in range(6)])
        delay = max(60.0, harness.shortest_delay(broker.capabilities))
        async with broker.subscribe(queue, prefetch=4) as subscription:
            held = await collect(subscription, 4, harness.patience)
            await subscription.settle([Ack(held[0]), Retry(held[1], delay, FAILURE)])

            def right(d: Depth) -> bool:
                # Freed places may be taken by what waits: then it is in hand.
                in_hand = subscription.share().in_hand if d.in_hand is None else d.in_hand
                return (
                    in_hand >= 2
                    and (d.waiting is None or d.waiting + in_hand == 4)
                    and d.scheduled in (1, None)
                    and d.bytes in (25, None)
                )

            depth = await until_depth(broker, queue, harness.lag, right)
        assert depth.oldest_age is None or 0 <= depth.oldest_age < 60

    async def test_what_depth_does_not_tell_has_a_reason(self, broker: Broker, queue: str) -> None:
        depth = await broker.depth(queue)
        if None in (depth.waiting, depth.scheduled, depth.in_hand, depth.bytes):
            assert depth.unknown

    async def test_a_subscription_counts_what_it_holds_as_its_share(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, messages(3))
        async with broker.subscribe(queue, prefetch=3) as subscription:
            held = await collect(subscription, 3, harness.patience)
            assert subscription.share().in_hand == 3
            await subscription.settle([Ack(held[0])])
            assert subscription.share().in_hand == 2

    async def test_the_identity_is_the_same_for_every_connection(
        self, harness: BrokerHarness, broker: Broker
    ) -> None:
        async with harness.open() as other:
            assert broker.identity
            assert other.identity == broker.identity
            assert "@127" not in broker.identity, "credentials or addresses are not an identity"

    async def test_what_examine_finds_is_said_in_words(self, broker: Broker, queue: str) -> None:
        for finding in await broker.examine([queue]):
            assert finding.check
            assert finding.text
            assert finding.verdict in ("ok", "warn", "fail")

    async def test_depth_of_an_undeclared_queue_is_refused(self, broker: Broker) -> None:
        with pytest.raises(QueueNotFound):
            await broker.depth(fresh_name())
