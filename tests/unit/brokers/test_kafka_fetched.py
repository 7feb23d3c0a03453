"""Records reach us as aiokafka read them, and are the messages that they were."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from aiokafka.consumer.fetcher import READ_UNCOMMITTED, FetchError, FetchResult, PartitionRecords
from aiokafka.record.default_records import DefaultRecord
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from forebay.brokers.kafka.batches import Batch
from forebay.brokers.kafka.fetched import Fetched
from forebay.brokers.kafka.records import firsts, read
from forebay.ids import new_id
from forebay.message import Alike, Message

ORDERS = TopicPartition("orders", 0)


def result(contents: list[bytes], begin: int) -> Any:
    """As a fetcher makes it."""
    records = PartitionRecords(
        ORDERS, MemoryRecords(bytes(Batch(contents, 0)._build())), [], begin, None, None, True,
        READ_UNCOMMITTED,
    )  # fmt: skip
    state = SimpleNamespace(paused=False, position=begin)
    state.consumed_to = lambda position: setattr(state, "position", position)
    assignment = SimpleNamespace(active=True, state_value=lambda tp: state)
    return FetchResult(ORDERS, assignment=assignment, partition_records=records, backoff=0)


def test_records_come_as_they_were_read_and_none_twice() -> None:
    common = Message(id="", body=b"", accepted_at=datetime(2026, 3, 1, tzinfo=UTC), headers={"a": "b"})
    sent = Alike(common, [new_id() for _ in range(5)], [b"%d" % i for i in range(5)])
    fetcher: Any = SimpleNamespace(_records={ORDERS: result(list(firsts("orders", sent).contents), 1)})
    Fetched.keep(SimpleNamespace(_fetcher=fetcher))
    found = fetcher._records[ORDERS]

    records = [*found.getall(3), *found.getall(3)]

    assert {type(record) for record in records} == {DefaultRecord}
    assert [record.offset for record in records] == [1, 2, 3, 4]
    assert [read(record, ORDERS).decoded.message for record in records] == list(sent)[1:]


def test_an_error_is_kept_as_it_is() -> None:
    error = FetchError(error=OSError(), backoff=0)
    assert Fetched({ORDERS: error})[ORDERS] is error
