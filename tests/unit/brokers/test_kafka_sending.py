"""Requests that we write by hand, and answers that we read by hand, against aiokafka's own."""

from __future__ import annotations

import asyncio
import struct
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7
from aiokafka.structs import TopicPartition

from forebay.brokers.kafka.sending import Answers, _Request, common_part, request, taken

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


class Connection:
    """What is touched of aiokafka's: a socket whose other end is the test."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.closed: list[Any] = []
        self._requests: list[int] = []
        self._reader: Any = SimpleNamespace(_buffer=b"")
        self._protocol: Any = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport = SimpleNamespace(set_protocol=lambda protocol: None)
        self._writer = SimpleNamespace(transport=transport)

    def _handle_frame(self, data: bytes) -> None:
        if data == b"broken":
            raise ValueError(data)
        self.heard.append(data)

    def close(self, *, reason: Any, exc: BaseException) -> None:
        self.closed.append(exc)
        self._reader = None


def frame(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
async def test_answers_are_whole_wherever_they_were_cut(size: int) -> None:
    conn = Connection()
    Answers.read(conn)
    whole = [b"one", b"", b"three" * 9, b"4"]
    stream = b"".join(map(frame, whole))
    for at in range(0, len(stream), size):
        conn._protocol.data_received(stream[at : at + size])
    assert conn.heard == whole


async def test_what_cannot_be_read_ends_the_connection() -> None:
    conn = Connection()
    Answers.read(conn)
    conn._protocol.data_received(frame(b"one") + frame(b"broken") + frame(b"three"))
    assert (conn.heard, len(conn.closed)) == ([b"one"], 1)


@pytest.mark.parametrize("busy", [{"_requests": [1]}, {"_reader": SimpleNamespace(_buffer=b"half")}])
async def test_a_connection_that_is_reading_something_is_left_alone(busy: dict[str, Any]) -> None:
    conn = Connection()
    vars(conn).update(busy)
    before = conn._protocol
    Answers.read(conn)
    assert conn._protocol is before
