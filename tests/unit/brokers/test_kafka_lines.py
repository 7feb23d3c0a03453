"""Batches of one partition: one at a time, in order, and whoever waits for its turn goes with the others."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import MessageSizeTooLargeError, OutOfOrderSequenceNumber
from aiokafka.record.memory_records import MemoryRecords

from forebay.brokers.kafka.batches import content
from forebay.brokers.kafka.publishing import BATCH_BYTES, Writer
from forebay.brokers.kafka.records import Outgoing
from forebay.brokers.kafka.settings import KafkaSettings
from forebay.errors import MessageTooLarge, NotSent, PublishUnconfirmed

TOPICS: Any = {"orders": SimpleNamespace(partitions=1, max_message_bytes=2**20)}


class Producer:
    """Takes batches, and answers when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.answers: list[asyncio.Future[None]] = []
        self.sizes: list[int] = []
        self._message_accumulator = self
        self._exception = None
        self._topics = {"orders"}
        self.client = self.cluster = self

    def leader_for_partition(self, tp: Any) -> int:
        return 1

    async def _wait_on_metadata(self, topic: str) -> None:
        pass

    def _append_batch(self, batch: Any, tp: Any) -> Any:
        data = bytes(batch._build())
        self.sizes.append(len(data))
        self.batches.append([record.value for record in MemoryRecords(data).next_batch() or ()])
        self.answers.append(asyncio.get_running_loop().create_future())
        return SimpleNamespace(future=self.answers[-1])

    async def stop(self) -> None:
        pass


class OurWriter(Writer):
    """A writer that starts such producers."""

    def __init__(self) -> None:
        super().__init__({}, KafkaSettings())
        self.producers: list[Producer] = []

    async def _started(self, timeout: float) -> Any:
        if self._producer is None:
            self._producer = Producer()
            self.producers.append(self._producer)
        return self._producer

    def send(self, *values: bytes, timeout: float = 60) -> asyncio.Task[list[Any]]:
        records = [Outgoing("orders", None, value, content(None, value, [])) for value in values]
        return asyncio.create_task(self.write(records, TOPICS, timeout))


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_waits_for_the_answer_to_a_batch_goes_with_the_others_in_order() -> None:
    writer = OurWriter()
    writes = [writer.send(b"1", b"2"), writer.send(b"3"), writer.send(b"4", b"5")]
    await turns()
    (producer,) = writer.producers
    assert producer.batches == [[b"1", b"2"]]
    producer.answers[0].set_result(None)
    await turns()
    assert producer.batches[1:] == [[b"3", b"4", b"5"]]
    assert [w.done() for w in writes] == [True, False, False]
    producer.answers[1].set_result(None)
    assert await asyncio.gather(*writes) == [[None, None], [None], [None, None]]


async def test_what_is_more_than_a_batch_goes_in_several_and_nobody_overtakes_it() -> None:
    writer = OurWriter()
    large = [bytes([i]) * 100_000 for i in range(5)]
    writes = [writer.send(*large), writer.send(b"y")]
    await turns()
    (producer,) = writer.producers
    while not all(w.done() for w in writes):
        producer.answers[-1].set_result(None)
        await turns()
    assert [value for batch in producer.batches for value in batch] == [*large, b"y"]
    assert [len(batch) for batch in producer.batches] == [2, 2, 2]
    assert max(producer.sizes) <= BATCH_BYTES


async def test_a_record_that_is_larger_than_a_batch_goes_alone() -> None:
    writer = OurWriter()
    writer.send(b"x" * BATCH_BYTES, b"y")
    await turns()
    assert [len(batch) for batch in writer.producers[0].batches] == [1]


async def test_who_has_no_time_left_is_not_sent_any_more() -> None:
    writer = OurWriter()
    first, second = writer.send(b"1"), writer.send(b"2", timeout=0.01)
    (outcome,) = await second
    assert isinstance(outcome, NotSent)
    (producer,) = writer.producers
    producer.answers[0].set_result(None)
    await turns()
    assert await first == [None]
    assert producer.batches == [[b"1"]]


async def test_of_what_is_partly_in_a_batch_at_its_deadline_only_that_is_unknown() -> None:
    writer = OurWriter()
    outcomes = await writer.send(*[bytes([i]) * 100_000 for i in range(5)], timeout=0.01)
    assert [type(outcome) for outcome in outcomes] == [PublishUnconfirmed] * 2 + [NotSent] * 3
    assert [len(batch) for batch in writer.producers[0].batches] == [2]


async def test_a_batch_that_is_too_large_says_nothing_of_the_messages_in_it() -> None:
    writer = OurWriter()
    writes = [writer.send(b"1"), writer.send(b"2"), writer.send(b"3")]
    await turns()
    writer.producers[0].answers[0].set_exception(MessageSizeTooLargeError())
    await turns()
    writer.producers[1].answers[0].set_exception(MessageSizeTooLargeError())
    outcomes = [outcome for (outcome,) in await asyncio.gather(*writes)]
    assert [type(outcome) for outcome in outcomes] == [MessageTooLarge, NotSent, NotSent]


async def test_what_waits_behind_a_batch_that_failed_goes_to_the_next_producer() -> None:
    writer = OurWriter()
    first, second = writer.send(b"1"), writer.send(b"2")
    await turns()
    writer.producers[0].answers[0].set_exception(OutOfOrderSequenceNumber())
    await turns()
    assert isinstance((await first)[0], PublishUnconfirmed)
    assert writer.producers[1].batches == [[b"2"]]
    writer.producers[1].answers[0].set_result(None)
    assert await second == [None]


async def test_who_waits_when_the_connection_is_closed_was_not_sent() -> None:
    writer = OurWriter()
    writer.send(b"1")
    second = writer.send(b"2")
    await turns()
    await writer.close()
    assert isinstance((await second)[0], NotSent)
