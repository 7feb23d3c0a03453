"""Records: what is ours comes back as it was, what is not is wrapped untouched, and no hop is early."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from forebay.brokers import wire
from forebay.brokers.kafka.batches import Batch
from forebay.brokers.kafka.publishing import Writer
from forebay.brokers.kafka.records import Outgoing, first, firsts, next_hop, outgoing, partition_of, read
from forebay.brokers.kafka.settings import KafkaSettings
from forebay.brokers.kafka.topics import durability_of, retry_topic
from forebay.errors import BrokerUnavailable
from forebay.ids import new_id
from forebay.message import Alike, Message

ORDERS = TopicPartition("orders", 3)
DELAYS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)


def record(value: bytes | None, headers: list[tuple[str, bytes]]) -> Any:
    return SimpleNamespace(
        offset=7, timestamp=1_700_000_000_000, key=b"\xff", value=value, headers=headers
    )  # fmt: skip


def records_of(written: Sequence[Outgoing]) -> list[Any]:
    """As a consumer sees them."""
    batch = MemoryRecords(bytes(Batch([w.content for w in written], 0)._build())).next_batch()
    assert batch is not None
    assert batch.validate_crc()
    return list(batch)


@given(st.integers(1, 10**12), st.integers(0, 10**9))
def test_the_hops_of_a_delay_end_when_it_is_due_and_never_before(left: int, now: int) -> None:
    due, hops = now + left, 0
    while now < due:
        delay, at = next_hop(now, due, DELAYS)
        assert delay in DELAYS
        assert now < at <= due
        now, hops = at, hops + 1
    assert now == due
    assert hops <= left / 3600e6 + 20


def test_a_foreign_record_keeps_its_bytes_and_gets_the_same_id_each_time() -> None:
    one, again = (read(record(b"\x00\xfe", [("Trace", b"t"), ("bin", b"\xff")]), ORDERS) for _ in range(2))
    assert one.foreign
    message = one.decoded.message
    assert (message.body, message.headers, message.key) == (b"\x00\xfe", {"trace": "t"}, None)
    assert message.accepted_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert again.decoded.message.id == message.id


def test_a_record_without_a_value_is_foreign_and_empty() -> None:
    assert read(record(None, []), ORDERS).decoded.message.body == b""


def test_the_partition_of_a_key_is_the_one_of_every_other_client() -> None:
    """Figures of the Java client: were they to change, an upgrade would mix up the order of keys."""
    assert [partition_of(k, 1000) for k in (b"21", b"foobar", b"a-little-bit-long-string")] == [
        (hashed & 0x7FFFFFFF) % 1000 for hashed in (-973932308, -790332482, -985981536)
    ]


@pytest.mark.parametrize(
    ("replication", "min_insync", "flush", "expected"),
    [
        (3, 2, 2**63 - 1, "replicated"),
        (3, 1, 2**63 - 1, "unsynced"),
        (3, 1, 1, "synced"),
        (2, 2, 2**63 - 1, "unsynced"),
        (1, 1, 2**63 - 1, "unsynced"),
        (1, 1, 1, "synced"),
    ],
)
def test_durability_is_what_the_topic_can_keep(
    replication: int, min_insync: int, flush: int, expected: str
) -> None:
    assert durability_of(replication, min_insync, flush == 1) == expected


def test_retry_topics_are_named_after_their_delay() -> None:
    assert [retry_topic("orders", d) for d in (1.0, 3600.0, 0.25)] == [
        "orders.retry-1s",
        "orders.retry-3600s",
        "orders.retry-250ms",
    ]


async def test_a_server_that_is_not_there_is_unavailable_in_time() -> None:
    connection = {"bootstrap_servers": ["127.0.0.1:1"], "request_timeout_ms": 1000}
    writer = Writer(connection, KafkaSettings())
    async with asyncio.timeout(5):
        with pytest.raises(BrokerUnavailable):
            await writer.write([], {}, 1.0)
        await writer.close()


EVENT = {
    "ce-specversion": "1.0",
    "ce-id": "1",
    "ce-source": "/shop",
    "ce-type": "t",
    "ce-subject": "caf%C3%A9",
}


def test_an_event_has_its_attributes_as_the_kafka_binding_names_them() -> None:
    """Beside our own headers, which come back as they were."""
    event = Message(
        id="00000000-0000-7000-8000-000000000001",
        body=b"{}",
        accepted_at=datetime(2026, 3, 1, tzinfo=UTC),
        headers={**EVENT, "other": "x"},
        content_type="application/json",
    )
    written = outgoing("orders", event, wire.encode(event))
    (one,) = records_of([written])
    native = {n: v for n, v in one.headers if not n.startswith("forebay-")}
    assert native == {
        "ce_specversion": b"1.0",
        "ce_id": b"1",
        "ce_source": b"/shop",
        "ce_type": b"t",
        "ce_subject": "caf\u00e9".encode(),
        "content-type": b"application/json",
    }
    assert read(one, ORDERS).decoded.message == event


PLAIN = Message(id="00000000-0000-7000-8000-000000000001", body=b"{}", accepted_at=datetime.now(UTC))


@pytest.mark.parametrize(
    "message",
    [
        PLAIN,
        replace(PLAIN, key="schlüssel", content_type="application/json"),
        replace(PLAIN, headers={"source": "shop", "größe": "ü"}),
        replace(PLAIN, expires_at=datetime.now(UTC), not_before=datetime.now(UTC)),
        replace(PLAIN, headers=EVENT),
    ],
)
def test_a_message_that_is_published_first_is_written_as_any_other(message: Message) -> None:
    one, other = first("orders", message), outgoing("orders", message, wire.encode(message))
    assert (one.key, one.value, one.size) == (other.key, other.value, other.size)
    was, other_was = records_of([one, other])
    assert (was.key, was.value, dict(was.headers)) == (
        other_was.key, other_was.value, dict(other_was.headers),
    )  # fmt: skip
    assert read(was, ORDERS).decoded == read(other_was, ORDERS).decoded
    assert read(was, ORDERS).decoded.message == message
    alike = Alike(message, [new_id(), message.id, "short"], [b"1", b"", b"333"])
    assert list(firsts("orders", alike)) == [first("orders", m) for m in alike]


def test_another_clients_event_is_adopted_with_its_attributes() -> None:
    sent = [("ce_" + n[3:], b"caf\xc3\xa9" if n == "ce-subject" else v.encode()) for n, v in EVENT.items()]
    adopted = read(record(b"{}", [*sent, ("other", b"x")]), ORDERS)
    assert adopted.decoded.message.headers == {**EVENT, "other": "x"}
