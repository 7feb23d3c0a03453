"""
Record batches as Kafka stores them (magic 2), written by hand for aiokafka's accumulator.

aiokafka's own builder wants a tuple for each header, encodes what all records have in common for each of
them, and makes an object of each record that nobody looks at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from aiokafka.record.util import calc_crc32c

EMPTY = 61
"""Bytes of a batch before its first record."""
_LENGTH_FROM = 12
"""The length is of what comes from here on."""
_CRC_FROM = 21
"""And so the checksum."""
_to_crc = struct.Struct(">qiibI").pack_into
_from_crc = struct.Struct(">hiqqqhii").pack_into
_NO_EPOCH = -1
_MAGIC = 2
_PLAIN = 0
"""Not compressed, in no transaction, with the producer's time."""
_AT_ONCE = b"\0\0"
"""Of a record: no attributes, and the batch's own time."""
_AROUND = 5 + len(_AT_ONCE) + 5
"""Bytes at most around what a record holds: its length, and how far it is from the first."""


def _encoded(number: int) -> bytes:
    number <<= 1  # the lowest bit says whether it is negative
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


_NUMBERS = [_encoded(number) for number in range(8192)]
"""Those of up to two bytes."""


def varint(number: int) -> bytes:
    """A number that is not negative, as Kafka writes lengths."""
    return _NUMBERS[number] if number < 8192 else _encoded(number)


_NONE = b"\x01"
"""The length of what is not there."""


def key_part(key: bytes | None) -> bytes:
    """What a record's content begins with. Its value follows, the length before it, and then its headers."""
    return _NONE if key is None else varint(len(key)) + key


def header_name(name: str) -> bytes:
    encoded = name.encode()
    return varint(len(encoded)) + encoded


def header(name: str, value: bytes) -> bytes:
    return b"".join((header_name(name), varint(len(value)), value))


def content(key: bytes | None, value: bytes, headers: Sequence[bytes]) -> bytes:
    """All that a record holds, wherever in its batch it will be."""
    return b"".join((key_part(key), varint(len(value)), value, varint(len(headers)), *headers))


def size_alone(content_size: int) -> int:
    """Bytes of a batch with one such record in it, at most."""
    return EMPTY + _AROUND + content_size


def fitting(contents: Sequence[bytes], room: int) -> tuple[int, int]:
    """How many of these a batch takes that has so many bytes left, and how many it has left then."""
    need = _AROUND * len(contents) + sum(map(len, contents))
    if need <= room:
        return len(contents), room - need
    count = 0
    for held in contents:
        size = _AROUND + len(held)
        if size > room:
            break
        count, room = count + 1, room - size
    return count, room


class Batch:
    """
    A full batch, in place of aiokafka's `BatchBuilder`.

    It is built when the accumulator has given it its number, and stays as it is when it is sent again.
    """

    __slots__ = ("_built", "_contents", "_count", "_now", "_producer")

    def __init__(self, contents: Sequence[bytes], now: int) -> None:
        self._contents: Iterable[bytes] = contents
        self._count = len(contents)
        self._now = now
        """Milliseconds since the epoch."""
        self._producer = (-1, -1, 0)
        self._built: bytearray | None = None

    def record_count(self) -> int:
        return self._count

    def closed(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._producer = producer_id, producer_epoch, base_sequence

    def _build(self) -> bytearray:
        if self._built is None:
            self._built = self._made()
            self._contents = ()
        return self._built

    def _made(self) -> bytearray:
        pieces = [bytes(EMPTY)]
        for offset, held in enumerate(self._contents):
            number = varint(offset)
            pieces += (varint(len(_AT_ONCE) + len(number) + len(held)), _AT_ONCE, number, held)
        batch = bytearray().join(pieces)
        count, now = self._count, self._now
        _from_crc(batch, _CRC_FROM, _PLAIN, count - 1, now, now, *self._producer, count)
        crc = calc_crc32c(memoryview(batch)[_CRC_FROM:])
        _to_crc(batch, 0, 0, len(batch) - _LENGTH_FROM, _NO_EPOCH, _MAGIC, crc)
        return batch
