"""Requests that we write by hand, and answers that we read by hand, against aiokafka's own."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import pytest
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7
from aiokafka.structs import TopicPartition

from forebay.brokers.kafka.sending import _Request, common_part, request, taken

NUMBER = 2**31 - 2
CLIENT = "forebay-ü"
TIMEOUT_MS = 40_000


class Batch:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def get_data_buffer(self) -> bytearray:
        return bytearray(self._data)


BATCHES = {
    TopicPartition("orders", 3): Batch(b"three"),
    TopicPartition("bestellungen", 0): Batch(b"zero" * 1000),
    TopicPartition("orders", 11): Batch(b""),
}


def theirs() -> bytes:
    topics = [("orders", [(3, b"three"), (11, b"")]), ("bestellungen", [(0, b"zero" * 1000)])]
    made = ProduceRequest_v7(None, -1, TIMEOUT_MS, topics)
    message: bytes = made.build_request_header(NUMBER, CLIENT).encode() + made.encode()
    return struct.pack(">i", len(message)) + message


def test_a_request_is_the_one_that_aiokafka_writes() -> None:
    assert request(NUMBER, common_part(CLIENT, -1, TIMEOUT_MS), BATCHES) == theirs()


def answer(*errors: int) -> bytes:
    results = [(i, error, 7, -1, 0) for i, error in enumerate(errors)]
    made = ProduceResponse_v7([("orders", results[:1]), ("bestellungen", results[1:])], 0)
    encoded: bytes = made.encode()
    return encoded


@pytest.mark.parametrize(("errors", "told"), [((0,), 1), ((0, 0, 0), 3), ((0, 0, 6), -1), ((45, 0), -1)])
def test_an_answer_without_errors_is_told_from_one_with(errors: tuple[int, ...], told: int) -> None:
    assert taken(answer(*errors)) == told


def test_the_number_of_an_answer_is_read_and_the_rest_handed_over() -> None:
    stream = BytesIO(struct.pack(">i", NUMBER) + answer(0))
    header: Any = _Request.parse_response_header(stream)
    assert header.correlation_id == NUMBER
    assert _Request.RESPONSE_TYPE.decode(stream) == answer(0)
