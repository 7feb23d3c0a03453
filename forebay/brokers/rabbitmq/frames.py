"""
The frames of published messages, encoded by hand.

pika makes three objects and some thirty pieces for each message. The first frame is the
same for all messages to a queue, and what is left is a few lengths.
"""

from __future__ import annotations

METHOD, HEADER, BODY = b"\x01", b"\x02", b"\x03"
END = b"\xce"
OVERHEAD = 8
"""Bytes of a frame beside its payload."""
BASIC = b"\x00\x3c"
PUBLISH = BASIC + b"\x00\x28" + b"\x00\x00"
MANDATORY = b"\x01"
REMEMBERED = 1_000
"""Queues whose first frame is kept."""


class Frames:
    """Encodes messages for one channel: mandatory, in frames of at most `frame_max` bytes."""

    def __init__(self, channel: int, frame_max: int) -> None:
        number = channel.to_bytes(2, "big")
        self._method, self._header, self._body = METHOD + number, HEADER + number, BODY + number
        self._most = frame_max - OVERHEAD
        self._firsts: dict[tuple[str, str], bytes] = {}

    def publish(self, exchange: str, routing_key: str, properties: bytes, body: bytes) -> list[bytes]:
        """All frames of one message, in pieces; `properties` are flags and values as in the header frame."""
        size = len(body)
        first = self._firsts.get((exchange, routing_key)) or self._first(exchange, routing_key)
        pieces = [
            # Up to the body's size the header frame begins like any other.
            first + (len(properties) + 12).to_bytes(4, "big") + BASIC + b"\x00\x00" + size.to_bytes(8, "big"),
            properties,
        ]
        if size <= self._most:
            if size:
                pieces += (END + self._body + size.to_bytes(4, "big"), body)
            pieces.append(END)
            return pieces
        pieces.append(END)
        for start in range(0, size, self._most):
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
    return bytes((len(encoded),)) + encoded
