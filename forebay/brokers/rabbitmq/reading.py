"""
The usual message read in one pass: one of ours to which nothing has happened yet.

What has a history (an attempt, a death, a delay, a count of the server's), what is not ours
and what a later release may have added is left to pika and `wire.decode`, which read anything.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from forebay.brokers import wire as headers
from forebay.brokers.rabbitmq.wire import USUAL
from forebay.message import Message, usual_message

_TEXT = ord("S")
_length = struct.Struct(">I").unpack_from
_from_micros = headers.from_micros


@lru_cache(maxsize=1024)
def _known(name: bytes) -> tuple[str, bool] | None:
    """A header's name as the producer gave it, or ours, and which of them; None: not a usual one."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    if text.startswith(headers.META):
        return text[len(headers.META) :], True
    return (text, False) if text in (headers.V, headers.ACCEPTED_AT, headers.KEY) else None


@lru_cache(maxsize=256)
def _text(value: bytes) -> str:
    return value.decode()


def usual(properties: bytes, body: bytes) -> Message | None:
    """The message with these properties, as they stand in the header frame; None: it is not a usual one."""
    if properties[:2] != USUAL:
        return None
    try:
        at = 3 + properties[2]
        content_type = _text(properties[3:at])
        end = at + 4 + _length(properties, at)[0]
        at += 4
        own: dict[str, str] = {}
        given: dict[str, str] = {}
        while at < end:
            value_at = at + 1 + properties[at]
            known = _known(properties[at + 1 : value_at])
            if known is None or properties[value_at] != _TEXT:
                return None
            at = value_at + 5 + _length(properties, value_at + 1)[0]
            value = properties[value_at + 5 : at].decode()
            if known[1]:
                given[known[0]] = value
            else:
                own[known[0]] = value
        if headers.V not in own:
            return None
        # Behind the table: a byte for the delivery mode, the id, and the time in seconds.
        id_at = end + 2
        id_end = id_at + properties[end + 1]
        if at != end or id_end + 8 != len(properties) or id_end == id_at:
            return None
        return usual_message(
            properties[id_at:id_end].decode(),
            body,
            _from_micros(int(own[headers.ACCEPTED_AT])),
            own.get(headers.KEY),
            given,
            content_type,
        )
    except (LookupError, ValueError, OverflowError, struct.error):
        return None  # the other way finds the words for it
