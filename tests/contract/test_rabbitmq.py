"""RabbitMQ keeps the contract, on one node; and what happens to it alone."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from forebay.brokers.api import Ack, Broker, Delivery, PublishResult, Release, Retry, Subscription
from forebay.brokers.naming import dead_letter_queue
from forebay.brokers.rabbitmq.broker import COUNTED_EVERY, RabbitMQBroker
from forebay.brokers.rabbitmq.link import Channel, Connection
from forebay.errors import (
    BrokerUnavailable,
    NotSent,
    PublishRejected,
    PublishUnconfirmed,
    QueueFull,
    QueueNotFound,
    SettingsError,
)
from forebay.testing.broker_contract import BrokerContract, BrokerHarness
from forebay.testing.broker_contract.harness import (
    FAILURE,
    collect,
    drain,
    fresh_name,
    message,
    messages,
    publish,
    until_depth,
)
from tests.contract.rabbitmq import (
    EXISTING,
    SETTINGS,
    RabbitMQHarness,
    another_program,
    proxies_of,
    published,
    running,
)
from tests.servers.postgres import free_port
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitMQ, RabbitMQCluster


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQCluster]:
    with running(tmp_path_factory, 1) as server:
        yield server


@pytest.fixture(scope="session")
def proxies(server: RabbitMQCluster) -> Iterator[list[Proxy]]:
    with proxies_of(server) as proxies:
        yield proxies


@pytest.fixture
def own_server(server: RabbitMQCluster) -> Iterator[RabbitMQHarness]:
    """A server that this test alone may kill."""
    if EXISTING in os.environ:
        pytest.skip(f"it kills its server, and {EXISTING} names one that is not ours to kill")
    with RabbitMQ() as own, proxies_of(own) as proxies:
        yield RabbitMQHarness(own, proxies, ours=True)


class TestRabbitMQ(BrokerContract):
    @pytest.fixture
    def harness(self, request: pytest.FixtureRequest) -> BrokerHarness:
        if "restart" in request.node.name:
            own: BrokerHarness = request.getfixturevalue("own_server")
            return own
        return RabbitMQHarness(request.getfixturevalue("server"), request.getfixturevalue("proxies"))


@pytest.fixture
def harness(server: RabbitMQCluster, proxies: list[Proxy]) -> RabbitMQHarness:
    return RabbitMQHarness(server, proxies)


@pytest.fixture
async def broker(harness: RabbitMQHarness) -> AsyncIterator[Broker]:
    async with harness.open() as broker:
        yield broker


@pytest.fixture
async def queue(broker: Broker) -> str:
    name = fresh_name()
    await broker.declare(name)
    return name


@pytest.fixture
async def raw(server: RabbitMQCluster) -> AsyncIterator[Channel]:
    """A channel of another program's."""
    async with another_program(server.url) as channel:
        yield channel


async def test_a_connection_cut_before_the_confirm_is_unconfirmed_and_made_again(
    harness: RabbitMQHarness, broker: Broker, queue: str
) -> None:
    await publish(broker, queue, [message()])
    with harness.proxies[0].stalled():
        sending = asyncio.create_task(broker.publish(queue, messages(3), timeout=30))
        await asyncio.sleep(0.05)
        harness.cut()
        async with asyncio.timeout(5):
            results = await sending
    assert all(isinstance(r.error, PublishUnconfirmed) for r in results)
    await published(broker, queue)


async def test_a_subscription_outlives_its_connection_and_knows_that_its_loans_ended(
    harness: RabbitMQHarness, broker: Broker, queue: str
) -> None:
    await publish(broker, queue, [message(b"once")])
    async with broker.subscribe(queue, prefetch=5) as subscription:
        [earlier] = await subscription.receive(1, 5)
        harness.cut()
        later: list[Delivery] = []
        async with asyncio.timeout(10):
            while not later:
                try:
                    later = await subscription.receive(1, 1)
                except BrokerUnavailable:
                    pass
        assert await subscription.settle([Ack(earlier)]) == [earlier]
        assert await subscription.settle([Ack(later[0])]) == []
    assert (later[0].message, later[0].attempt) == (earlier.message, 1)


async def test_what_is_unconfirmed_is_bounded_and_what_had_no_room_was_not_sent(
    harness: RabbitMQHarness, queue: str
) -> None:
    changed = SETTINGS.model_copy(update={"max_unconfirmed": 5})
    async with RabbitMQBroker.open(harness.url, changed) as broker:
        await publish(broker, queue, messages(50))
        assert len(await drain(broker, queue, 50, 5)) == 50
        with harness.proxies[0].stalled():
            results = await broker.publish(queue, messages(9), timeout=0.3)
            errors = [type(r.error) for r in results]
            assert errors == [PublishUnconfirmed] * 5 + [NotSent] * 4
            with pytest.raises(BrokerUnavailable, match="no room"):
                await broker.publish(queue, messages(1), timeout=0.1)
        await publish(broker, queue, [message()])
        assert len(await drain(broker, queue, 7, 1)) == 6


