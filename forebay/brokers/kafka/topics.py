"""Topics: what they are called, how they are made, and how safe a message in one is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    BrokerNotAvailableError,
    GroupCoordinatorNotAvailableError,
    KafkaConnectionError,
    KafkaError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest

from forebay.brokers.api import Durability
from forebay.brokers.kafka.connection import why_not
from forebay.brokers.kafka.settings import KafkaSettings
from forebay.brokers.kafka.tracker import finished_above
from forebay.brokers.naming import QUEUE_NAME, dead_letter_queue, is_dead_letter_queue
from forebay.errors import BrokerUnavailable, QueueNotFound, SettingsError

log = structlog.get_logger()

# What it says about lost connections, many times a second, we say ourselves, once and with the reason.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

T = TypeVar("T")

FOREVER = "-1"
TOPIC_SETTINGS = (
    "min.insync.replicas",
    "flush.messages",
    "unclean.leader.election.enable",
    "retention.ms",
    "max.message.bytes",
)
MORE = 65_536
"""Bytes by which a record of a retry topic, and of a dead letter, may be longer: for what was added to it."""
REFRESH = 30.0
"""Seconds after which a topic in use is looked at again."""
REFRESH_PATIENCE = 10.0
RETRY = 0.1
"""Seconds between two questions to a cluster that is about to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """What a publisher must know of a topic."""

    partitions: int
    replication: int
    min_insync: int
    flushed: bool
    """Each message, before it is confirmed."""
    unclean: bool
    """A copy that misses confirmed messages may come to lead."""
    retention: float
    """Seconds after which Kafka deletes a message, consumed or not; inf: never."""
    max_message_bytes: int = 1_048_588
    """Of a record with all that is around it."""

    @property
    def durability(self) -> Durability:
        return durability_of(self.replication, self.min_insync, self.flushed)


def retry_topic(queue: str, delay: float) -> str:
    """`orders.retry-15s`; of fractions of a second `orders.retry-250ms`."""
    return f"{queue}.retry-{int(delay)}s" if delay == int(delay) else f"{queue}.retry-{round(delay * 1000)}ms"


def durability_of(replication: int, min_insync: int, flushed: bool) -> Durability:
    """
    What acks=all means on a topic.

    Kafka confirms before the disk unless told to flush: below three copies a power
    cut loses what it confirmed, so that only flushing each message counts there.
    """
    if replication >= 3 and min_insync >= 2:
        return "replicated"
    return "synced" if flushed else "unsynced"


