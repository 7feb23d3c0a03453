"""Writing records: our own batches, one deadline for all, a producer that is thrown away when in doubt."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from forebay.brokers.kafka.records import Outgoing, partition_of
from forebay.brokers.kafka.settings import KafkaSettings
from forebay.brokers.kafka.topics import Topic
from forebay.errors import (
    BrokerUnavailable,
    MessageTooLarge,
    NotSent,
    PublishError,
    PublishUnconfirmed,
)

log = structlog.get_logger()

BATCH_BYTES = 262_144
SPREAD = 100
"""So many messages without a key go to one partition before the next one's turn."""


class Writer:
    """Writes records; returns what became of each."""

    def __init__(self, connection: dict[str, Any], settings: KafkaSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._lines: dict[tuple[str, int], asyncio.Lock] = {}
        # Not all processes at the same partition first: those that send little would load only that one.
        self._turn = itertools.count(random.randrange(2**16))
        self._background: set[asyncio.Task[None]] = set()

    async def write(
        self, records: Sequence[Outgoing], topics: Mapping[str, Topic], timeout: float
    ) -> list[PublishError | None]:
        """
        One outcome per record, at the latest after `timeout` seconds.

        Raises:
            BrokerUnavailable: there is no connection; nothing was sent.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        producer = await self._started(timeout)
        lanes: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        turn = next(self._turn)
        for i, record in enumerate(records):
            count = topics[record.topic].partitions
            chosen = (turn + i // SPREAD) % count if record.key is None else partition_of(record.key, count)
            lanes[record.topic, chosen].append(i)
        outcomes: list[PublishError | None] = [
            PublishUnconfirmed("Kafka did not confirm in time; the message may be stored")
        ] * len(records)
        sending = [
            loop.create_task(self._send(producer, topics[topic], topic, partition, records, which, outcomes))
            for (topic, partition), which in lanes.items()
        ]
        try:
            await asyncio.wait(sending, timeout=max(0.0, deadline - loop.time()))
        finally:
            # What is in a batch already goes on; only the waiting for a place, or for an answer, ends.
            for task in sending:
                task.cancel()
        return list(outcomes)

    async def close(self) -> None:
        """Within a few seconds, whatever the broker does."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _discard(producer, patience=2.0)
        if self._background:
            await asyncio.wait(self._background, timeout=2)

    async def _send(
        self,
        producer: AIOKafkaProducer,
        limits: Topic,
        topic: str,
        partition: int,
        records: Sequence[Outgoing],
        which: list[int],
        outcomes: list[PublishError | None],
    ) -> None:
        """The records of one partition, in order."""
        batches: list[tuple[list[int], Any]] = []
        try:
            builder, inside = producer.create_batch(), list[int]()
            # A topic's limit is one of batches, not of records.
            room = limits.max_message_bytes
            for i in which:
                r = records[i]
                while (inside and r.size > room) or (
                    builder.append(timestamp=None, key=r.key, value=r.value, headers=r.headers) is None
                ):
                    batches.append((inside, await self._enqueue(producer, builder, topic, partition)))
                    builder, inside, room = producer.create_batch(), [], limits.max_message_bytes
                inside.append(i)
                room -= r.size
            batches.append((inside, await self._enqueue(producer, builder, topic, partition)))
        except KafkaError as error:
            self._doubt(producer, error)
        for inside, future in batches:
            try:
                # Shielded: a caller who goes away takes nothing back from the others.
                await asyncio.shield(future)
                outcome: PublishError | None = None
            except KafkaError as error:
                outcome = self._failed(producer, error, [records[i] for i in inside])
            for i in inside:
                outcomes[i] = outcome

    async def _enqueue(self, producer: AIOKafkaProducer, builder: Any, topic: str, partition: int) -> Any:
        """
        Put a batch where the producer sends it from; one at a time for each partition.

        aiokafka wakes all who wait for a partition together, and shortens their
        patience at each try by the whole time since the first: of many who wait some
        time out long before their time. In a line of our own each has its turn.
        """
        builder.close()
        async with self._lines.setdefault((topic, partition), asyncio.Lock()):
            while True:
                try:
                    future = await producer.send_batch(builder, topic, partition=partition)
                    break
                except KafkaTimeoutError:
                    continue  # nothing was taken; our own deadline cancels us
        # Nobody may be left to ask when it fails.
        future.add_done_callback(lambda f: f.cancelled() or f.exception())
        return future

    def _failed(self, producer: AIOKafkaProducer, error: KafkaError, records: list[Outgoing]) -> PublishError:
        self._doubt(producer, error)
        if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
            return MessageTooLarge(max(len(r.value) for r in records), self._settings.max_body_bytes)
        if isinstance(error, TopicAuthorizationFailedError | ClusterAuthorizationFailedError):
            return NotSent(f"Kafka does not allow us to write to {records[0].topic}: {error!r}")
        return PublishUnconfirmed(f"Kafka reported {type(error).__name__}; the message may be stored")

    def _doubt(self, producer: AIOKafkaProducer, error: KafkaError) -> None:
        """
        Replace a producer that reported an error.

        It retries by itself what can be retried. After any other error a partition's
        sequence may have a gap, and every later batch would be refused.
        """
        if self._producer is producer:
            self._producer = None
            log.warning("kafka producer replaced", error=repr(error))
            task = asyncio.create_task(_discard(producer, patience=self._settings.request_timeout))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _started(self, timeout: float) -> AIOKafkaProducer:
        try:
            async with asyncio.timeout(timeout), self._starting:
                if self._producer is None:
                    producer = AIOKafkaProducer(
                        **self._connection,
                        acks="all",
                        enable_idempotence=True,
                        max_batch_size=BATCH_BYTES,
                        max_request_size=self._settings.max_body_bytes + 256 * 1024,
                        metadata_max_age_ms=30_000,
                    )
                    try:
                        await producer.start()
                    except BaseException:
                        await _discard(producer, patience=0.0)
                        raise
                    self._producer = producer
                return self._producer
        except (KafkaError, OSError, TimeoutError) as error:
            raise BrokerUnavailable(f"no connection to Kafka: {error!r}") from error


async def _discard(producer: AIOKafkaProducer, patience: float) -> None:
    """Stop it in order if that works within `patience`; else tear it down: `stop` may wait for ever."""
    if patience > 0:
        stopping = asyncio.ensure_future(producer.stop())
        done, _ = await asyncio.wait([stopping], timeout=patience)
        if done:
            if not stopping.cancelled() and stopping.exception() is not None:
                log.info("kafka producer did not stop in order", error=repr(stopping.exception()))
            return
        stopping.cancel()
    producer._closed = True
    sender = getattr(producer._sender, "sender_task", None) if producer._sender is not None else None
    if sender is not None:
        sender.cancel()
        await asyncio.wait([sender], timeout=0.5)
    try:
        async with asyncio.timeout(1):
            await producer.client.close()
    except (KafkaError, OSError, TimeoutError):
        pass
