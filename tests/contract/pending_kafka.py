"""Kafka keeps the contract."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from structlog.testing import capture_logs

from forebay.brokers.api import Ack, Broker, DeadLetter, Delivery, Release, Retry, Settlement, Subscription
from forebay.brokers.kafka.broker import KafkaBroker
from forebay.brokers.kafka.records import partition_of
from forebay.brokers.kafka.settings import KafkaSettings
from forebay.brokers.naming import dead_letter_queue
from forebay.errors import SettingsError
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
from forebay.testing.broker_contract.model import everything
from tests.needs import missing_server
from tests.servers.kafka import Kafka, KafkaNotInstalled

# Small figures, so that a test need not wait for what a cluster in earnest takes its time for.
SETTINGS = KafkaSettings(
    partitions=3, retry_delays=(0.25, 5.0), heartbeat=0.1, session_timeout=6.0, idle_leave=0.3, handover=5.0
)


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A Kafka of one node, shared by the session; a test that kills it starts it again."""
    try:
        server = Kafka()
    except KafkaNotInstalled as missing:
        missing_server(str(missing))
    with server:
        yield server


class KafkaHarness(BrokerHarness):
    def __init__(self, server: Kafka) -> None:
        self.server = server

    def open(self) -> AbstractAsyncContextManager[Broker]:
        return KafkaBroker.open(self.server.url, SETTINGS)

    @asynccontextmanager
    async def stalled(self) -> AsyncIterator[None]:
        self.server.pause()
        try:
            yield
        finally:
            self.server.resume()

    async def restart(self) -> None:
        self.server.kill()
        self.server.start()


@pytest.mark.xdist_group("kafka")
class TestKafka(BrokerContract):
    @pytest.fixture
    def harness(self, kafka: Kafka) -> BrokerHarness:
        return KafkaHarness(kafka)

    @pytest.mark.parametrize("seed", range(4))
    async def test_the_ledger_adds_up_after_any_history(  # type: ignore[override]  # async, and of a seed
        self, harness: BrokerHarness, seed: int
    ) -> None:
        """
        The suite's model, played from a seed in one loop that never stands still.

        Hypothesis plays a history again and compares: that needs answers that do not
        depend on time, and who of a group gets which partition does.
        """
        assert await History(harness, random.Random(seed)).play(40) > 0


MOVES = ("publish", "publish", *3 * ("receive",), *3 * ("settle",), "again", "reconnect")


class History:
    """Two connections with one subscription each do what they like with one queue."""

    def __init__(self, harness: BrokerHarness, rng: random.Random) -> None:
        self.harness = harness
        self.rng = rng
        self.queue = fresh_name()
        self.attempts: dict[str, int] = {}
        self.loans: list[dict[str, Delivery]] = [{}, {}]
        self.done: set[str] = set()
        self.dead: set[str] = set()
        self.stale: list[Delivery] = []
        self.stacks = [AsyncExitStack(), AsyncExitStack()]
        self.brokers: dict[int, Broker] = {}
        self.subscriptions: dict[int, Subscription] = {}

    async def connect(self, who: int) -> None:
        broker = await self.stacks[who].enter_async_context(self.harness.open())
        await broker.declare(self.queue)
        self.brokers[who] = broker
        subscription = broker.subscribe(self.queue, prefetch=8)
        self.subscriptions[who] = await self.stacks[who].enter_async_context(subscription)

    async def play(self, steps: int) -> int:
        """Returns how many were settled."""
        for who in (0, 1):
            await self.connect(who)
        settled = 0
        for _ in range(steps):
            who = self.rng.randrange(2)
            match self.rng.choice(MOVES):
                case "publish":
                    sent = messages(self.rng.randint(1, 5))
                    await publish(self.brokers[who], self.queue, sent)
                    self.attempts.update({m.id: 1 for m in sent})
                case "receive":
                    await self.receive(who)
                case "settle":
                    settled += await self.settle(who)
                case "again" if self.stale:
                    old = self.rng.choice(self.stale)
                    assert await self.subscriptions[who].settle([Ack(old)]) == [old]
                case "reconnect":
                    await self.stacks[who].aclose()
                    self.stale += self.loans[who].values()
                    self.loans[who].clear()
                    await self.connect(who)
        for stack in self.stacks:
            await stack.aclose()
        await self.check()
        return settled

    async def receive(self, who: int) -> None:
        for d in await self.subscriptions[who].receive(self.rng.randint(1, 6), 0.25):
            id_ = d.message.id
            assert not [loan for loan in self.loans if id_ in loan], "lent twice"
            assert id_ not in self.done, "delivered after its ack"
            assert id_ not in self.dead, "delivered after its death"
            assert d.attempt == self.attempts[id_], "attempts miscounted"
            self.loans[who][id_] = d

    async def settle(self, who: int) -> int:
        loan = self.loans[who]
        settlements: list[Settlement] = []
        for id_ in self.rng.sample(sorted(loan), self.rng.randint(0, len(loan))):
            d = loan.pop(id_)
            self.stale.append(d)
            match self.rng.choice(("ack", "retry", "dead", "release")):
                case "ack":
                    settlements.append(Ack(d))
                    self.done.add(id_)
                case "retry":
                    settlements.append(Retry(d, 0, FAILURE))
                    self.attempts[id_] += 1
                case "dead":
                    settlements.append(DeadLetter(d, FAILURE))
                    self.dead.add(id_)
                case "release":
                    settlements.append(Release(d))
        assert await self.subscriptions[who].settle(settlements) == []
        return len(settlements)

    async def check(self) -> None:
        left = set(self.attempts) - self.done - self.dead
        async with self.harness.open() as broker:
            waiting = await everything(broker, self.queue, len(left), self.harness.patience)
            dead = await everything(broker, dead_letter_queue(self.queue), len(self.dead), 5)
        assert sorted(ids(waiting)) == sorted(left)
        assert {d.message.id: d.attempt for d in waiting} == {id_: self.attempts[id_] for id_ in left}
        assert sorted(ids(dead)) == sorted(self.dead)