class Admin:
    """Asks and changes the cluster; connects when first used, and again after any error."""

    def __init__(self, connection: dict[str, Any], settings: KafkaSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._client: AIOKafkaAdminClient | None = None
        self._connecting = asyncio.Lock()
        self._topics: dict[str, Topic] = {}
        self._looked_at: dict[str, float] = {}
        self._looking = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self.brokers = 0
        self.cluster_id = ""

    async def connect(self, timeout: float) -> None:
        """
        Find out how many brokers there are; while the cluster itself does not know, it is asked again.

        Raises:
            BrokerUnavailable
        """
        answer = await self._ask(_described, timeout)
        self.brokers = len(answer["brokers"])
        self.cluster_id = str(answer["cluster_id"])

    @property
    def replication(self) -> int:
        return self._settings.replication or (3 if self.brokers != 1 else 1)

    @property
    def min_insync(self) -> int:
        return self._settings.min_insync_replicas or (2 if self.replication >= 3 else 1)

    @property
    def durability(self) -> Durability:
        """Of the topics that we create."""
        return durability_of(self.replication, self.min_insync, self.replication < 3)

    async def ping(self, timeout: float) -> None:
        await self.connect(timeout)

    async def names(self, timeout: float) -> list[str]:
        names: list[str] = await self._ask(lambda client: client.list_topics(), timeout)
        return names

    async def queues(self, timeout: float) -> list[str]:
        names = set(await self.names(timeout))
        return sorted(n for n in names if QUEUE_NAME.fullmatch(n) and dead_letter_queue(n) in names)

    async def topic(self, name: str, timeout: float) -> Topic:
        """
        What is known of a topic, at once; asked again in the background when that is REFRESH old.

        Raises:
            QueueNotFound, BrokerUnavailable
        """
        known = self._topics.get(name)
        if known is not None:
            if time.monotonic() - self._looked_at[name] > REFRESH and self._refreshing is None:
                self._refreshing = asyncio.create_task(self._refresh(name, known))
            return known
        # Once for all who ask at the same time: the answer is about every topic of the cluster.
        async with _unavailable_after(timeout, "Kafka did not answer"), self._looking:
            return self._topics.get(name) or await self._look_up(name, timeout)

    async def _look_up(self, name: str, timeout: float) -> Topic:
        # All topics, for a question after one may create it (auto.create.topics.enable).
        everything = await self._ask(lambda client: client.describe_topics(), timeout)
        found = next((t for t in everything if t["topic"] == name and not t["error_code"]), None)
        if found is None:
            raise QueueNotFound(name)
        config = await self._config(ConfigResourceType.TOPIC, name, TOPIC_SETTINGS, timeout)
        kept = float(config["retention.ms"]) / 1000
        topic = Topic(
            partitions=len(found["partitions"]),
            replication=min(len(p["replicas"]) for p in found["partitions"]),
            min_insync=int(config["min.insync.replicas"]),
            flushed=config["flush.messages"] == "1",
            unclean=config["unclean.leader.election.enable"] == "true",
            retention=kept if kept >= 0 else math.inf,
            max_message_bytes=int(config["max.message.bytes"]),
        )
        self._topics[name] = topic
        self._looked_at[name] = time.monotonic()
        return topic

    async def _refresh(self, name: str, known: Topic) -> None:
        """Somebody may have weakened or deleted the topic; while nobody answers, the last answer stands."""
        try:
            found = await self._look_up(name, REFRESH_PATIENCE)
            if found.durability != known.durability:
                log.warning("the durability of a topic changed", topic=name, durability=found.durability)
        except QueueNotFound:
            self._topics.pop(name, None)
        except BrokerUnavailable as error:
            log.debug("a topic cannot be looked at again yet", topic=name, reason=str(error))
        finally:
            self._looked_at[name] = time.monotonic()
            self._refreshing = None

    async def declare(self, queue: str, timeout: float) -> Topic:
        """
        Create the topics of a queue that do not exist; those that do are left as they are.

        Raises:
            SettingsError: the cluster cannot hold what the settings ask for.
            BrokerUnavailable
        """
        existing = set(await self.names(timeout))
        retention = {queue: self._settings.retention, dead_letter_queue(queue): -1.0}
        for delay in self._settings.retry_delays:
            retention[retry_topic(queue, delay)] = 2 * self._settings.retention
        missing = {name: kept for name, kept in retention.items() if name not in existing}
        if missing:
            await self._create(queue, missing, timeout)
        # A topic is known to the controller first, and to the others a moment later.
        async with _unavailable_after(timeout, "the new topics have no leaders yet"):
            while not await self._led(set(retention), timeout):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.02)
        return await self.topic(queue, timeout)

    async def _create(self, queue: str, missing: dict[str, float], timeout: float) -> None:
        await self.connect(timeout)
        if self.replication > self.brokers:
            raise SettingsError(
                f"queue {queue!r} needs {self.replication} copies, and the Kafka cluster has {self.brokers}"
                f" broker(s); start more, or set broker.kafka.replication = {self.brokers}"
            )
        if self.min_insync > self.replication:
            raise SettingsError(
                f"broker.kafka.min_insync_replicas is {self.min_insync}, above broker.kafka.replication"
                f" ({self.replication}): nothing could be published; set it to at most {self.replication}"
            )
        new = [self._new_topic(name, kept, 0 if name == queue else MORE) for name, kept in missing.items()]
        answer = await self._ask(lambda client: client.create_topics(new), timeout)
        for name, code, text in answer.topic_errors:
            if code and for_code(code) is not TopicAlreadyExistsError:
                raise BrokerUnavailable(
                    f"Kafka did not create topic {name}: {text or for_code(code).__name__}"
                )
        log.info("topics created", queue=queue, topics=len(new), replication=self.replication)

    async def unfinished(self, group: str, topics: Sequence[str], timeout: float) -> dict[str, int] | None:
        """
        Records of each topic that the group has not finished; None while its members have some.

        What they hold or have finished is in their commits a moment later only. Only when
        all is committed, nothing is left to know.
        """
        [described] = await self._ask(lambda client: client.describe_consumer_groups([group]), timeout)
        consumed = bool(described.groups[0][5])
        tps = [
            TopicPartition(name, p)
            for name in topics
            for p in range((await self.topic(name, timeout)).partitions)
        ]
        offsets = await self._ask(lambda client: client.list_consumer_group_offsets(group), timeout)
        begin, end = await self._bounds(tps, timeout)
        out = dict.fromkeys(topics, 0)
        for tp in tps:
            at = offsets.get(tp)
            position = begin[tp] if at is None or at.offset < 0 else max(at.offset, begin[tp])
            finished = 0 if at is None else finished_above(at.offset, at.metadata, position)
            out[tp.topic] += max(0, end[tp] - position - finished)
        return None if consumed and any(out.values()) else out

    async def _bounds(
        self, tps: list[TopicPartition], timeout: float
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        async with self._asking(timeout) as consumer:
            return await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)

    @contextlib.asynccontextmanager
    async def _asking(self, timeout: float) -> AsyncIterator[AIOKafkaConsumer]:
        """A consumer of no group, that only asks for offsets."""
        consumer = AIOKafkaConsumer(**self._connection, enable_auto_commit=False)
        try:
            async with _unavailable_after(timeout, "Kafka did not tell its offsets"):
                await consumer.start()
                yield consumer
        except (KafkaError, OSError) as error:
            raise BrokerUnavailable(f"Kafka cannot be asked: {error!r}") from error
        finally:
            _forget(_close(consumer))

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait((self._refreshing,))
        client, self._client = self._client, None
        if client is not None:
            await _close(client)
        # Those given up earlier too: whoever ends the loop after us must find no connection open.
        loop = asyncio.get_running_loop()
        if ending := {task for task in _background if task.get_loop() is loop}:
            await asyncio.wait(ending, timeout=2)

    def _new_topic(self, name: str, retention: float, more: int) -> NewTopic:
        configs = {
            "min.insync.replicas": str(self.min_insync),
            "retention.ms": FOREVER if retention < 0 else str(int(retention * 1000)),
            "retention.bytes": FOREVER,
            "cleanup.policy": "delete",
            "unclean.leader.election.enable": "false",
            "message.timestamp.type": "CreateTime",
            # Room for headers beside the largest body.
            "max.message.bytes": str(max(1_048_588, self._settings.max_body_bytes + 256 * 1024) + more),
        }
        if self.replication < 3:
            configs["flush.messages"] = "1"
        return NewTopic(name, self._settings.partitions, self.replication, topic_configs=configs)

    async def _led(self, names: set[str], timeout: float) -> bool:
        """Whether every node that can be asked knows who leads these topics."""

        async def views(client: AIOKafkaAdminClient) -> list[Any]:
            nodes = [broker["node_id"] for broker in (await client.describe_cluster())["brokers"]]
            asked = [client._send_request(MetadataRequest(None), node) for node in nodes]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            return [answer for answer in answers if not isinstance(answer, KafkaError | OSError)]

        answers = await self._ask(views, timeout)
        for answer in answers:
            topics = {t["topic"]: t["partitions"] for t in answer.to_object()["topics"]}
            if not all(topics.get(name) and all(p["leader"] >= 0 for p in topics[name]) for name in names):
                return False
        return bool(answers)

    async def _config(
        self, kind: ConfigResourceType, name: str, settings: Sequence[str], timeout: float
    ) -> dict[str, str]:
        resource = ConfigResource(kind, name, dict.fromkeys(settings))
        [answer] = await self._ask(lambda client: client.describe_configs([resource]), timeout)
        code, text, _, _, entries = answer.resources[0][:5]
        if code:
            raise BrokerUnavailable(f"Kafka did not tell the settings of {name}: {text}")
        return {entry[0]: entry[1] for entry in entries}

    async def describe(self, timeout: float) -> tuple[list[int], dict[str, list[Any]]]:
        """The brokers, and the partitions of every topic."""

        async def both(client: AIOKafkaAdminClient) -> tuple[Any, Any]:
            return await client.describe_cluster(), await client.describe_topics()

        cluster, topics = await self._ask(both, timeout)
        return [b["node_id"] for b in cluster["brokers"]], {t["topic"]: t["partitions"] for t in topics}

    async def broker_settings(self, broker: int, names: Sequence[str], timeout: float) -> dict[str, str]:
        return await self._config(ConfigResourceType.BROKER, str(broker), names, timeout)

    async def unfinished_before(self, group: str, topic: str, when: float, timeout: float) -> bool:
        """Whether the group has yet to finish a record of `topic` from before `when` (Unix seconds)."""
        tps = [TopicPartition(topic, p) for p in range((await self.topic(topic, timeout)).partitions)]
        offsets = await self._ask(lambda client: client.list_consumer_group_offsets(group), timeout)
        async with self._asking(timeout) as consumer:
            begin = await consumer.beginning_offsets(tps)
            end = await consumer.end_offsets(tps)
            found = await consumer.offsets_for_times(dict.fromkeys(tps, int(when * 1000)))
        for tp in tps:
            first_younger = end[tp] if found.get(tp) is None else found[tp].offset
            at = offsets.get(tp)
            if (begin[tp] if at is None or at.offset < 0 else max(at.offset, begin[tp])) < first_younger:
                return True
        return False

    async def _ask(self, question: Callable[[AIOKafkaAdminClient], Awaitable[T]], timeout: float) -> Any:
        """
        Ask one node or another, until one answers.

        aiokafka asks a node by chance, also one that was lost a moment ago.
        """
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            client = None
            try:
                # One of the nodes may be silent: time must be left for the others.
                async with asyncio.timeout(min(left, max(left / 2, 1.0))):
                    client = await self._connected()
                    return await question(client)
            except TimeoutError as error:
                self._abandon(client)
                if time.monotonic() >= deadline - 0.01:
                    raise BrokerUnavailable(f"Kafka did not answer within {timeout:g} s") from error
            except (KafkaError, OSError, AttributeError, ValueError) as error:
                # AttributeError, ValueError: aiokafka's, where it knows no node or no controller.
                if not isinstance(error, GroupCoordinatorNotAvailableError):
                    # That one: a fresh cluster creates what it needs for groups at the first question.
                    self._abandon(client)
                if client is None or time.monotonic() + RETRY >= deadline:
                    raise BrokerUnavailable(f"Kafka cannot be asked: {error!r}") from error
                await asyncio.sleep(RETRY)
            except asyncio.CancelledError:
                self._abandon(client)
                raise

    def _abandon(self, client: AIOKafkaAdminClient | None) -> None:
        """A connection with an unanswered request would give the answer to the next question."""
        if client is not None and client is self._client:
            self._client = None
            _forget(_close(client))

    async def _connected(self) -> AIOKafkaAdminClient:
        async with self._connecting:
            if self._client is None:
                client = AIOKafkaAdminClient(**self._connection)
                try:
                    await client.start()
                except BaseException as error:
                    _forget(_close(client))
                    if isinstance(error, KafkaConnectionError):
                        raise BrokerUnavailable(
                            f"Kafka cannot be reached: {await why_not(self._connection)}"
                        ) from error
                    raise
                self._client = client
            return self._client


