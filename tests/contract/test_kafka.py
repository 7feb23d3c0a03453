"""Kafka keeps the contract, on one node; and what happens to it alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from structlog.testing import capture_logs

from forebay.brokers.api import Ack, Retry
from forebay.brokers.kafka import topics
from forebay.brokers.kafka.broker import KafkaBroker
from forebay.brokers.kafka.records import partition_of
from forebay.brokers.naming import dead_letter_queue
from forebay.errors import PublishUnconfirmed, SettingsError
from forebay.testing.broker_contract import BrokerContract, BrokerHarness
from forebay.testing.broker_contract.harness import (
    FAILURE,
    collect,
    drain,
    fresh_name,
    ids,
    message,
    messages,
    publish,
)
from tests.contract.kafka import SETTINGS, KafkaHarness, in_use, running
from tests.servers.kafka import KafkaCluster
from tests.waiting import until


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with running(tmp_path_factory, 1) as servers:
        yield servers


@pytest.fixture
def kafka(servers: KafkaCluster, request: pytest.FixtureRequest) -> Iterator[KafkaCluster]:
    """A Kafka of one node."""
    with in_use(servers, request) as kafka:
        yield kafka


class TestKafka(BrokerContract):
    @pytest.fixture
    def harness(self, kafka: KafkaCluster) -> BrokerHarness:
        return KafkaHarness(kafka)


@pytest.fixture
async def broker(kafka: KafkaCluster) -> AsyncIterator[KafkaBroker]:
    async with KafkaBroker.open(kafka.url, SETTINGS) as broker:
        yield broker


@pytest.fixture
async def queue(broker: KafkaBroker) -> str:
    name = fresh_name()
    await broker.declare(name)
    return name


class TestOnlyKafka:
    async def test_the_shares_of_all_members_add_up_to_what_the_queue_holds(
        self, kafka: KafkaCluster, broker: KafkaBroker, queue: str
    ) -> None:
        await publish(broker, queue, [message(key=f"k{i}") for i in range(300)])
        async with (
            broker.subscribe(queue, prefetch=20) as one,
            KafkaBroker.open(kafka.url, SETTINGS) as other,
            other.subscribe(queue, prefetch=20) as two,
        ):
            held = [*await collect(one, 10, 10), *await collect(two, 10, 10)]
            await one.settle([Retry(held[0], 60, FAILURE), Ack(held[1])])

            def told() -> tuple[int, int, int]:
                shares = [one.share(), two.share()]
                return (
                    sum(s.waiting or 0 for s in shares),
                    sum(s.scheduled or 0 for s in shares),
                    sum(s.in_hand for s in shares),
                )

            await until(lambda: told() == (280, 1, 18), 15)
            assert 0 <= (one.share().oldest_age or -1) < 60

    async def test_a_record_of_somebody_else_is_dead_lettered_untouched(
        self, kafka: KafkaCluster, broker: KafkaBroker, queue: str
    ) -> None:
        async with AIOKafkaProducer(bootstrap_servers=kafka.nodes[0].address) as producer:
            await producer.send_and_wait(queue, b"\x00\xff", headers=[("Trace", b"t")])
        ours = message(b"ours")
        await publish(broker, queue, [ours])

        async with broker.subscribe(queue, prefetch=10) as subscription:
            assert ids(await collect(subscription, 1, 5)) == [ours.id]
            async with broker.subscribe(dead_letter_queue(queue), prefetch=10) as dead:
                [letter] = await collect(dead, 1, 5)

        assert (letter.message.body, letter.message.headers) == (b"\x00\xff", {"trace": "t"})
        assert letter.death is not None
        assert (letter.death.failure.error_class, letter.death.queue) == ("MessageDecodeError", queue)

    async def test_a_flood_of_foreign_records_is_a_line_in_the_log_and_not_one_of_each(
        self, kafka: KafkaCluster, broker: KafkaBroker, queue: str
    ) -> None:
        await KafkaHarness(kafka).write_foreign(queue, [b"not ours"] * 100)
        with capture_logs() as logs:
            async with broker.subscribe(queue, prefetch=100) as subscription:
                assert await subscription.receive(1, 0.5) == []
                assert len(await drain(broker, dead_letter_queue(queue), 100, 5)) == 100
        lines = [line for line in logs if line["event"].startswith("messages that are not ours")]
        assert sum(line["count"] for line in lines) == 100
        assert len(lines) <= 2, "one a second"
        assert (lines[0]["first_topic"], lines[0]["first_offset"]) == (queue, 0)

    async def test_messages_that_kafka_deleted_unread_are_reported_and_the_rest_is_read(
        self, kafka: KafkaCluster, broker: KafkaBroker, queue: str
    ) -> None:
        sent = [message(str(i).encode(), key="k") for i in range(6)]
        await publish(broker, queue, sent)
        assert len(await drain(broker, queue, 1, 5)) == 1
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.nodes[0].address)
        await admin.start()
        place = TopicPartition(queue, partition_of(b"k", SETTINGS.partitions))
        await admin.delete_records({place: RecordsToDelete(before_offset=4)})
        await admin.close()

        with capture_logs() as logs:
            got = await drain(broker, queue, 2, 5)

        assert ids(got) == [m.id for m in sent[4:]]
        [incident] = [entry for entry in logs if entry["log_level"] == "error"]
        assert (incident["topic"], incident["lost"]) == (queue, 3)

    async def test_messages_deleted_before_anybody_consumed_are_reported_too(
        self, kafka: KafkaCluster, broker: KafkaBroker, queue: str
    ) -> None:
        """Without a committed offset nothing is out of range: a beginning above zero tells."""
        sent = [message(str(i).encode(), key="k") for i in range(4)]
        await publish(broker, queue, sent)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.nodes[0].address)
        await admin.start()
        place = TopicPartition(queue, partition_of(b"k", SETTINGS.partitions))
        await admin.delete_records({place: RecordsToDelete(before_offset=3)})
        await admin.close()

        with capture_logs() as logs:
            assert ids(await drain(broker, queue, 1, 5)) == [sent[3].id]

        [incident] = [entry for entry in logs if entry["log_level"] == "error"]
        assert (incident["topic"], incident["lost"]) == (queue, 3)

    async def test_a_producer_whose_sequence_has_a_gap_is_replaced_and_the_next_message_is_stored(
        self, broker: KafkaBroker, queue: str
    ) -> None:
        """For ever refused by Kafka, and never mended by the client."""
        await publish(broker, queue, [message(key="k")])
        spoiled = broker._writer._producer
        assert spoiled is not None
        place = TopicPartition(queue, partition_of(b"k", SETTINGS.partitions))
        spoiled._txn_manager.increment_sequence_number(place, 5)

        [result] = await broker.publish(queue, [message(b"in doubt", key="k")], timeout=10)
        after = message(b"after", key="k")
        await publish(broker, queue, [after])

        assert isinstance(result.error, PublishUnconfirmed)
        assert broker._writer._producer is not spoiled
        assert after.id in ids(await drain(broker, queue, 3, 2))

    async def test_publishes_of_one_turn_keep_their_order_though_the_first_needs_several_batches(
        self, broker: KafkaBroker, queue: str
    ) -> None:
        await publish(broker, queue, [message(key="k")])  # the producer is there
        large = [message(b"x" * 200_000, key="k") for _ in range(3)]
        small = [message(b"y", key="k") for _ in range(3)]

        await asyncio.gather(publish(broker, queue, large), publish(broker, queue, small))

        assert ids(await drain(broker, queue, 7, 5))[1:] == [m.id for m in (*large, *small)]

    async def test_copies_that_the_cluster_cannot_hold_are_refused(self, kafka: KafkaCluster) -> None:
        settings = SETTINGS.model_copy(update={"replication": 3})
        async with KafkaBroker.open(kafka.url, settings) as broker:
            with pytest.raises(SettingsError, match=r"broker\.kafka\.replication = 1"):
                await broker.declare(fresh_name())

    async def test_durability_is_that_of_the_topic_and_not_what_was_hoped_for(
        self, kafka: KafkaCluster, broker: KafkaBroker, queue: str
    ) -> None:
        """One copy, flushed, is synced; a topic that somebody made without flushing is not."""
        [flushed] = await broker.publish(queue, [message()], timeout=5)
        theirs = fresh_name()
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.nodes[0].address)
        await admin.start()
        await admin.create_topics([NewTopic(theirs, 1, 1)])
        await admin.close()
        assert await broker.declare(theirs) == "unsynced"
        [unflushed] = await broker.publish(theirs, [message()], timeout=5)
        assert (flushed.durability, unflushed.durability) == ("synced", "unsynced")
        [found] = [f for f in await broker.examine([theirs]) if f.check == "durability"]
        assert found.verdict == "fail"
        assert theirs in found.text
        assert found.fix.endswith(f"--topic {theirs} --add-config flush.messages=1")

    async def test_partitions_that_change_hands_under_load_deliver_nothing_twice(
        self, kafka: KafkaCluster, broker: KafkaBroker, queue: str
    ) -> None:
        """Also what is lent or acknowledged while the group is just being dealt anew."""
        handled: list[str] = []
        sent: list[str] = []
        done = asyncio.Event()

        async def produce() -> None:
            number = 0
            while not done.is_set():
                batch = [message(b"x", key=str(number + i)) for i in range(20)]
                number += 20
                await publish(broker, queue, batch)
                sent.extend(m.id for m in batch)
                await asyncio.sleep(0.002)

        async def consume(of: KafkaBroker, until_: Callable[[], bool]) -> None:
            async with of.subscribe(queue, prefetch=40) as subscription:
                while not until_():
                    for d in await subscription.receive(10, 0.02):
                        assert await subscription.settle([Ack(d)]) == []
                        handled.append(d.message.id)

        async def come_and_go() -> None:
            async with KafkaBroker.open(kafka.url, SETTINGS) as other:
                for _ in range(8):
                    leave = time.monotonic() + 1
                    await consume(other, lambda leave=leave: time.monotonic() > leave)  # type: ignore[misc]
            done.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce())
            tasks.create_task(come_and_go())
            tasks.create_task(consume(broker, lambda: done.is_set() and len({*handled}) == len(sent)))
        assert len(handled) == len({*handled}), "delivered after its ack"
        assert {*handled} == {*sent}

    async def test_a_topic_that_somebody_weakens_is_no_longer_called_synced(
        self, kafka: KafkaCluster, broker: KafkaBroker, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(topics, "REFRESH", 0.0)
        [before] = await broker.publish(queue, [message()], timeout=5)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.nodes[0].address)
        await admin.start()
        weaker = {"flush.messages": "1000"}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, queue, weaker)])
        await admin.close()

        async with asyncio.timeout(20):
            now = before
            while now.durability != "unsynced":
                [now] = await broker.publish(queue, [message()], timeout=5)
        assert before.durability == "synced"

    async def test_a_newcomer_gets_its_share_although_everything_is_in_hand(
        self, kafka: KafkaCluster, broker: KafkaBroker, queue: str
    ) -> None:
        """Who holds messages keeps their partitions only until they are settled, and loses no loan by it."""
        await publish(broker, queue, messages(30))
        got: dict[str, list[str]] = {"first": [], "second": []}
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(broker.subscribe(queue, prefetch=30))
            held = await collect(one, 6, 5)
            other = await stack.enter_async_context(KafkaBroker.open(kafka.url, SETTINGS))
            two = await stack.enter_async_context(other.subscribe(queue, prefetch=10))
            assert await one.settle([Ack(d) for d in held]) == []
            got["first"] += ids(held)
            for i in range(60):
                await publish(broker, queue, [message(str(i).encode(), key=str(i))])
                for name, subscription in (("first", one), ("second", two)):
                    batch = await subscription.receive(10, 0.05)
                    assert await subscription.settle([Ack(d) for d in batch]) == []
                    got[name] += ids(batch)
        assert got["second"], "the newcomer got nothing"
        assert not set(got["first"]) & set(got["second"])
