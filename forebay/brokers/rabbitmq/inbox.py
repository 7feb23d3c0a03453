"""
Deliveries read by hand off the bytes that a connection receives; all else is left to pika.

pika makes seven objects of each delivery, and copies what it has not read yet after each
of its three frames. A delivery that is here as a whole is cut out in one go instead.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from forebay.brokers.rabbitmq.frames import BASIC, BODY, END, HEADER, METHOD, short

DELIVER = BASIC + b"\x00\x3c"
_END = END[0]
_method = struct.Struct(">3sI").unpack_from
_header = struct.Struct(">3sIIQ").unpack_from
"""Kind and channel, size, class and weight, size of the body."""
_tag = struct.Struct(">Q").unpack_from
_BEFORE_PROPERTIES = 19

Taker = Callable[[int, bytes, bytes], None]
"""Is given the delivery tag, the properties as they stand in the header frame, and the body."""


class _Consumer:
    __slots__ = ("body", "header", "opening", "take")

    def __init__(self, channel: bytes, consumer_tag: str, take: Taker) -> None:
        self.opening = DELIVER + short(consumer_tag)
        self.header = HEADER + channel
        self.body = BODY + channel
        self.take = take


class Inbox:
    """Who takes the deliveries of which channel. One consumer per channel."""

    def __init__(self) -> None:
        self._consumers: dict[bytes, _Consumer] = {}

    def __bool__(self) -> bool:
        return bool(self._consumers)

    def add(self, channel: int, consumer_tag: str, take: Taker) -> None:
        number = channel.to_bytes(2, "big")
        self._consumers[METHOD + number] = _Consumer(number, consumer_tag, take)

    def remove(self, channel: int) -> None:
        """What still comes is pika's. Idempotent."""
        self._consumers.pop(METHOD + channel.to_bytes(2, "big"), None)

    def read(self, data: bytes, at: int) -> tuple[int, bool]:
        """
        Hand out the whole deliveries that begin at `at`.

        Returns where they end, and whether what follows is the beginning of one more,
        to be read when the rest has come. Else it is for pika.
        """
        end = len(data)
        while end - at >= 7:
            start, size = _method(data, at)
            consumer = self._consumers.get(start)
            if consumer is None:
                return at, False
            tag_at = at + 7 + len(consumer.opening)
            header_at = at + 8 + size
            if header_at > end:
                return at, True  # whatever it is: pika cannot read half a frame either
            if data[at + 7 : tag_at] != consumer.opening or data[header_at - 1] != _END:
                return at, False
            if end - header_at < _BEFORE_PROPERTIES:
                return at, True
            start, size, _, left = _header(data, header_at)
            if start != consumer.header:
                return at, False
            properties_at, next_at = header_at + _BEFORE_PROPERTIES, header_at + 8 + size
            body = b""
            bodies: list[bytes] = []
            while left:
                if end - next_at < 7:
                    return at, True
                start, length = _method(data, next_at)
                if start != consumer.body or length > left or data[next_at - 1] != _END:
                    return at, False
                body_at, next_at = next_at + 7, next_at + 8 + length
                if next_at > end:
                    return at, True
                body = data[body_at : next_at - 1]
                bodies.append(body)
                left -= length
            if next_at > end:
                return at, True
            if data[next_at - 1] != _END:
                return at, False
            if len(bodies) > 1:
                body = b"".join(bodies)
            consumer.take(_tag(data, tag_at)[0], data[properties_at : header_at + 7 + size], body)
            at = next_at
        return at, False


def frame_end(data: bytes, at: int) -> int:
    """Where the frame that begins at `at` ends, or will end; -1 when that is not told yet."""
    return at + 8 + int.from_bytes(data[at + 3 : at + 7], "big") if len(data) - at >= 7 else -1