async def _described(client: AIOKafkaAdminClient) -> Any:
    answer = await client.describe_cluster()
    if not answer["brokers"]:
        # A node that started a moment ago answers before it has heard of any, also of itself.
        raise BrokerNotAvailableError("the cluster names none of its brokers yet")
    return answer


_background: set[asyncio.Task[None]] = set()


def _forget(closing: Any) -> None:
    task = asyncio.ensure_future(closing)
    _background.add(task)
    task.add_done_callback(_background.discard)


async def _close(client: AIOKafkaAdminClient | AIOKafkaConsumer) -> None:
    try:
        async with asyncio.timeout(1):
            await (client.stop() if isinstance(client, AIOKafkaConsumer) else client.close())
    except (KafkaError, OSError, TimeoutError):
        pass


class _unavailable_after:
    """`asyncio.timeout` that says BrokerUnavailable."""

    def __init__(self, seconds: float, text: str) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._text = f"{text} within {seconds:g} s"

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise BrokerUnavailable(self._text) from late


def topics_to_read(queue: str, settings: KafkaSettings) -> list[str]:
    """What a subscriber of `queue` reads: the retry topics too, but of dead letters there are none."""
    if is_dead_letter_queue(queue):
        return [queue]
    return [queue, *(retry_topic(queue, delay) for delay in settings.retry_delays)]


def group_of(queue: str) -> str:
    return f"forebay.{queue}"
