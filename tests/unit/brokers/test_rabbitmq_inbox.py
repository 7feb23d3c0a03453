"""Deliveries that we read by hand, against what pika reads of the same bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pika import BasicProperties
from pika.frame import Body, Header, Heartbeat, Method
from pika.spec import Basic

from forebay.brokers.rabbitmq import wire
from forebay.brokers.rabbitmq.inbox import Inbox
from forebay.brokers.rabbitmq.link import Connection
from forebay.brokers.rabbitmq.reading import usual
from forebay.message import Message

NOW = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)
MESSAGE = Message(
    id="00000000-0000-7000-8000-000000000001", body=b"\x00", accepted_at=NOW, key="schlüssel",
    headers={"source": "tests", "ü": "ö"}, content_type="application/json",
)  # fmt: skip
TAG = "forebay.1"
PROPERTIES = wire.properties(MESSAGE)


def delivery(
    number: int, body: bytes, *, channel: int = 7, tag: str = TAG, most: int = 4_000, properties: Any = None
) -> list[bytes]:
    """Its frames, as pika writes them."""
    method = Basic.Deliver(consumer_tag=tag, delivery_tag=number, exchange="x", routing_key="queue")
    read = properties or BasicProperties().decode(PROPERTIES)
    parts = [body[at : at + most] for at in range(0, len(body), most)]
    return [
        Method(channel, method).marshal(),
        Header(channel, len(body), read).marshal(),
        *(Body(channel, part).marshal() for part in parts),
    ]


class Reader(Connection):
    """A connection of which only the reading side is alive."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self._frame_buffer = b""
        self.bytes_received = 0
        self.taken: list[tuple[int, bytes, bytes]] = []
        self.left: list[Any] = []
        self.inbox.add(7, TAG, lambda *delivery: self.taken.append(delivery))

    def _process_frame(self, frame: Any) -> None:
        self.left.append(frame)


BODIES = [b"", b"a", b"b" * 3_999, b"c" * 4_000, b"d" * 4_001, b"e" * 12_345]


@pytest.mark.parametrize("piece", [1, 7, 100, 4_096, 1_000_000])
def test_deliveries_arrive_whole_however_the_bytes_are_cut(piece: int) -> None:
    reader = Reader()
    data = b"".join(b"".join(delivery(n, body)) for n, body in enumerate(BODIES, 1))
    for at in range(0, len(data), piece):
        reader._on_data_available(data[at : at + piece])

    assert [(tag, body) for tag, _, body in reader.taken] == list(enumerate(BODIES, 1))
    assert {properties for _, properties, _ in reader.taken} == {PROPERTIES}
    assert (reader.left, reader.bytes_received) == ([], len(data))


def test_everything_else_goes_to_pika_in_its_order() -> None:
    reader = Reader()
    ok = Method(7, Basic.QosOk()).marshal()
    heartbeat = Heartbeat().marshal()
    pieces = [
        ok, *delivery(1, b"ours"), heartbeat, *delivery(2, b"another consumer's", tag="forebay.2"),
        *delivery(3, b"another channel's", channel=8), *delivery(4, b"ours too"), ok,
    ]  # fmt: skip
    data = b"".join(pieces)
    cut = random.Random(1)
    while data:
        some = cut.randint(1, 60)
        reader._on_data_available(data[:some])
        data = data[some:]

    assert [body for _, _, body in reader.taken] == [b"ours", b"ours too"]
    kinds = [(type(f).__name__, f.channel_number) for f in reader.left]
    content = ["Method", "Header", "Body"]
    assert kinds == [
        ("Method", 7), ("Heartbeat", 0), *((k, 7) for k in content), *((k, 8) for k in content),
        ("Method", 7),
    ]  # fmt: skip


def test_frames_of_another_channel_within_a_delivery_leave_all_of_it_to_pika() -> None:
    """Then pika puts it together, and gives it to the consumer by its own way."""
    reader = Reader()
    method, header, body = delivery(1, b"torn")
    reader._on_data_available(
        method + header + Heartbeat().marshal() + body + b"".join(delivery(2, b"whole"))
    )

    assert [type(f).__name__ for f in reader.left] == ["Method", "Header", "Heartbeat", "Body"]
    assert [body for _, _, body in reader.taken] == [b"whole"]


def test_a_channel_that_is_gone_is_read_by_pika() -> None:
    reader = Reader()
    reader.inbox.remove(7)
    reader.inbox.add(9, "forebay.9", lambda *_: None)
    reader._on_data_available(b"".join(delivery(1, b"late")))
    assert (reader.taken, len(reader.left)) == ([], 3)


def test_the_usual_message_is_read_in_one_pass() -> None:
    plain = Message(id=MESSAGE.id, body=b"", accepted_at=NOW, content_type="text/plain")
    for message in (MESSAGE, plain):
        assert usual(wire.properties(message), message.body) == message


@pytest.mark.parametrize(
    "properties",
    [
        wire.properties(MESSAGE, attempt=2),
        wire.properties(MESSAGE, due=1),
        wire.properties(replace(MESSAGE, not_before=NOW)),
        wire.properties(replace(MESSAGE, expires_at=NOW)),
        wire.properties(replace(MESSAGE, content_type="x/" + "y" * 300)),
        PROPERTIES.replace(b"forebay-v\x53", b"forebay-w\x53"),
        PROPERTIES.replace(b"forebay-v\x53\x00\x00\x00\x011", b"forebay-v\x49\x00\x00\x00\x01"),
        PROPERTIES[:-9],
        PROPERTIES.replace(MESSAGE.id.encode(), b"\xff" * 36),
        PROPERTIES + b"\x00",
        b"",
        *(PROPERTIES[:n] for n in range(1, len(PROPERTIES), 7)),
    ],
)  # fmt: skip
def test_whatever_is_not_usual_is_left_to_the_other_way(properties: bytes) -> None:
    assert usual(properties, b"") is None


def test_what_the_server_counted_is_not_overlooked() -> None:
    read = BasicProperties().decode(PROPERTIES)
    read.headers[wire.DELIVERY_COUNT] = 3
    assert usual(b"".join(read.encode()), b"") is None
