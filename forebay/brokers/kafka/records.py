"""Between our messages and Kafka's records."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from aiokafka.partitioner import murmur2

from forebay.brokers import cloudevents, wire
from forebay.brokers.api import Death, Failure
from forebay.errors import MessageDecodeError
from forebay.message import Alike, Message, usual_message

Header = tuple[str, bytes]
Headers = list[Header]

DUE = "forebay-due"
"""When a delayed message is to be delivered, in microseconds."""
HOP = "forebay-hop"
"""When a record of a retry topic is to be looked at again, in microseconds."""

_EACH_HEADER = 10
"""Bytes at most around a header: two lengths of up to five."""
_BATCH = 61 + 21 + 12 + 5
"""Bytes at most of a batch and of the one record in it, beside what they hold."""
_VERSION = (wire.V, wire.VERSION.encode())
_USUAL = (
    _BATCH
    + sum(len(name) + _EACH_HEADER for name in (wire.V, wire.ID, wire.CONTENT_TYPE, wire.ACCEPTED_AT))
    + len(wire.VERSION)
)
"""The same of a message's own record, beside its body and what its headers hold."""
_ID_AT = 1
"""Where in its headers a record has the message's id."""
RESERVE = 16_384
"""Bytes that a message leaves to what retries and the dead letter add."""

_NAMESPACE = uuid.UUID("6f1bb1a5-5a0e-4f0c-9a3e-0f4f6c1a2b7d")


