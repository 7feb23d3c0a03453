"""Copies that are larger than their originals, where a server's limit leaves little room or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from structlog.testing import capture_logs

from forebay.brokers.api import Ack, DeadLetter, Delivery, Failure, Retry, Settlement
from forebay.brokers.kafka import subscription as kafka_subscription
from forebay.brokers.kafka import topics
from forebay.brokers.kafka.broker import KafkaBroker
from forebay.brokers.naming import dead_letter_queue
from forebay.brokers.rabbitmq.broker import RabbitMQBroker
from forebay.errors import MessageTooLarge
from forebay.testing.broker_contract import BrokerHarness
from forebay.testing.broker_contract.dying import DeadLetterContract
from forebay.testing.broker_contract.harness import (
    FAILURE,
    collect,
    drain,
    failed_attempts,
    fresh_name,
    ids,
    message,
    messages,
    publish,
)
from tests.contract.kafka import SETTINGS as KAFKA
from tests.contract.kafka import running as kafka_running
from tests.contract.rabbitmq import SETTINGS as RABBITMQ
from tests.contract.rabbitmq import RabbitMQHarness, proxies_of
from tests.needs import missing_server
from tests.servers.kafka import KafkaCluster
from tests.servers.rabbitmq import RabbitMQ, RabbitMQNotInstalled

LONG = Failure(reason="r" * 500, error_class="E", destination="database", detail="d" * 2_000)


@pytest.fixture(scope="module")
def small_frames() -> Iterator[RabbitMQ]:
    """A server that takes 8 KiB of headers at most."""
    try:
        with RabbitMQ(settings={"frame_max": "8192"}) as server:
            yield server
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))


class TestRabbitMQWithSmallFrames(DeadLetterContract):
    @pytest.fixture
    def harness(self, small_frames: RabbitMQ) -> Iterator[BrokerHarness]:
        with proxies_of(small_frames) as proxies:
            yield RabbitMQHarness(small_frames, proxies)


async def test_rabbitmq_a_copy_gives_up_the_detail_before_the_history(small_frames: RabbitMQ) -> None:
    async with RabbitMQBroker.open(small_frames.url, RABBITMQ) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        sent = message(b"x", headers={"a": "v" * 5_500})
        await publish(broker, queue, [sent])
        tried = failed_attempts(5)
        async with broker.subscribe(queue, prefetch=1) as subscription:
            [delivery] = await subscription.receive(1, 5)
            await subscription.settle([DeadLetter(delivery, LONG, history=tried)])
        [dead] = await drain(broker, dead_letter_queue(queue), 1, 5)
    assert dead.death is not None
    assert (dead.message, dead.death.failure.reason) == (sent, LONG.reason)
    assert (dead.death.failure.detail, dead.death.history) == ("", tried)


@pytest.mark.parametrize("settle", [lambda d: Retry(d, 0, LONG), lambda d: DeadLetter(d, LONG)])
async def test_rabbitmq_moves_what_we_cannot_copy_to_the_dead_letters_itself(
    small_frames: RabbitMQ, settle: Callable[[Delivery], Settlement]
) -> None:
    """The message was taken while frames were larger; its neighbours do not notice."""
    async with RabbitMQBroker.open(small_frames.url, RABBITMQ) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        sent = [message(b"full", headers={"a": "v" * 1_000}), *messages(3)]
        await publish(broker, queue, sent)
        broker._publisher.frame_max = 1_000
        with capture_logs() as logs:
            async with broker.subscribe(queue, prefetch=10) as subscription:
                got = await collect(subscription, 4, 5)
                full, *others = sorted(got, key=lambda d: ids(sent).index(d.message.id))
                settled: list[Settlement] = [settle(full), *(Ack(d) for d in others)]
                assert await subscription.settle(settled) == []
                [dead] = await drain(broker, dead_letter_queue(queue), 1, 10)
                assert await subscription.receive(1, 0.2) == []
    assert dead.message == sent[0]
    assert dead.death is not None
    assert (dead.death.failure.error_class, dead.death.queue) == ("rejected", queue)
    assert [line["log_level"] for line in logs if "no room" in line["event"]] == ["error"]


@pytest.fixture(scope="session")
def running_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with kafka_running(tmp_path_factory, 1) as servers:
        yield servers


@pytest.fixture
def servers(running_servers: KafkaCluster) -> Iterator[KafkaCluster]:
    """Nobody stops them during one test; no longer, since others wait to have them alone."""
    with running_servers.shared_with_others():
        yield running_servers


@pytest.fixture
async def broker(servers: KafkaCluster) -> AsyncIterator[KafkaBroker]:
    async with KafkaBroker.open(servers.url, KAFKA) as broker:
        yield broker


async def limit(servers: KafkaCluster, topic: str, size: int) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=servers.url.removeprefix("kafka://"))
    await client.start()
    try:
        config = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(size)})
        await client.alter_configs([config])
        # The controller has it; the nodes learn it a moment later.
        asked = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": None})
        async with asyncio.timeout(10):
            while True:
                [answer] = await client.describe_configs([asked])
                if answer.resources[0][4][0][1] == str(size):
                    break
                await asyncio.sleep(0.05)
    finally:
        await client.close()


async def test_kafka_a_copy_gives_up_the_detail_before_the_history(
    servers: KafkaCluster, broker: KafkaBroker
) -> None:
    queue = fresh_name()
    await broker.declare(queue)
    await limit(servers, dead_letter_queue(queue), 5_000)
    sent = message(b"x" * 2_500)
    await publish(broker, queue, [sent])
    tried = failed_attempts(5)
    async with broker.subscribe(queue, prefetch=1) as subscription:
        [delivery] = await subscription.receive(1, 10)
        await subscription.settle([DeadLetter(delivery, LONG, history=tried)])
    [dead] = await drain(broker, dead_letter_queue(queue), 1, 10)
    assert dead.death is not None
    assert (dead.message, dead.death.failure.reason) == (sent, LONG.reason)
    assert (dead.death.failure.detail, dead.death.history) == ("", tried)


async def test_kafka_keeps_what_no_topic_takes_and_goes_on_with_the_others(
    servers: KafkaCluster, broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody made the dead letters' topic smaller; when it is larger again the message finds its rest."""
    monkeypatch.setattr(kafka_subscription, "STUCK", 1.0)
    monkeypatch.setattr(topics, "REFRESH", 0.2)
    queue = fresh_name()
    await broker.declare(queue)
    await limit(servers, dead_letter_queue(queue), 2_000)
    full = message(b"x" * 5_000, key="k")
    await publish(broker, queue, [full])
    others = [message(b"%d" % n, key="k") for n in range(20)]
    await publish(broker, queue, others)
    with capture_logs() as logs:
        async with broker.subscribe(queue, prefetch=5) as subscription:
            [delivery] = await subscription.receive(1, 10)
            assert delivery.message == full
            assert await subscription.settle([DeadLetter(delivery, FAILURE)]) == []
            passed: list[str] = []
            async with asyncio.timeout(20):
                while len(passed) < 20:
                    for d in await subscription.receive(5, 0.2):
                        big = d.message.id == full.id
                        assert await subscription.settle([DeadLetter(d, FAILURE) if big else Ack(d)]) == []
                        passed += [] if big else [d.message.id]
            assert passed == ids(others)
            await limit(servers, dead_letter_queue(queue), 1_000_000)
            async with broker.subscribe(dead_letter_queue(queue), prefetch=1) as dead_letters:
                dead: list[Delivery] = []
                async with asyncio.timeout(30):
                    while not dead:
                        for d in await subscription.receive(5, 0.2):
                            assert await subscription.settle([DeadLetter(d, FAILURE)]) == []
                        dead = await dead_letters.receive(1, 0.2)
    assert (dead[0].message, dead[0].attempt) == (full, 1)
    told = [line for line in logs if "larger than its topic takes" in line["event"]]
    assert told[0]["log_level"] == "error"
    assert told[0]["id"] == full.id


async def test_kafka_a_message_that_would_leave_no_room_is_refused_at_once(
    servers: KafkaCluster, broker: KafkaBroker
) -> None:
    """And small ones together are not too large for a topic: its limit is one of batches."""
    queue = fresh_name()
    await broker.declare(queue)
    await limit(servers, queue, 50_000)
    async with KafkaBroker.open(servers.url, KAFKA) as fresh:
        [result] = await fresh.publish(queue, [message(b"x" * 40_000)], timeout=10)
        assert isinstance(result.error, MessageTooLarge)
        assert 30_000 < result.error.limit < 40_000
        await publish(fresh, queue, [message(b"x" * result.error.limit)])
        await publish(fresh, queue, [message(b"x" * 10_000, key="k") for _ in range(50)])
        assert len(await drain(fresh, queue, 51, 20)) == 51
