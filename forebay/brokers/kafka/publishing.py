"""Writing records: our own batches, one deadline for all, a producer that is thrown away when in doubt."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from aiokafka.structs import TopicPartition

from forebay.brokers.kafka.batches import Batch, full
from forebay.brokers.kafka.records import Outgoing, OutgoingAlike, partition_of
from forebay.brokers.kafka.sending import Pump
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


Lot = tuple[Sequence[int], Batch]
"""Which records are in a batch, and the batch."""


class _Outcomes:
    """What became of the records of one `write`; unknown, until it is told."""

    def __init__(self, records: int, lanes: int) -> None:
        self.of: list[PublishError | None] = [
            PublishUnconfirmed("Kafka did not confirm in time; the message may be stored")
        ] * records
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lanes = lanes

    def set(self, which: Sequence[int], outcome: PublishError | None) -> None:
        if len(which) == len(self.of):
            self.of = [outcome] * len(which)
            return
        for i in which:
            self.of[i] = outcome

    def lane_done(self) -> None:
        self._lanes -= 1
        if not self._lanes:
            self.expire()

    def expire(self) -> None:
        if not self.complete.done():
            self.complete.set_result(None)


def _filled(records: Sequence[Outgoing], which: Sequence[int], room: int) -> list[Lot]:
    """The records of one partition in batches, in order; a topic limits batches, not records."""
    if isinstance(records, OutgoingAlike):
        contents = [records.contents[i] for i in which]
    else:
        contents = [records[i].content for i in which]
    now = int(time.time() * 1000)
    ends = full(contents, min(BATCH_BYTES, room))
    return [
        (which[start:end], Batch(contents[start:end], now)) for start, end in itertools.pairwise((0, *ends))
    ]


class Writer:
    """Writes records; returns what became of each."""

    def __init__(self, connection: dict[str, Any], settings: KafkaSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._lines: dict[TopicPartition, asyncio.Lock] = {}
        self._queueing: defaultdict[TopicPartition, set[object]] = defaultdict(set)
        """Who waits for a place in a partition: nobody overtakes them."""
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
        producer = self._producer or await self._started(timeout)
        if not records:
            return []
        lanes = self._lanes(records, topics)
        outcomes = _Outcomes(len(records), len(lanes))
        queueing = []
        for (topic, partition), which in lanes.items():
            room = topics[topic].max_message_bytes
            lots = _filled(records, which, room)
            tp = TopicPartition(topic, partition)
            if len(lots) == 1 and self._is_free(producer, tp):
                self._put(producer, tp, lots[0], records, outcomes)
            else:
                queueing.append(self._queue(producer, tp, lots, records, outcomes))
        timer = loop.call_at(deadline, outcomes.expire)
        try:
            await outcomes.complete
        finally:
            # What is in a batch already goes on; only the waiting for a place, or for an answer, ends.
            timer.cancel()
            for task in queueing:
                task.cancel()
        return list(outcomes.of)

    def _lanes(
        self, records: Sequence[Outgoing], topics: Mapping[str, Topic]
    ) -> Mapping[tuple[str, int], Sequence[int]]:
        """Which records go to which partition."""
        lanes: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        turn = next(self._turn)
        if isinstance(records, OutgoingAlike):
            topic, key = records.topic, records.key
            count = topics[topic].partitions
            if key is not None:
                return {(topic, partition_of(key, count)): range(len(records))}
            for start in range(0, len(records), SPREAD):
                chosen = (turn + start // SPREAD) % count
                lanes[topic, chosen] += range(start, min(start + SPREAD, len(records)))
            return lanes
        for i, record in enumerate(records):
            count = topics[record.topic].partitions
            chosen = (turn + i // SPREAD) % count if record.key is None else partition_of(record.key, count)
            lanes[record.topic, chosen].append(i)
        return lanes

    async def close(self) -> None:
        """Within a few seconds, whatever the broker does."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _discard(producer, patience=2.0)
        if self._background:
            await asyncio.wait(self._background, timeout=2)

    def _is_free(self, producer: AIOKafkaProducer, tp: TopicPartition) -> bool:
        """Whether a batch can be put into its place without waiting."""
        accumulator, client = producer._message_accumulator, producer.client
        return (
            not self._queueing.get(tp)
            and tp not in accumulator._batches
            and not accumulator._closed
            and accumulator._exception is None
            and tp.topic in client._topics
            and client.cluster.leader_for_partition(tp) is not None
        )

    def _put(
        self,
        producer: AIOKafkaProducer,
        tp: TopicPartition,
        lot: Lot,
        records: Sequence[Outgoing],
        outcomes: _Outcomes,
    ) -> None:
        """What `send_batch` does in the end, without asking for what `_is_free` knows."""
        inside, builder = lot

        def done(future: asyncio.Future[Any]) -> None:
            error = None if future.cancelled() else future.exception()
            outcome = None
            if isinstance(error, KafkaError):
                outcome = self._failed(producer, error, [records[i] for i in inside])
            elif error is not None or future.cancelled():
                outcome = PublishUnconfirmed(f"the message may be stored: {error!r}")
            outcomes.set(inside, outcome)
            outcomes.lane_done()

        producer._message_accumulator._append_batch(builder, tp).future.add_done_callback(done)

    def _queue(
        self,
        producer: AIOKafkaProducer,
        tp: TopicPartition,
        lots: Sequence[Lot],
        records: Sequence[Outgoing],
        outcomes: _Outcomes,
    ) -> asyncio.Task[None]:
        line = self._queueing[tp]
        place = object()
        line.add(place)
        queued = partial(line.discard, place)
        task = asyncio.get_running_loop().create_task(
            self._send(producer, tp, lots, records, outcomes, queued)
        )
        # It may be cancelled before it begins.
        task.add_done_callback(lambda _: queued())
        return task

    async def _send(
        self,
        producer: AIOKafkaProducer,
        tp: TopicPartition,
        lots: Sequence[Lot],
        records: Sequence[Outgoing],
        outcomes: _Outcomes,
        queued: Callable[[], None],
    ) -> None:
        """The records of one partition, in order, as there is a place for them."""
        sent: list[tuple[Sequence[int], Any]] = []
        try:
            try:
                async with self._lines.setdefault(tp, asyncio.Lock()):
                    for inside, builder in lots:
                        sent.append((inside, await self._enqueue(producer, builder, tp)))
            except KafkaError as error:
                self._doubt(producer, error)
            queued()
            for inside, future in sent:
                try:
                    # Shielded: a caller who goes away takes nothing back from the others.
                    await asyncio.shield(future)
                    outcome: PublishError | None = None
                except KafkaError as error:
                    outcome = self._failed(producer, error, [records[i] for i in inside])
                outcomes.set(inside, outcome)
        finally:
            outcomes.lane_done()

    async def _enqueue(self, producer: AIOKafkaProducer, builder: Batch, tp: TopicPartition) -> Any:
        """
        Put a batch where the producer sends it from; one at a time for each partition.

        aiokafka wakes all who wait for a partition together, and shortens their
        patience at each try by the whole time since the first: of many who wait some
        time out long before their time. In a line of our own each has its turn.
        """
        while True:
            try:
                future = await producer.send_batch(builder, tp.topic, partition=tp.partition)
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
                    producer._sender = Pump(producer._sender)
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