@pytest.fixture
async def broker(kafka: Kafka) -> AsyncIterator[KafkaBroker]:
    async with KafkaBroker.open(kafka.url, SETTINGS) as broker:
        yield broker


@pytest.fixture
async def queue(broker: KafkaBroker) -> str:
    name = fresh_name()
    await broker.declare(name)
    return name


@pytest.mark.xdist_group("kafka")
class TestOnlyKafka:
    async def test_a_record_of_somebody_else_is_dead_lettered_untouched(
        self, kafka: Kafka, broker: KafkaBroker, queue: str
    ) -> None:
        async with AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{kafka.port}") as producer:
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

    async def test_messages_that_kafka_deleted_unread_are_reported_and_the_rest_is_read(
        self, kafka: Kafka, broker: KafkaBroker, queue: str
    ) -> None:
        sent = [message(str(i).encode(), key="k") for i in range(6)]
        await publish(broker, queue, sent)
        assert len(await drain(broker, queue, 1, 5)) == 1
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{kafka.port}")
        await admin.start()
        place = TopicPartition(queue, partition_of(b"k", SETTINGS.partitions))
        await admin.delete_records({place: RecordsToDelete(before_offset=4)})
        await admin.close()

        with capture_logs() as logs:
            got = await drain(broker, queue, 2, 5)

        assert ids(got) == [m.id for m in sent[4:]]
        [incident] = [entry for entry in logs if entry["log_level"] == "error"]
        assert (incident["topic"], incident["lost"]) == (queue, 3)

    async def test_copies_that_the_cluster_cannot_hold_are_refused(self, kafka: Kafka) -> None:
        settings = SETTINGS.model_copy(update={"replication": 3})
        async with KafkaBroker.open(kafka.url, settings) as broker:
            with pytest.raises(SettingsError, match=r"broker\.kafka\.replication = 1"):
                await broker.declare(fresh_name())

    async def test_durability_is_that_of_the_topic_and_not_what_was_hoped_for(
        self, kafka: Kafka, broker: KafkaBroker, queue: str
    ) -> None:
        """One copy, flushed, is synced; a topic that somebody made without flushing is not."""
        [flushed] = await broker.publish(queue, [message()], timeout=5)
        theirs = fresh_name()
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{kafka.port}")
        await admin.start()
        await admin.create_topics([NewTopic(theirs, 1, 1)])
        await admin.close()
        await broker.declare(theirs)
        [unflushed] = await broker.publish(theirs, [message()], timeout=5)
        assert (flushed.durability, unflushed.durability) == ("synced", "unsynced")

    async def test_a_newcomer_gets_its_share_although_everything_is_in_hand(
        self, kafka: Kafka, broker: KafkaBroker, queue: str
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