async def test_a_batch_is_one_write_and_not_three_for_each_message(
    broker: Broker, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    emit = Connection._adapter_emit_data

    def counted(self: Connection, data: bytes) -> None:
        writes.append(len(data))
        emit(self, data)

    monkeypatch.setattr(Connection, "_adapter_emit_data", counted)
    await publish(broker, queue, messages(100))
    assert len([size for size in writes if size > 100]) == 1


async def test_a_queue_that_exists_with_other_arguments_is_named_with_the_difference(
    harness: RabbitMQHarness, queue: str
) -> None:
    changed = SETTINGS.model_copy(update={"max_bytes": 77})
    async with RabbitMQBroker.open(harness.url, changed) as broker:
        with pytest.raises(SettingsError, match=r"x-max-length-bytes is .*100000000.* there and .*77.* here"):
            await broker.declare(queue)


async def test_a_message_of_another_program_rests_among_the_dead_with_its_bytes(
    broker: Broker, queue: str, raw: Channel
) -> None:
    raw.raw.basic_publish("", SETTINGS.prefix + queue, b"\xffnot ours")
    async with broker.subscribe(queue, prefetch=1) as subscription:
        assert await subscription.receive(1, 0.5) == []
    [dead] = await drain(broker, dead_letter_queue(queue), 1, 5)
    assert dead.message.body == b"\xffnot ours"
    assert dead.death is not None
    assert (dead.death.queue, dead.death.failure.error_class) == (queue, "MessageDecodeError")


async def test_a_flood_of_another_programs_messages_is_a_line_in_the_log_and_not_one_of_each(
    harness: RabbitMQHarness, broker: Broker, queue: str
) -> None:
    await harness.write_foreign(queue, [b"not ours"] * 100)
    with capture_logs() as logs:
        async with broker.subscribe(queue, prefetch=100) as subscription:
            assert await subscription.receive(1, 0.5) == []
            assert len(await drain(broker, dead_letter_queue(queue), 100, 5)) == 100
    lines = [line for line in logs if line["event"].startswith("messages that are not ours")]
    assert sum(line["count"] for line in lines) == 100
    assert len(lines) <= 2, "one a second"
    assert "no forebay-v header" in lines[0]["first_reason"]


async def test_a_deleted_queue_is_told_and_used_again_when_it_is_back(
    broker: Broker, queue: str, raw: Channel
) -> None:
    async with broker.subscribe(queue, prefetch=1) as subscription:
        await publish(broker, queue, [message(b"gone with the queue")])
        await raw.call("queue_delete", SETTINGS.prefix + queue, timeout=10)
        [result] = await broker.publish(queue, [message()], timeout=5)
        assert isinstance(result.error, PublishRejected)
        with pytest.raises(QueueNotFound):
            await broker.publish(queue, [message()], timeout=5)
        assert "not declared" in await trouble_with(subscription)
        await broker.declare(queue)
        sent = message(b"back")
        await publish(broker, queue, [sent])
        async with asyncio.timeout(10):
            got: list[Delivery] = []
            while not got:
                try:
                    got = await subscription.receive(1, 1)
                except BrokerUnavailable:
                    pass
    assert got[0].message == sent


async def trouble_with(subscription: Subscription) -> str:
    """What the subscription says when it has tried to come back, and cannot."""
    async with asyncio.timeout(10):
        while True:
            try:
                await subscription.receive(10, 0.1)
            except BrokerUnavailable as error:
                if "was lost" not in str(error):
                    return str(error)


@pytest.mark.parametrize("method", ["queue_delete", "exchange_delete"])
async def test_a_deleted_delay_queue_is_made_again(
    server: RabbitMQCluster, raw: Channel, method: str
) -> None:
    """Somebody tidied up. What was being published then is refused or unknown, what comes after is not."""
    # Of its own prefix: the delay queues of the others are in use.
    settings = SETTINGS.model_copy(update={"prefix": f"tidied-{method}."})
    async with RabbitMQBroker.open(server.url, settings) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        await raw.call(method, f"{settings.prefix}forebay.delay.{settings.delays[0]:g}s", timeout=10)
        async with asyncio.timeout(20):
            while True:
                sent = message(not_before=datetime.now(UTC) + timedelta(seconds=0.4))
                try:
                    [result] = await broker.publish(queue, [sent], timeout=5)
                except BrokerUnavailable:
                    await asyncio.sleep(0.05)
                    continue
                if result.ok:
                    break
                if isinstance(result.error, PublishRejected):
                    assert "delay queue" in str(result.error)
        async with broker.subscribe(queue, prefetch=10) as subscription:
            assert sent.id in [d.message.id for d in await collect(subscription, 1, 10)]


async def test_what_is_on_its_way_home_from_a_delay_queue_still_counts(server: RabbitMQCluster) -> None:
    """Its time is up, and its queue is full: AMQP counts it nowhere, the management API does."""
    settings = SETTINGS.model_copy(
        update={"prefix": "stuck.", "max_bytes": 2_000, "management_url": SecretStr(server.management_url)}
    )
    async with RabbitMQBroker.open(server.url, settings) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        due = datetime.now(UTC) + timedelta(seconds=SETTINGS.delays[0])
        await publish(broker, queue, [message(b"x" * 500, not_before=due)])
        result = PublishResult(message_id="")
        while result.ok:
            [result] = await broker.publish(queue, [message(b"x" * 500)], timeout=5)
        assert isinstance(result.error, QueueFull)
        await until_depth(broker, queue, 30, lambda d: d.scheduled is None and d.in_hand == 0)
        await asyncio.sleep(COUNTED_EVERY)  # so old its count may be: by now it is of after its time
        assert (await broker.depth(queue)).scheduled is None


async def test_a_delay_between_two_steps_hops_and_counts_as_one_attempt(broker: Broker, queue: str) -> None:
    await publish(broker, queue, [message(b"hop")])
    async with broker.subscribe(queue, prefetch=1) as subscription:
        [first] = await subscription.receive(1, 5)
        began = time.monotonic()
        await subscription.settle([Retry(first, 1.5, FAILURE)])
        [second] = await subscription.receive(1, 10)
        waited = time.monotonic() - began
        await subscription.settle([Ack(second)])
    assert (second.message, second.attempt) == (first.message, 2)
    assert 1.5 <= waited < 1.5 * 1.02 + 0.2 + 1.0


async def test_a_message_handed_back_very_often_is_written_anew_before_the_server_gives_it_up(
    broker: Broker, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy is the last of the queue; how often it was handed back is still known."""
    monkeypatch.setattr("forebay.brokers.rabbitmq.subscription.WORN", 2)
    sent, other = messages(2)
    await publish(broker, queue, [sent, other])
    seen = []
    async with broker.subscribe(queue, prefetch=1) as subscription:
        for _ in range(3):
            [delivery] = await subscription.receive(1, 5)
            assert (delivery.message, delivery.attempt) == (sent, 1)
            seen.append(delivery.deferrals)
            await subscription.settle([Release(delivery)])
        [behind] = await subscription.receive(1, 5)
        assert behind.message == other
        await subscription.settle([Ack(behind)])
        [copy] = await subscription.receive(1, 5)
        seen.append(copy.deferrals)
        await subscription.settle([Release(copy)])
        [copy] = await subscription.receive(1, 5)
        seen.append(copy.deferrals)
        assert (copy.message, copy.attempt) == (sent, 1)
    assert seen == [0, 1, 2, 3, 4]


async def test_what_the_server_gives_up_itself_rests_with_a_reason(
    harness: RabbitMQHarness, queue: str, raw: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.brokers.rabbitmq.topology.DELIVERY_LIMIT", 2)
    name = fresh_name()
    async with harness.open() as broker:
        await broker.declare(name)
        await publish(broker, name, [message(b"killer")])
        async with broker.subscribe(name, prefetch=1) as subscription:
            for _ in range(3):
                [delivery] = await subscription.receive(1, 5)
                await subscription.settle([Release(delivery)])
        [dead] = await drain(broker, dead_letter_queue(name), 1, 5)
    assert dead.message.body == b"killer"
    assert dead.death is not None
    assert (dead.death.queue, dead.death.failure.error_class) == (name, "delivery_limit")


async def test_nobody_listening_is_told_in_time() -> None:
    changed = SETTINGS.model_copy(update={"connect_timeout": 0.5})
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        async with RabbitMQBroker.open(f"amqp://127.0.0.1:{free_port()}/", changed):
            pass
    assert time.monotonic() - began < 5


async def test_a_wrong_password_is_told(harness: RabbitMQHarness) -> None:
    changed = SETTINGS.model_copy(update={"connect_timeout": 2})
    url = re.sub("://[^@]*@", "://forebay:wrong@", harness.url)
    with pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED"):
        async with RabbitMQBroker.open(url, changed):
            pass


async def publish_until_refused(broker: Broker, queue: str) -> None:
    """The server looks at its memory now and then, not at once."""
    async with asyncio.timeout(20):
        while True:
            await broker.publish(queue, [message(b"in doubt")], timeout=0.5)


async def test_a_server_in_alarm_takes_nothing_and_goes_on_delivering(own_server: RabbitMQHarness) -> None:
    server = own_server.cluster
    async with own_server.open() as broker:
        queue = fresh_name()
        await broker.declare(queue)
        await publish(broker, queue, [message(b"before")])
        # It takes connections a little before it takes commands.
        await asyncio.to_thread(server.ctl, "await_startup")
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "absolute", "1MB")
        with pytest.raises(BrokerUnavailable, match="memory"):
            await publish_until_refused(broker, queue)
        with pytest.raises(BrokerUnavailable, match="memory"):
            await broker.ping()
        assert (await drain(broker, queue, 1, 5))[0].message.body == b"before"
        async with own_server.open() as fresh:
            with pytest.raises(BrokerUnavailable, match="memory"):
                await fresh.publish(queue, [message(b"never sent")], timeout=5)
            began = time.monotonic()
            await fresh.close()
            assert time.monotonic() - began < 5
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "absolute", "600MB")
        await published(broker, queue, 20)
