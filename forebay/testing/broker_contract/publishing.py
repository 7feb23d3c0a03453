"""Publishing: every field arrives, one result per message, and what is refused is said."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from forebay.brokers.api import DURABILITIES, Broker
from forebay.errors import BrokerClosed, MessageTooLarge, QueueFull, QueueNotFound, SettingsError
from forebay.ids import new_id
from forebay.message import Alike
from forebay.testing.broker_contract.harness import (
    BrokerHarness,
    ContractTests,
    aligned,
    collect,
    drain,
    fresh_name,
    ids,
    message,
    messages,
    publish,
)


class PublishingContract(ContractTests):
    async def test_every_field_arrives(self, harness: BrokerHarness, broker: Broker, queue: str) -> None:
        sent = message(
            b"\x00\xff not text",
            key="customer-42 \u00e9",
            headers={"trace": "a=b; c=\u00fc\U0001f30a", "empty": ""},
            content_type="application/x-thing; charset=utf-8",
            accepted_at=datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
            not_before=datetime(2026, 3, 1, 0, 0, 0, 1, tzinfo=UTC),
            expires_at=datetime(2099, 1, 1, 12, 30, 0, 123_456, tzinfo=UTC),
        )
        await publish(broker, queue, [sent])

        [got] = await drain(broker, queue, 1, harness.patience)

        assert got.message == sent
        assert (got.queue, got.attempt, got.deferrals, got.death) == (queue, 1, 0, None)

    async def test_defaults_arrive_as_defaults(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = message(b"{}")
        await publish(broker, queue, [sent])
        [got] = await drain(broker, queue, 1, harness.patience)
        assert got.message == sent

    async def test_a_cloud_event_arrives_as_it_was(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """Whatever a driver writes beside it for clients that read the queue by themselves."""
        attributes = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": "caf%C3%A9 x"}
        sent = message(b"{}", headers=attributes, content_type="application/json")
        await publish(broker, queue, [sent])
        [got] = await drain(broker, queue, 1, harness.patience)
        assert got.message == sent

    async def test_the_context_of_a_trace_arrives(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        context = {
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "tracestate": "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
        }
        await publish(broker, queue, [message(b"{}", headers=context)])
        [got] = await drain(broker, queue, 1, harness.patience)
        assert got.message.headers == context

    async def test_messages_that_are_alike_arrive_as_any_others(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        bodies = [b"\x00\xff not text", b"", b"{}" * 500]
        alike = message(
            key="customer-42 \u00e9",
            headers={"source": "shop"},
            content_type="application/json",
            accepted_at=datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
            not_before=datetime(2026, 3, 1, 0, 0, 0, 1, tzinfo=UTC),
            expires_at=datetime(2099, 1, 1, 12, 30, 0, 123_456, tzinfo=UTC),
        )
        sent = Alike(alike, [new_id() for _ in bodies], bodies)
        await publish(broker, queue, sent)

        got = await drain(broker, queue, 3, harness.patience)

        assert [d.message for d in got] == list(sent)

    async def test_of_messages_that_are_alike_one_that_is_too_large_is_refused_alone(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        too_large = b"x" * (broker.capabilities.max_body_bytes + 1)
        sent = Alike(message(), [new_id() for _ in range(3)], [b"first", too_large, b"last"])

        results = await broker.publish(queue, sent, timeout=10)

        assert [r.ok for r in results] == [True, False, True]
        got = await drain(broker, queue, 2, harness.patience)
        assert sorted(d.message.body for d in got) == [b"first", b"last"]

    async def test_an_empty_body_arrives(self, harness: BrokerHarness, broker: Broker, queue: str) -> None:
        await publish(broker, queue, [message(b"")])
        [got] = await drain(broker, queue, 1, harness.patience)
        assert got.message.body == b""

    async def test_what_has_expired_is_carried(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """Whether it is still worth anything is decided above the driver, which must not drop it."""
        sent = message(expires_at=datetime.now(UTC) - timedelta(hours=1))
        await publish(broker, queue, [sent])
        [got] = await drain(broker, queue, 1, harness.patience)
        assert got.message == sent

    async def test_the_largest_body_arrives_and_one_byte_more_is_refused_alone(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        limit = broker.capabilities.max_body_bytes
        sent = [message(b"first"), message(b"x" * limit), message(b"x" * (limit + 1)), message(b"last")]

        results = await broker.publish(queue, sent, timeout=10)

        assert aligned(results, sent)
        assert [r.ok for r in results] == [True, True, False, True]
        error = results[2].error
        assert isinstance(error, MessageTooLarge)
        assert (error.size, error.limit) == (limit + 1, limit)
        got = await drain(broker, queue, 3, harness.patience)
        assert sorted(d.message.body for d in got) == sorted(m.body for m in sent if m is not sent[2])

    async def test_a_result_names_its_durability(self, broker: Broker, queue: str) -> None:
        [result] = await broker.publish(queue, [message()], timeout=10)
        assert result.durability is not None
        best = DURABILITIES.index(broker.capabilities.durability)
        assert DURABILITIES.index(result.durability) <= best

    async def test_publishing_nothing_does_nothing(self, broker: Broker, queue: str) -> None:
        assert await broker.publish(queue, [], timeout=10) == []

    async def test_an_undeclared_queue_is_refused(self, broker: Broker) -> None:
        with pytest.raises(QueueNotFound):
            await broker.publish(fresh_name(), [message()], timeout=10)

    async def test_a_queue_name_outside_the_rule_is_refused(self, broker: Broker) -> None:
        with pytest.raises(SettingsError):
            await broker.declare("Orders.dead")

    async def test_declaring_twice_changes_nothing(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message()])
        await broker.declare(queue)
        assert len(await drain(broker, queue, 1, harness.patience)) == 1

    async def test_declared_queues_are_listed_without_their_dead_letter_queues(
        self, broker: Broker, queue: str
    ) -> None:
        names = await broker.declared_queues()
        if names is None:
            pytest.skip("this broker cannot list its queues")
        assert queue in names
        assert not [name for name in names if "." in name]

    async def test_queues_do_not_mix(self, harness: BrokerHarness, broker: Broker, queue: str) -> None:
        other = fresh_name()
        await broker.declare(other)
        here, there = message(b"here"), message(b"there")
        await asyncio.gather(publish(broker, queue, [here]), publish(broker, other, [there]))
        assert ids(await drain(broker, queue, 1, harness.patience)) == [here.id]
        assert ids(await drain(broker, other, 1, harness.patience)) == [there.id]

    async def test_a_message_is_not_delivered_before_its_time(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        delay = harness.shortest_delay(broker.capabilities)
        warm, now = message(b"warm"), message(b"now")
        async with broker.subscribe(queue, prefetch=10) as subscription:
            # Joining a group can take longer than the delay.
            await publish(broker, queue, [warm])
            [joined] = await subscription.receive(1, harness.patience)
            assert joined.message == warm
            due = datetime.now(UTC) + timedelta(seconds=delay)
            later = message(b"later", not_before=due)
            await publish(broker, queue, [later, now])
            arrived = {}
            for wait in (harness.patience, harness.latest(delay, broker.capabilities) + 1):
                [delivery] = await subscription.receive(1, wait)
                arrived[delivery.message.id] = datetime.now(UTC)
        assert arrived.keys() == {later.id, now.id}
        assert due <= arrived[later.id]
        assert arrived[now.id] <= arrived[later.id]
        late = (arrived[later.id] - due).total_seconds()
        assert late <= harness.latest(delay, broker.capabilities) - delay

    async def test_cancelling_a_publish_does_not_take_it_back(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = message(b"cancelled")
        task = asyncio.create_task(broker.publish(queue, [sent], timeout=10))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        after = message(b"after")
        await publish(broker, queue, [after])

        got = await drain(broker, queue, 2, harness.patience)

        assert after.id in ids(got), "a cancelled publish must not harm the next one"
        if task.cancelled():
            # Had it begun? Only the driver knows; if so it is there once.
            assert ids(got).count(sent.id) <= 1
        else:
            assert sent.id in ids(got)

    async def test_many_publishers_at_once_lose_nothing(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = messages(200)
        await asyncio.gather(*(publish(broker, queue, [m]) for m in sent))
        got = await drain(broker, queue, 200, harness.patience)
        assert sorted(ids(got)) == sorted(ids(sent))

    async def test_order_is_kept_as_promised(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        promised = broker.capabilities.ordering
        if promised == "none":
            pytest.skip("this broker promises no order")
        sent = [message(str(i).encode(), key=f"k{i % 3}") for i in range(60)]
        for start in range(0, 60, 7):
            await publish(broker, queue, sent[start : start + 7])
        async with broker.subscribe(queue, prefetch=60) as subscription:
            got = await collect(subscription, 60, harness.patience)
        for key in ("k0", "k1", "k2"):
            assert ids([d for d in got if d.message.key == key]) == ids([m for m in sent if m.key == key])
        if promised == "one_subscription":
            assert ids(got) == ids(sent)

    async def test_a_full_queue_refuses_for_certain_and_takes_again(self, harness: BrokerHarness) -> None:
        async with harness.open_small(max_bytes=10_000) as broker:
            if not broker.capabilities.bounded:
                pytest.skip("this broker cannot refuse for size")
            queue = fresh_name()
            await broker.declare(queue)
            taken = 0
            for _ in range(100):
                [result] = await broker.publish(queue, [message(b"x" * 500)], timeout=10)
                if not result.ok:
                    break
                taken += 1
            assert isinstance(result.error, QueueFull)
            assert len(await drain(broker, queue, taken, harness.patience)) == taken
            await publish(broker, queue, [message()])

    async def test_after_close_every_call_says_so_and_close_is_harmless(self, harness: BrokerHarness) -> None:
        async with harness.open() as broker:
            queue = fresh_name()
            await broker.declare(queue)
            await broker.close()
            await broker.close()
            with pytest.raises(BrokerClosed):
                await broker.publish(queue, [message()], timeout=1)
            with pytest.raises(BrokerClosed):
                await broker.ping()
            with pytest.raises(BrokerClosed):
                async with broker.subscribe(queue, prefetch=1):
                    pass

    async def test_ping_returns_when_all_is_well(self, broker: Broker) -> None:
        started = time.monotonic()
        await broker.ping()
        assert time.monotonic() - started < 5
