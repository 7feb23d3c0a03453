"""Batches that we write by hand, against those of aiokafka's builder, byte for byte."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from forebay.brokers.kafka.batches import EMPTY, Batch, content, fitting, header, size_alone

NOW = 1_700_000_000_000
PRODUCER = 4711, 3, 2**31 - 5

Record = tuple[bytes | None, bytes, list[tuple[str, bytes]]]

names = st.text(st.characters(codec="utf-8"), max_size=80)
records: st.SearchStrategy[Record] = st.tuples(
    st.none() | st.binary(max_size=80),
    st.binary(max_size=200),
    st.lists(st.tuples(names, st.binary(max_size=80)), max_size=5),
)


def ours(wanted: list[Record]) -> Batch:
    return Batch([content(k, v, [header(*h) for h in headers]) for k, v, headers in wanted], NOW)


def theirs(wanted: list[Record]) -> Any:
    builder = BatchBuilder(2**30, 0)
    for key, value, headers in wanted:
        assert builder.append(timestamp=NOW, key=key, value=value, headers=headers) is not None
    builder.close()
    return builder


@pytest.mark.parametrize("count", [1, 63, 64, 65, 8191, 8192, 8193])
def test_a_batch_of_any_length_is_the_one_of_aiokafka(count: int) -> None:
    wanted: list[Record] = [(None, b"%d" % i, []) for i in range(count)]
    assert built(ours(wanted)) == built(theirs(wanted))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 8191, 8192, 2**20 - 1, 2**20, 2**21])
def test_a_record_of_any_size_is_the_one_of_aiokafka(size: int) -> None:
    wanted: list[Record] = [(b"k" * size, bytes(size), [("n" * size, b"v" * size)])]
    assert built(ours(wanted)) == built(theirs(wanted))


@given(st.lists(records, min_size=1, max_size=10))
def test_whatever_is_in_it_a_batch_is_the_one_of_aiokafka(wanted: list[Record]) -> None:
    assert built(ours(wanted)) == built(theirs(wanted))


def sequence(data: bytes) -> int:
    number: int = struct.unpack_from(">i", data, 53)[0]
    return number


def built(builder: Any) -> bytes:
    builder._set_producer_state(*PRODUCER)
    return bytes(builder._build())


async def test_the_accumulator_takes_it_for_one_of_its_own() -> None:
    """What is sent again is the same batch, and the next one's number is higher by its records."""
    transactions = TransactionManager(None, 1000)
    transactions.set_pid_and_epoch(*PRODUCER[:2])
    cluster = SimpleNamespace(leader_for_partition=lambda tp: 7)
    accumulator = MessageAccumulator(cluster, 2**20, 0, 30, txn_manager=transactions)
    orders = TopicPartition("orders", 0)

    async def taken(batch: Batch) -> Any:
        await accumulator.add_batch(batch, orders, 1)
        return accumulator.drain_by_nodes(ignore_nodes=[])[0][7][orders]

    first = await taken(ours([(None, b"1", []), (None, b"2", [])]))
    data = bytes(first.get_data_buffer())
    accumulator.reenqueue(first)
    again = accumulator.drain_by_nodes(ignore_nodes=[])[0][7][orders]
    assert bytes(again.get_data_buffer()) == data
    second = await taken(ours([(None, b"3", [])]))
    assert [sequence(data), sequence(second.get_data_buffer())] == [0, 2]


SIZES = st.lists(st.integers(0, 300), min_size=1, max_size=40)


@given(SIZES, st.integers(0, 3_000))
def test_what_fits_into_a_batch_is_not_larger_than_its_room(sizes: list[int], room: int) -> None:
    contents = [bytes(size) for size in sizes]
    count, left = fitting(contents, room - EMPTY)
    taken = built(Batch(contents[:count], NOW))
    assert len(taken) <= room - left or not count
    assert count == len(contents) or size_alone(sizes[count]) > EMPTY + left


@given(st.binary(max_size=10_000))
def test_a_record_alone_is_no_larger_than_it_says(value: bytes) -> None:
    held = content(None, value, [])
    assert len(built(Batch([held], NOW))) <= size_alone(len(held))
