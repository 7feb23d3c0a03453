"""Writing records: our own batches, one deadline for all, a producer that is thrown away when in doubt."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import defaultdict, deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.structs import TopicPartition

from forebay.brokers.kafka.batches import EMPTY, Batch, fitting
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
PREPARING = 5.0
"""Seconds after which it is asked again for a partition's leader, or for a producer."""
SPREAD = 100
"""So many messages without a key go to one partition before the next one's turn."""


class _Outcomes:
    """What became of the records of one `write`; unknown, until it is told."""

    def __init__(self, records: int) -> None:
        self.of: list[PublishError | None] = [
            PublishUnconfirmed("Kafka did not confirm in time; the message may be stored")
        ] * records
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.missing = records

    def set(self, which: Sequence[int], outcome: PublishError | None) -> None:
        if len(which) == len(self.of):
            self.of = [outcome] * len(which)
        else:
            for i in which:
                self.of[i] = outcome
        self.missing -= len(which)
        if not self.missing:
            self.expire()

    def expire(self) -> None:
        if not self.complete.done():
            self.complete.set_result(None)


class _Part:
    """What one `write` has for one partition, in order, as far as it is not in a batch."""

    __slots__ = ("contents", "outcomes", "records", "which")

    def __init__(self, records: Sequence[Outgoing], which: Sequence[int], outcomes: _Outcomes) -> None:
        self.records = records
        self.which = which
        self.outcomes = outcomes
        if isinstance(records, OutgoingAlike):
            self.contents = [records.contents[i] for i in which]
        else:
            self.contents = [records[i].content for i in which]


Piece = tuple[_Part, Sequence[int]]
"""Which of a part's records are in a batch."""


class _Line:
    """
    Those who wait until their partition's batch has its answer; nobody overtakes them.

    Then they go together: the busier a partition is, the fewer batches its records cost.
    """

    __slots__ = ("out", "parts", "preparing", "room")

    def __init__(self) -> None:
        self.parts: deque[_Part] = deque()
        self.room = 0
        """Bytes that the topic allows in a batch, as far as we know."""
        self.out: asyncio.Future[Any] | None = None
        """The answer to the batch that is on its way."""
        self.preparing: asyncio.Task[None] | None = None

    def leave(self, part: _Part) -> None:
        """What of it still waits was not sent, and is not going to be."""
        if part in self.parts:
            self.parts.remove(part)
            part.outcomes.set(part.which, NotSent("Kafka did not answer for those before it in time"))

    def records(self) -> list[Outgoing]:
        return [part.records[i] for part in self.parts for i in part.which]

    def refuse(self, why: PublishError) -> None:
        """What waits was not sent, and is not going to be."""
        while self.parts:
            part = self.parts.popleft()
            part.outcomes.set(part.which, why)

    def take(self) -> tuple[list[bytes], list[Piece]]:
        """As much as may go in one batch, and whose it is."""
        contents: list[bytes] = []
        pieces: list[Piece] = []
        left = min(BATCH_BYTES, self.room) - EMPTY
        while self.parts:
            part = self.parts[0]
            count, left = fitting(part.contents, left)
            if not count:
                if contents:
                    break
                count, left = 1, 0
            contents += part.contents[:count]
            pieces.append((part, part.which[:count]))
            if count < len(part.contents):
                part.contents, part.which = part.contents[count:], part.which[count:]
                break
            self.parts.popleft()
        return contents, pieces


