"""What AMQP and Kafka clients say to their servers, read just far enough to see a message confirmed."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_METHOD = 1
_BASIC_PUBLISH = b"\x00\x3c\x00\x28"
_BASIC_ACK = b"\x00\x3c\x00\x50"
_BASIC_NACK = b"\x00\x3c\x00\x78"
_CANARY = b"forebay.canary"
_PRODUCE = 0


class AMQPConversation:
    """
    Confirmations are `basic.ack` and `basic.nack` from the server, for tags that both sides count.

    The canary of our driver leads to no queue: its confirmation is of no message.
    """

    def __init__(self) -> None:
        self._asked, self._answered = bytearray(), bytearray()
        self._greeting = 8
        """Bytes of the protocol header, before the first frame, that are still to come."""
        self._tags: dict[int, int] = {}
        """Messages published, by channel."""
        self._open: dict[tuple[int, int], bytes] = {}
        """Routing keys of what is unconfirmed, by channel and tag."""

    def asked(self, data: bytes) -> bool:
        skip = min(self._greeting, len(data))
        self._greeting -= skip
        self._asked += data[skip:]
        for channel, method in _methods(self._asked):
            if method[:4] == _BASIC_PUBLISH:
                tag = self._tags[channel] = self._tags.get(channel, 0) + 1
                exchange = 7 + method[6]
                self._open[channel, tag] = method[exchange + 1 : exchange + 1 + method[exchange]]
        return False

    def answered(self, data: bytes) -> bool:
        found = False
        self._answered += data
        for channel, method in _methods(self._answered):
            if method[:4] not in (_BASIC_ACK, _BASIC_NACK):
                continue
            tag, multiple = struct.unpack(">Q?", method[4:13])
            # Each tag is settled once, and the dictionary has them in order.
            tags = [t for c, t in self._open if c == channel and t <= tag] if multiple else [tag]
            keys = [self._open.pop((channel, t), _CANARY) for t in tags]
            found |= any(key != _CANARY for key in keys)
        return found


def _methods(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Channel and content of every complete method frame; what is complete leaves the buffer."""
    at = 0
    while len(buffer) - at >= 7:
        kind, channel, size = struct.unpack_from(">BHI", buffer, at)
        if len(buffer) - at < size + 8:
            break
        if kind == _METHOD:
            yield channel, bytes(buffer[at + 7 : at + 7 + size])
        at += size + 8
    del buffer[:at]


class KafkaConversation:
    """A confirmation is the answer to a Produce request, found by its correlation id."""

    def __init__(self) -> None:
        self._asked, self._answered = bytearray(), bytearray()
        self._open: set[int] = set()

    def asked(self, data: bytes) -> bool:
        self._asked += data
        for head in _heads(self._asked):
            key, _, correlation = struct.unpack(">hhi", head)
            if key == _PRODUCE:
                self._open.add(correlation)
        return False

    def answered(self, data: bytes) -> bool:
        found = False
        self._answered += data
        for head in _heads(self._answered):
            (correlation,) = struct.unpack_from(">i", head)
            found |= correlation in self._open
            self._open.discard(correlation)
        return found


def _heads(buffer: bytearray) -> Iterator[bytes]:
    """The first bytes of every complete request or answer; what is complete leaves the buffer."""
    at = 0
    while len(buffer) - at >= 4:
        (size,) = struct.unpack_from(">i", buffer, at)
        if len(buffer) - at < size + 4:
            break
        yield bytes(buffer[at + 4 : at + 12])
        at += size + 4
    del buffer[:at]
