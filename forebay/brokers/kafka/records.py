"""Between our messages and Kafka's records."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, overload

from aiokafka.partitioner import murmur2
from aiokafka.structs import TopicPartition

from forebay.brokers import cloudevents, wire
from forebay.brokers.api import Death, Failure
from forebay.brokers.kafka.batches import content, header, header_name, key_part, size_alone, varint
from forebay.errors import MessageDecodeError
from forebay.message import Alike, Message, usual_message

DUE = "forebay-due"
"""When a delayed message is to be delivered, in microseconds."""
HOP = "forebay-hop"
"""When a record of a retry topic is to be looked at again, in microseconds."""

_BEFORE_ID = header(wire.V, wire.VERSION.encode()) + header_name(wire.ID)
"""The first header, and the name of the second."""
_ACCEPTED_AT = header_name(wire.ACCEPTED_AT)
_KEY = header_name(wire.KEY)
RESERVE = 16_384
"""Bytes that a message leaves to what retries and the dead letter add."""

_NAMESPACE = uuid.UUID("6f1bb1a5-5a0e-4f0c-9a3e-0f4f6c1a2b7d")


@dataclass(slots=True)
class Outgoing:
    """One record to be written."""

    topic: str
    key: bytes | None
    value: bytes
    content: bytes
    """Key, value and headers, as they are written."""
    lighter: Callable[[], Iterator[Mapping[str, str]]] | None = None
    """Of a copy: its headers with less and less in them. None: it is published for the first time."""

    @property
    def size(self) -> int:
        """Bytes of a batch with this record alone, at most."""
        return size_alone(len(self.content))

    def lighten(self, limit: int) -> bool:
        """Whether it is of at most `limit` bytes, by giving up what it can do without."""
        candidates = iter(()) if self.lighter is None else self.lighter()
        while self.size > limit:
            if (headers := next(candidates, None)) is None:
                return False
            self.content = _content(self.key, self.value, headers)
        return True


class OutgoingAlike(Sequence[Outgoing]):
    """Records of one topic that have their key in common; they are made when they are asked for."""

    __slots__ = ("bodies", "contents", "key", "topic")

    def __init__(
        self, topic: str, key: bytes | None, bodies: Sequence[bytes], contents: Sequence[bytes]
    ) -> None:
        self.topic = topic
        self.key = key
        self.bodies = bodies
        self.contents = contents

    @property
    def size(self) -> int:
        """Of the longest."""
        return size_alone(max(map(len, self.contents)))

    def __len__(self) -> int:
        return len(self.contents)

    @overload
    def __getitem__(self, index: int) -> Outgoing: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Outgoing]: ...

    def __getitem__(self, index: int | slice) -> Outgoing | Sequence[Outgoing]:
        if isinstance(index, int):
            return Outgoing(self.topic, self.key, self.bodies[index], self.contents[index])
        return OutgoingAlike(self.topic, self.key, self.bodies[index], self.contents[index])


def _content(key: bytes | None, value: bytes, headers: Mapping[str, str]) -> bytes:
    return content(key, value, [header(name, text.encode()) for name, text in headers.items()])


def outgoing(
    topic: str,
    message: Message,
    headers: Mapping[str, str],
    lighter: Callable[[], Iterator[Mapping[str, str]]] | None = None,
) -> Outgoing:
    key = None if message.key is None else message.key.encode()
    held = _content(key, message.body, {**headers, **_binding(message)})
    return Outgoing(topic, key, message.body, held, lighter)


def first(topic: str, message: Message) -> Outgoing:
    """A message that is published for the first time, and for now."""
    key, count, others = _around(message)
    id_, body = message.id.encode(), message.body
    pieces = key_part(key), varint(len(body)), body, varint(count), _BEFORE_ID, varint(len(id_)), id_, *others
    return Outgoing(topic, key, body, b"".join(pieces))


def firsts(topic: str, messages: Alike) -> OutgoingAlike:
    """What `first` makes of each of them: only id and body differ."""
    key, count, others = _around(messages.common)
    join = b"".join
    start, before, after = key_part(key), varint(count) + _BEFORE_ID, join(others)
    contents = [
        join((start, varint(len(body)), body, before, varint(len(id_)), id_, after))
        for id_, body in zip(map(str.encode, messages.ids), messages.bodies, strict=True)
    ]
    return OutgoingAlike(topic, key, messages.bodies, contents)


def _around(message: Message) -> tuple[bytes | None, int, list[bytes]]:
    """The key, the number of headers, and those of them that come after the id."""
    meta = message.headers
    key = None if message.key is None else message.key.encode()
    if message.not_before is not None or message.expires_at is not None or "ce-specversion" in meta:
        said = {**wire.encode(message), **_binding(message)}
        others = [header(name, text.encode()) for name, text in said.items() if name not in (wire.V, wire.ID)]
        return key, 2 + len(others), others
    # Most are nothing but that.
    stamp = b"%d" % wire.to_micros(message.accepted_at)
    pieces = [_content_type_header(message.content_type), _ACCEPTED_AT, varint(len(stamp)), stamp]
    if key is not None:
        pieces += (_KEY, varint(len(key)), key)
    for name, text in meta.items():
        value = text.encode()
        pieces += (_meta_name(name), varint(len(value)), value)
    return key, 4 + (key is not None) + len(meta), pieces


@lru_cache(maxsize=256)
def _meta_name(name: str) -> bytes:
    return header_name(wire.META + name)


@lru_cache(maxsize=256)
def _content_type_header(content_type: str) -> bytes:
    return header(wire.CONTENT_TYPE, content_type.encode())


def _binding(message: Message) -> dict[str, str]:
    event = cloudevents.attributes(message.headers, cloudevents.KAFKA)
    return {**event, "content-type": message.content_type} if event else event


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


def read(record: Any, tp: TopicPartition) -> Incoming:
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
        return _foreign(record, tp, str(error))


def _foreign(record: Any, tp: TopicPartition, reason: str) -> Incoming:
    """The id is made from the record's place, so that reading it twice is one message."""
    place = f"{tp.topic}/{tp.partition}/{record.offset}/{record.timestamp}"
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
        queue=tp.topic.partition(".")[0],
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