class Writer:
    """Writes records; returns what became of each."""

    def __init__(self, connection: dict[str, Any], settings: KafkaSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._lines: defaultdict[TopicPartition, _Line] = defaultdict(_Line)
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
        if self._producer is None:
            await self._started(timeout)
        if not records:
            return []
        outcomes = _Outcomes(len(records))
        waiting = []
        for (topic, partition), which in self._lanes(records, topics).items():
            tp = TopicPartition(topic, partition)
            line, part = self._lines[tp], _Part(records, which, outcomes)
            line.room = topics[topic].max_message_bytes
            line.parts.append(part)
            waiting.append((line, part))
            self._go_on(tp, line)
        timer = loop.call_at(deadline, outcomes.expire)
        try:
            await outcomes.complete
        finally:
            # What is in a batch already goes on; only the waiting for one, or for an answer, ends.
            timer.cancel()
            if outcomes.missing:
                for line, part in waiting:
                    line.leave(part)
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
        for line in self._lines.values():
            line.refuse(NotSent("the connection to Kafka was closed"))
            if line.preparing is not None:
                line.preparing.cancel()
        if producer is not None:
            await _discard(producer, patience=2.0)
        if self._background:
            await asyncio.wait(self._background, timeout=2)

    def _go_on(self, tp: TopicPartition, line: _Line) -> None:
        """The next batch of a partition, if somebody waits and none is on its way."""
        if not line.parts or line.out is not None or line.preparing is not None:
            return
        if self._producer is not None and self._is_known(self._producer, tp):
            self._put(self._producer, tp, line)
        else:
            line.preparing = self._spawn(self._prepare(tp, line))

    @staticmethod
    def _is_known(producer: AIOKafkaProducer, tp: TopicPartition) -> bool:
        client = producer.client
        return tp.topic in client._topics and client.cluster.leader_for_partition(tp) is not None

    async def _prepare(self, tp: TopicPartition, line: _Line) -> None:
        """Before the first batch, and where a partition has no leader."""
        refused: PublishError | None = None
        ready: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(PREPARING):
                producer = await self._started(PREPARING)
                try:
                    if (broken := producer._message_accumulator._exception) is not None:
                        raise broken
                    await producer.client._wait_on_metadata(tp.topic)
                    ready = producer
                except KafkaError as error:
                    refused = self._failed(producer, error, line.records())
        except BrokerUnavailable as error:
            refused = NotSent(str(error))
        except TimeoutError:
            pass  # its client may have been closed, and tells nobody
        finally:
            line.preparing = None
        if refused is not None:
            line.refuse(refused)
        elif line.parts and ready is not None and ready is self._producer:
            self._put(ready, tp, line)
        else:
            self._go_on(tp, line)

    def _put(self, producer: AIOKafkaProducer, tp: TopicPartition, line: _Line) -> None:
        """
        What `send_batch` does in the end, for one batch at a time.

        aiokafka wakes all who wait for a partition together, and shortens their
        patience at each try by the whole time since the first: of many who wait some
        time out long before their time. In a line of our own each has its turn.
        """
        contents, pieces = line.take()
        batch = Batch(contents, int(time.time() * 1000))

        def done(future: asyncio.Future[Any]) -> None:
            error = None if future.cancelled() else future.exception()
            outcome: PublishError | None = None
            if isinstance(error, KafkaError):
                outcome = self._failed(producer, error, [p.records[i] for p, which in pieces for i in which])
            elif error is not None or future.cancelled():
                outcome = PublishUnconfirmed(f"the message may be stored: {error!r}")
            for part, which in pieces:
                part.outcomes.set(which, outcome)
            if line.out is future:
                line.out = None
                self._go_on(tp, line)

        line.out = producer._message_accumulator._append_batch(batch, tp).future
        line.out.add_done_callback(done)

    def _failed(self, producer: AIOKafkaProducer, error: KafkaError, records: list[Outgoing]) -> PublishError:
        self._doubt(producer, error)
        if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
            if len(records) > 1:
                # No word about any of them: the topic takes smaller batches than it did when it was asked.
                return NotSent(f"Kafka takes smaller batches for {records[0].topic} now")
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
            self._spawn(_discard(producer, patience=self._settings.request_timeout))
            for tp, line in self._lines.items():
                # Perhaps its answers never come.
                line.out = None
                self._go_on(tp, line)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

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
