"""
The server's word that it has taken what was published, read by hand off the bytes of a connection.

pika makes two objects of each, and looks through four tables of callbacks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from forebay.brokers.rabbitmq.frames import BASIC, END, METHOD

ACK = BASIC + b"\x00\x50"
_END = END[0]
_ack = struct.Struct(">3s4s4sQBB")
"""Kind and channel, size of the arguments, the method, tag, whether it is for all up to it, the end."""
_read = _ack.unpack_from
_SIZE = b"\x00\x00\x00\x0d"

Hearer = Callable[[int, bool], None]
"""Is given a tag, and whether the word is for all up to it."""


class Answers:
    """Who hears of which channel."""

    def __init__(self) -> None:
        self._hearers: dict[bytes, Hearer] = {}

    def __bool__(self) -> bool:
        return bool(self._hearers)

    def add(self, channel: int, hearer: Hearer) -> None:
        self._hearers[METHOD + channel.to_bytes(2, "big")] = hearer

    def remove(self, channel: int) -> None:
        """Idempotent."""
        self._hearers.pop(METHOD + channel.to_bytes(2, "big"), None)

    def read(self, data: bytes, at: int) -> tuple[int, bool]:
        """Pass on the answers that begin at `at`; returns where they end, as `Inbox.read` does."""
        last = len(data) - _ack.size
        while at <= last:
            start, size, method, tag, multiple, end = _read(data, at)
            hearer = self._hearers.get(start)
            if hearer is None or method != ACK or size != _SIZE or end != _END:
                break
            hearer(tag, bool(multiple & 1))
            at += _ack.size
        return at, False
