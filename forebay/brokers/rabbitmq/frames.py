"""
The frames of published messages, encoded by hand.

pika makes three objects and some thirty pieces for each message. The first frame is the
same for all messages to a queue, and what is left is a few lengths.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

METHOD, HEADER, BODY = b"\x01", b"\x02", b"\x03"
END = b"\xce"
OVERHEAD = 8
"""Bytes of a frame beside its payload."""
BASIC = b"\x00\x3c"
PUBLISH = BASIC + b"\x00\x28" + b"\x00\x00"
MANDATORY = b"\x01"
REMEMBERED = 1_000
"""Queues whose first frame is kept."""
_header = struct.Struct(">I4sQ").pack
"""Size of the frame, class and weight, size of the body."""
_WEIGHT = BASIC + b"\x00\x00"
_body = struct.Struct(">4sI").pack
"""The end of the frame before, kind and channel; size of the frame."""
_SHORT = [bytes((length,)) for length in range(256)]


@dataclass(slots=True)
class SameWay:
    """Messages that go to the same exchange with the same key, as columns."""

    exchange: str
    routing_key: str
    ids: Sequence[str]
    properties: Sequence[bytes]
    """Flags and values as in the header frame."""
    bodies: Sequence[bytes]


class Frames:
    """Encodes messages for one channel: mandatory, in frames of at most `frame_max` bytes."""

    def __init__(self, channel: int, frame_max: int) -> None:
        number = channel.to_bytes(2, "big")
        self._method, self._header, self._body = METHOD + number, HEADER + number, BODY + number
        self._most = frame_max - OVERHEAD
        self._firsts: dict[tuple[str, str], bytes] = {}

    def publish(self, messages: SameWay) -> list[bytes]:
        """All frames of these messages, in pieces."""
        pieces: list[bytes] = []
        way = (messages.exchange, messages.routing_key)
        first = self._firsts.get(way) or self._first(*way)
        most, body_start = self._most, END + self._body
        before = (-1, -1)
        for properties, body in zip(messages.properties, messages.bodies, strict=True):
            sizes = (len(properties), len(body))
            if sizes != before:
                before = sizes
                # Up to the body's size the header frame begins like any other.
                header = first + _header(sizes[0] + 12, _WEIGHT, sizes[1])
                begin_body = _body(body_start, sizes[1])
            if 0 < sizes[1] <= most:
                pieces += (header, properties, begin_body, body, END)
            else:
                pieces += (header, properties, *self._parts(body))
        return pieces

    def _parts(self, body: bytes) -> list[bytes]:
        """The end of the header frame, and the body in as many frames as it takes; of an empty one none."""
        pieces = [END]
        for start in range(0, len(body), self._most):
            part = body[start : start + self._most]
            pieces += (self._body + len(part).to_bytes(4, "big"), part, END)
        return pieces

    def _first(self, exchange: str, routing_key: str) -> bytes:
        """The method frame, and the beginning of the header frame behind it."""
        method = PUBLISH + short(exchange) + short(routing_key) + MANDATORY
        frame = self._method + len(method).to_bytes(4, "big") + method + END + self._header
        if len(self._firsts) >= REMEMBERED:
            self._firsts.clear()
        self._firsts[exchange, routing_key] = frame
        return frame


def short(text: str) -> bytes:
    """
    A short string with its length.

    Raises:
        ValueError: it is longer than 255 bytes.
    """
    encoded = text.encode()
    length = len(encoded)
    if length > 255:
        raise ValueError(f"it has {length} bytes, and a short string at most 255")
    return _SHORT[length] + encoded