@dataclass(slots=True)
class Outgoing:
    """One record to be written."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers
    size: int
    """Bytes of a batch with this record alone, at most."""
    lighter: Callable[[], Iterator[Mapping[str, str]]] | None = None
    """Of a copy: its headers with less and less in them. None: it is published for the first time."""

    def lighten(self, limit: int) -> bool:
        """Whether it is of at most `limit` bytes, by giving up what it can do without."""
        candidates = iter(()) if self.lighter is None else self.lighter()
        while self.size > limit:
            if (headers := next(candidates, None)) is None:
                return False
            self.headers = _encoded(headers)
            self.size = _size(self.key, self.value, self.headers)
        return True


def _size(key: bytes | None, value: bytes, headers: Headers) -> int:
    inside = sum([len(name) + len(value) + _EACH_HEADER for name, value in headers])
    return _BATCH + len(key or b"") + len(value) + inside


def outgoing(
    topic: str,
    message: Message,
    headers: Mapping[str, str],
    lighter: Callable[[], Iterator[Mapping[str, str]]] | None = None,
) -> Outgoing:
    key = None if message.key is None else message.key.encode()
    encoded = _encoded({**headers, **_binding(message)})
    return Outgoing(topic, key, message.body, encoded, _size(key, message.body, encoded), lighter)


def first(topic: str, message: Message) -> Outgoing:
    """A message that is published for the first time, and for now: most are nothing but that."""
    meta = message.headers
    if message.not_before is not None or message.expires_at is not None or "ce-specversion" in meta:
        return outgoing(topic, message, wire.encode(message))
    id_, stamp = message.id.encode(), b"%d" % wire.to_micros(message.accepted_at)
    content_type = _content_type_header(message.content_type)
    headers = [_VERSION, (wire.ID, id_), content_type, (wire.ACCEPTED_AT, stamp)]
    body = message.body
    size = _USUAL + len(id_) + len(stamp) + len(content_type[1]) + len(body)
    key = None
    if message.key is not None:
        key = message.key.encode()
        headers.append((wire.KEY, key))
        size += 2 * len(key) + len(wire.KEY) + _EACH_HEADER
    for name, text in meta.items():
        value = text.encode()
        headers.append((wire.META + name, value))
        size += len(wire.META) + len(name) + len(value) + _EACH_HEADER
    return Outgoing(topic, key, body, headers, size)


def firsts(topic: str, messages: Alike) -> list[Outgoing]:
    """What `first` makes of each of them: only id and body differ."""
    made = first(topic, replace(messages.common, id="", body=b""))
    before, after = made.headers[:_ID_AT], made.headers[_ID_AT + 1 :]
    return [
        Outgoing(
            topic,
            made.key,
            body,
            [*before, (wire.ID, id_.encode()), *after],
            made.size + len(id_.encode()) + len(body),
        )
        for id_, body in zip(messages.ids, messages.bodies, strict=True)
    ]


@lru_cache(maxsize=256)
def _content_type_header(content_type: str) -> Header:
    return wire.CONTENT_TYPE, content_type.encode()


def _binding(message: Message) -> dict[str, str]:
    event = cloudevents.attributes(message.headers, cloudevents.KAFKA)
    return {**event, "content-type": message.content_type} if event else event


def _encoded(headers: Mapping[str, str]) -> Headers:
    return [(name, value.encode()) for name, value in headers.items()]


@lru_cache(maxsize=4096)
def partition_of(key: bytes, partitions: int) -> int:
    """
    The one that every Kafka client's default partitioner chooses for this key.

    Remembered, because the hash is slow and keys come in bursts.
    """
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def next_hop(now: int, due: int, delays: Sequence[float]) -> tuple[float, int]:
    """
    The retry topic for a message that is due later, and when it is to be looked at there (microseconds).

    The longest delay that is not too long; of too short a rest the shortest one, whose
    topic is read in order, so that it may be late by that and never early.
    """
    left = (due - now) / 1e6
    delay = max((d for d in delays if d <= left), default=min(delays))
    return delay, min(due, now + int(delay * 1e6))


@dataclass(slots=True, kw_only=True)
class Incoming:
    """One record as it was read."""

    decoded: wire.Decoded
    due: int
    """Microseconds; 0: at once."""
    hop: int
    """Look at it again at this time; 0: now."""
    foreign: str = ""
    """Why it is not one of our messages; the message in `decoded` was made up around its bytes."""


@lru_cache(maxsize=256)
def _content_type(value: bytes) -> str:
    return value.decode()


_new = object.__new__
_AS_WRITTEN = (wire.V, wire.ID, wire.CONTENT_TYPE, wire.ACCEPTED_AT)
_META = len(wire.META)


def _usual(record: Any) -> Incoming | None:
    """The same as `read`, of a message of ours to which nothing has happened yet; None: it is not one."""
    try:
        (v, _), (i, id), (c, content_type), (a, accepted_at), *others = record.headers
        if (v, i, c, a) != _AS_WRITTEN:
            return None
        key: str | None = None
        given: dict[str, str] = {}
        for name, value in others:
            if name[:_META] == wire.META:
                given[name[_META:]] = value.decode()
            elif name == wire.KEY:
                key = value.decode()
            else:
                return None
        message = usual_message(
            id.decode(),
            record.value or b"",
            wire.from_micros(int(accepted_at)),
            key,
            given,
            _content_type(content_type),
        )
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None  # the other way finds the words for it
    made: Incoming = _new(Incoming)
    made.decoded = wire.untried(message)
    made.due = made.hop = 0
    made.foreign = ""
    return made


def read(record: Any) -> Incoming:
    """Never fails: what is not ours is wrapped, bytes untouched."""
    if (usual := _usual(record)) is not None:
        return usual
    try:
        headers = {name: value.decode() for name, value in record.headers if value is not None}
        decoded = wire.decode(headers, record.value or b"")
        due = int(headers.get(DUE, "0"))
        if not due and decoded.message.not_before is not None:
            due = wire.to_micros(decoded.message.not_before)
        return Incoming(decoded=decoded, due=due, hop=int(headers.get(HOP, "0")))
    except (MessageDecodeError, ValueError) as error:
        return _foreign(record, str(error))


def _foreign(record: Any, reason: str) -> Incoming:
    """The id is made from the record's place, so that reading it twice is one message."""
    place = f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp}"
    message = Message(
        id=str(uuid.uuid5(_NAMESPACE, place)),
        body=record.value or b"",
        accepted_at=datetime.fromtimestamp(max(0, record.timestamp) / 1000, UTC),
        key=_text(record.key),
        headers=cloudevents.adopted(
            {name.lower(): text for name, value in record.headers if (text := _text(value)) is not None},
            [cloudevents.KAFKA],
        ),
    )
    death = Death(
        failure=Failure(reason=reason, error_class="MessageDecodeError"),
        queue=record.topic.partition(".")[0],
        attempts=1,
        died_at=datetime.now(UTC),
    )
    decoded = wire.Decoded(message=message, attempt=1, deferrals=0, death=death)
    return Incoming(decoded=decoded, due=0, hop=0, foreign=reason)


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
