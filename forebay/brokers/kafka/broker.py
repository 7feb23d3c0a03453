"""Kafka as a Broker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import structlog

from forebay.brokers import wire
from forebay.brokers.api import Capabilities, Depth, Durability, Finding, PublishResult, Subscription
from forebay.brokers.kafka import copies
from forebay.brokers.kafka.connection import findings, read_url
from forebay.brokers.kafka.examination import BROKER_SETTINGS, Seen, cure, judge
from forebay.brokers.kafka.publishing import Writer
from forebay.brokers.kafka.records import RESERVE, Outgoing, OutgoingAlike, first, firsts
from forebay.brokers.kafka.settings import KafkaSettings
from forebay.brokers.kafka.subscription import KafkaSubscription
from forebay.brokers.kafka.topics import Admin, Topic, group_of, topics_to_read
from forebay.brokers.naming import check_queue_name, dead_letter_queue
from forebay.errors import (
    BrokerClosed,
    MessageTooLarge,
    PublishError,
)
from forebay.message import Alike, Message

log = structlog.get_logger()

ANSWER = 5.0
"""Seconds within which the cluster must have answered a question."""
DECLARE = 30.0


class KafkaBroker:
    """One producer, one connection for questions, and one consumer for each subscription."""

    def __init__(self, url: str, settings: KafkaSettings) -> None:
        self.settings = settings
        self.connection = read_url(url, settings)
        self._admin = Admin(self.connection, settings)
        self._writer = Writer(self.connection, settings)
        self._subscriptions: set[KafkaSubscription] = set()
        self._closed = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, settings: KafkaSettings) -> AsyncIterator[KafkaBroker]:
        """
        Raises:
            SettingsError, BrokerUnavailable
        """
        broker = cls(url, settings)
        for finding in findings(broker.connection):
            log.warning(finding.text, fix=finding.fix)
        try:
            await broker._admin.connect(ANSWER)
            yield broker
        finally:
            await broker.close()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            durability=self._admin.durability,
            ordering="by_key",
            bounded=False,
            max_body_bytes=self.settings.max_body_bytes,
            retry_delays=self.settings.retry_delays,
        )

    @property
    def identity(self) -> str:
        return f"Kafka cluster {self._admin.cluster_id}"

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        self._check_open()
        if not messages:
            return []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        topic = await self._admin.topic(queue, timeout)
        now = int(datetime.now(UTC).timestamp() * 1e6)
        made: Sequence[Outgoing | PublishError]
        records: Sequence[Outgoing]
        if (alike := self._made_alike(queue, messages, now, topic.max_message_bytes)) is not None:
            made = records = alike
        else:
            made = [self._made(queue, m, now, topic.max_message_bytes) for m in messages]
            records = [r for r in made if isinstance(r, Outgoing)]
        written = await self._publish(queue, topic, records, deadline - loop.time())
        durability = topic.durability
        if len(records) == len(made) and not any(written):
            return [PublishResult(durability=durability)] * len(made)
        outcomes = iter(written)
        results = []
        for m, record in zip(messages, made, strict=True):
            error = next(outcomes) if isinstance(record, Outgoing) else record
            if error is None:
                results.append(PublishResult(message_id=m.id, durability=durability))
            else:
                results.append(PublishResult(message_id=m.id, error=error))
        return results

    def _made_alike(
        self, queue: str, messages: Sequence[Message], now: int, room: int
    ) -> OutgoingAlike | None:
        """Their records, if they are alike and nothing is to be said of any."""
        if not isinstance(messages, Alike):
            return None
        not_before = messages.common.not_before
        longest = max(map(len, messages.bodies))
        if longest > self.settings.max_body_bytes or (not_before and wire.to_micros(not_before) > now):
            return None
        records = firsts(queue, messages)
        return records if records.size + RESERVE <= room else None

    def _made(self, queue: str, m: Message, now: int, room: int) -> Outgoing | PublishError:
        """The record of a message in a topic whose batches have so much room, or why there is none."""
        limit = self.settings.max_body_bytes
        if len(m.body) > limit:
            return MessageTooLarge(len(m.body), limit)
        if m.not_before is not None and (due := wire.to_micros(m.not_before)) > now:
            record = copies.delayed(queue, m, now, due, self.settings.retry_delays)
        else:
            record = first(queue, m)
        if (above := record.size + RESERVE - room) > 0:
            # It would have no way on: neither a retry nor the dead letter would fit.
            return MessageTooLarge(len(m.body), max(0, len(m.body) - above))
        return record

    async def _publish(
        self, queue: str, topic: Topic, records: Sequence[Outgoing], timeout: float
    ) -> list[PublishError | None]:
        if not records:
            return []
        if not isinstance(records, OutgoingAlike):
            for r in records:
                if r.topic != queue:
                    return await self.write(records, timeout)
        return await self._writer.write(records, {queue: topic}, timeout)

    async def write(self, records: Sequence[Outgoing], timeout: float) -> list[PublishError | None]:
        """
        Write records; copies are made lighter where the topic's limit asks for it.

        What does not fit is refused here: Kafka would refuse all that were sent together with it.

        Raises:
            QueueNotFound, BrokerUnavailable: nothing was sent.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        topics = {
            name: await self._admin.topic(name, deadline - loop.time())
            for name in sorted({r.topic for r in records})
        }
        refused: dict[int, PublishError] = {}
        for i, r in enumerate(records):
            limit = topics[r.topic].max_message_bytes
            if r.size > limit and not r.lighten(limit):
                refused[i] = MessageTooLarge(len(r.value), max(0, limit - (r.size - len(r.value))))
        fitting = [r for i, r in enumerate(records) if i not in refused] if refused else records
        outcomes = await self._writer.write(fitting, topics, deadline - loop.time()) if fitting else []
        if not refused:
            return outcomes
        written = iter(outcomes)
        return [refused[i] if i in refused else next(written) for i in range(len(records))]

    async def declare(self, queue: str) -> Durability:
        self._check_open()
        check_queue_name(queue)
        topic = await self._admin.declare(queue, DECLARE)
        if topic.partitions < self.settings.partitions:
            log.warning(
                "a topic has fewer partitions than broker.kafka.partitions, and is left as it is",
                topic=queue, partitions=topic.partitions, wanted=self.settings.partitions,
            )  # fmt: skip
        if topic.durability == "unsynced":
            log.warning(
                "confirmed messages of a topic may be lost in a power cut",
                topic=queue, replication=topic.replication, min_insync=topic.min_insync,
                fix=cure(queue, topic),
            )  # fmt: skip
        return topic.durability

    async def declared_queues(self) -> list[str]:
        self._check_open()
        return await self._admin.queues(ANSWER)

    @contextlib.asynccontextmanager
    async def subscribe(
        self, queue: str, *, prefetch: int, ordered: bool = False
    ) -> AsyncIterator[Subscription]:
        self._check_open()
        await self._admin.topic(queue, ANSWER)
        subscription = KafkaSubscription(self, queue, prefetch, ordered=ordered)
        self._subscriptions.add(subscription)
        try:
            await subscription.start()
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.close()

    async def depth(self, queue: str) -> Depth:
        self._check_open()
        await self._admin.topic(queue, ANSWER)
        topics = topics_to_read(queue, self.settings)
        left = await self._admin.unfinished(group_of(queue), topics, ANSWER)
        if left is None:
            # Consumers are at it: what of the rest is in their hands only they know.
            return Depth(
                waiting=None, scheduled=None, in_hand=None, bytes=None, oldest_age=None,
                unknown="what consumers hold or have finished only they know while they run",
            )  # fmt: skip
        waiting = left.pop(queue)
        return Depth(
            waiting=waiting, scheduled=sum(left.values()), in_hand=0, bytes=None, oldest_age=None,
            unknown="Kafka counts records, not their bytes",
        )  # fmt: skip

    async def examine(self, queues: Sequence[str]) -> list[Finding]:
        self._check_open()
        brokers, partitions = await self._admin.describe(ANSWER)
        topics = {queue: await self._admin.topic(queue, ANSWER) for queue in queues}
        now = time.time()
        old: dict[str, float] = {}
        for queue, topic in topics.items():
            for share in (0.5, 0.8):
                before = now - share * topic.retention
                if before > 0 and await self._admin.unfinished_before(group_of(queue), queue, before, ANSWER):
                    old[queue] = share
        seen = Seen(
            brokers=len(brokers),
            settings=await self._admin.broker_settings(brokers[0], BROKER_SETTINGS, ANSWER),
            topics=topics,
            partitions={
                name: partitions.get(name, [])
                for queue in queues
                for name in (*topics_to_read(queue, self.settings), dead_letter_queue(queue))
            },
            old=old,
        )
        return [*judge(seen), *findings(self.connection)]

    async def ping(self) -> None:
        self._check_open()
        await self._admin.ping(ANSWER)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(s.close() for s in self._subscriptions))
        await asyncio.gather(self._writer.close(), self._admin.close())

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed("this broker was closed")
