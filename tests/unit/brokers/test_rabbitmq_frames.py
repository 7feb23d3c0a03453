"""The frames that we encode by hand, read by pika."""

from __future__ import annotations

from typing import Any

import pytest
from pika import BasicProperties
from pika.frame import Body, Header, Method, decode_frame

from forebay.brokers.rabbitmq.frames import Frames, SameWay

FRAME_MAX = 4096
PROPERTIES = BasicProperties(message_id="an id", headers={"a": "b"}, delivery_mode=2)


def frames(body: bytes, *, exchange: str = "", queue: str = "orders") -> list[Any]:
    encoder = Frames(channel=300, frame_max=FRAME_MAX)
    return read(encoder, body, exchange=exchange, queue=queue)


def read(encoder: Frames, *bodies: bytes, exchange: str = "", queue: str = "orders") -> list[Any]:
    properties = [b"".join(PROPERTIES.encode())] * len(bodies)
    ids = ["an id"] * len(bodies)
    data = b"".join(encoder.publish(SameWay(exchange, queue, ids, properties, bodies)))
    found = []
    while data:
        used, frame = decode_frame(data)
        assert 0 < used <= FRAME_MAX
        found.append(frame)
        data = data[used:]
    return found


@pytest.mark.parametrize("size", [0, 1, 500, FRAME_MAX - 8, FRAME_MAX - 7, 2 * (FRAME_MAX - 8), 10_000])
def test_a_message_of_any_size_comes_out_as_it_went_in(size: int) -> None:
    body = bytes(i % 251 for i in range(size))
    method, header, *bodies = frames(body, exchange="forebay.delay.1s", queue="bestellungen-ü")
    assert (type(method), type(header)) == (Method, Header)
    publish = method.method
    assert (publish.exchange, publish.routing_key) == ("forebay.delay.1s", "bestellungen-ü")
    assert (publish.mandatory, publish.immediate) == (True, False)
    assert (header.body_size, header.properties) == (size, PROPERTIES)
    assert all(type(frame) is Body and frame.fragment for frame in bodies)
    assert b"".join(frame.fragment for frame in bodies) == body
    assert {frame.channel_number for frame in (method, header, *bodies)} == {300}


def test_messages_to_several_queues_in_turn_go_where_they_should() -> None:
    encoder = Frames(channel=1, frame_max=FRAME_MAX)
    ways = [("", "a"), ("x", "a"), ("", "a"), ("", "b"), ("x", "a")]
    seen = [read(encoder, b"1", exchange=x, queue=queue)[0].method for x, queue in ways]
    assert [(publish.exchange, publish.routing_key) for publish in seen] == ways


def test_messages_of_one_batch_follow_each_other() -> None:
    sizes = [0, 1, 500, FRAME_MAX, 0, 7]
    found = read(Frames(1, FRAME_MAX), *map(bytes, sizes))
    assert [frame.body_size for frame in found if type(frame) is Header] == sizes
    assert sum(len(frame.fragment) for frame in found if type(frame) is Body) == sum(sizes)


def test_a_name_longer_than_the_protocol_allows_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        frames(b"", queue="q" * 256)
