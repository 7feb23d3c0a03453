"""Messages as AMQP properties and headers, and what is not one of ours as a dead letter."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

from pika import BasicProperties

from forebay.brokers import cloudevents, wire
from forebay.brokers.api import Attempt, Death, Failure
from forebay.brokers.rabbitmq.frames import short
from forebay.errors import MessageDecodeError
from forebay.ids import new_id
from forebay.message import Alike, Message

PERSISTENT = 2
_FLAGS = 0x2000 | 0x1000 | 0x0080 | 0x0040
"""There are headers, a delivery mode, a message id and a timestamp."""
_CONTENT_TYPE = 0x8000
USUAL = (_FLAGS | _CONTENT_TYPE).to_bytes(2, "big")
"""What the properties of a message of ours begin with."""
_PERSISTENT = PERSISTENT.to_bytes(1, "big")
SHORT = 255
"""Bytes that the protocol allows in a property and in the name of a header."""
FRAME_MAX = 131_072
"""Bytes of a frame, where the server does not ask for less. A header frame cannot be split."""
_AROUND = 8 + 12
"""Bytes of a header frame beside the properties."""
RESERVE = 31_000
"""Bytes that are left for what retries and the dead letter add; of smaller frames a quarter."""
MAX_HEADERS = 100_000
"""Bytes of a message's own, and more is not taken."""
_TIME = 8
"""Bytes of the time, which is the last of the properties."""
_length = struct.Struct(">I").pack
_seconds = struct.Struct(">Q").pack
DUE = "forebay-due"
DELIVERY_COUNT = "x-delivery-count"


def properties(
    message: Message,
    *,
    attempt: int = 1,
    deferrals: int = 0,
    death: Death | None = None,
    history: Sequence[Attempt] = (),
    due: int | None = None,
) -> bytes:
    """
    All of a message but its body, as it stands in the header frame.

    `due`: it is on the delay ladder until then, in microseconds.

    Raises:
        ValueError: the protocol cannot carry the name of a header.
    """
    headers = wire.encode(message, attempt=attempt, deferrals=deferrals, death=death, history=history)
    del headers[wire.ID]
    opening = _opening(message.content_type)
    if len(opening) > 2:
        del headers[wire.CONTENT_TYPE]
    if due is not None:
        headers[DUE] = str(due)
    headers |= cloudevents.attributes(message.headers, cloudevents.AMQP)
    table = b"".join([_header(name, value) for name, value in headers.items()])
    return _joined(opening, table, message.id, wire.to_micros(message.accepted_at))


def first(message: Message) -> bytes:
    """
    The same of a message that is published for the first time, and for now: most are nothing but that.

    Raises:
        ValueError: the protocol cannot carry the name of a header.
    """
    headers = message.headers
    if message.not_before is not None or message.expires_at is not None or "ce-specversion" in headers:
        return properties(message)
    opening = _opening(message.content_type)
    if len(opening) == 2:
        return properties(message)
    micros = wire.to_micros(message.accepted_at)
    stamp = b"%d" % micros
    table = [_STAMPED, _length(len(stamp)), stamp]
    size = _STAMPED_BYTES + len(stamp)
    if message.key is not None:
        header = _header(wire.KEY, message.key)
        table.append(header)
        size += len(header)
    for name, value in headers.items():
        header = _header(wire.META + name, value)
        table.append(header)
        size += len(header)
    seconds = micros // 1_000_000 if micros > 0 else 0
    return b"".join((opening, _length(size), *table, _PERSISTENT, short(message.id), _seconds(seconds)))


def firsts(messages: Alike) -> list[bytes]:
    """
    What `first` makes of each of them: only the id differs.

    Raises:
        ValueError: as `first`.
    """
    made = first(replace(messages.common, id=""))
    # An empty id is one byte long, and stands before the time.
    start, end = made[: -_TIME - 1], made[-_TIME:]
    return [start + short(id_) + end for id_ in messages.ids]


def _joined(opening: bytes, table: bytes, id_: str, micros: int) -> bytes:
    return b"".join(
        (
            opening,
            _length(len(table)),
            table,
            _PERSISTENT,
            short(id_),
            _seconds(max(0, micros // 1_000_000)),
        )
    )


def _header(name: str, value: str) -> bytes:
    text = value.encode()
    return _name(name) + _length(len(text)) + text


@lru_cache(maxsize=256)
def _opening(content_type: str) -> bytes:
    """Which properties there are, and the first one; without it where it does not fit."""
    try:
        return USUAL + short(content_type)
    except ValueError:
        return _FLAGS.to_bytes(2, "big")


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    """The name of a header whose value is text."""
    try:
        return short(name) + b"S"
    except ValueError:
        length = len(name.encode())
        raise ValueError(f"the name of a header has {length} bytes; RabbitMQ takes at most {SHORT}") from None


_STAMPED = _header(wire.V, wire.VERSION) + _name(wire.ACCEPTED_AT)
"""What the headers of every message begin with."""
_STAMPED_BYTES = len(_STAMPED) + 4


def room(frame_max: int) -> int:
    """Bytes of properties that fit into a header frame."""
    return frame_max - _AROUND


@lru_cache(maxsize=16)
def most(frame_max: int) -> int:
    """Bytes of properties that fit into a frame with what is added on the message's way."""
    all_ = room(frame_max)
    return min(MAX_HEADERS, all_ - min(RESERVE, all_ // 4))


def check(properties: bytes, frame_max: int = FRAME_MAX) -> bytes:
    """
    The same, if they fit into a frame, and what is added on the message's way too.

    Raises:
        ValueError
    """
    if len(properties) > most(frame_max):
        raise ValueError(
            f"the headers have {len(properties)} bytes; RabbitMQ takes at most {most(frame_max)} here"
        )
    return properties


def fitting(
    message: Message,
    frame_max: int,
    *,
    attempt: int = 1,
    deferrals: int = 0,
    death: Death | None = None,
    history: tuple[Attempt, ...] = (),
    due: int | None = None,
) -> bytes | None:
    """The properties of a copy, lighter if they have to be; None if not even the lightest fit."""
    for died, tried in wire.lighter(death, history):
        encoded = properties(
            message, attempt=attempt, deferrals=deferrals, death=died, history=tried, due=due
        )
        if len(encoded) <= room(frame_max):
            return encoded
    return None


def decode(props: BasicProperties, body: bytes) -> wire.Decoded:
    """
    Raises:
        MessageDecodeError
    """
    headers = {n: v for n, v in (props.headers or {}).items() if isinstance(v, str)}
    if wire.V not in headers or not props.message_id:
        raise MessageDecodeError("not a Forebay message: it has no forebay-v header or no message id")
    headers[wire.ID] = props.message_id
    if props.content_type is not None:
        headers[wire.CONTENT_TYPE] = props.content_type
    return wire.decode(headers, body)


def due(props: BasicProperties) -> int | None:
    """
    When it may be delivered, in microseconds, of a message that came down the delay ladder.

    Of what is not readable, None: then it is delivered.
    """
    text = (props.headers or {}).get(DUE)
    return int(text) if isinstance(text, str) and text.isdecimal() else None


def deferrals(props: BasicProperties) -> int:
    """How often the server has taken it back, since it was last written."""
    count = (props.headers or {}).get(DELIVERY_COUNT)
    return count if isinstance(count, int) else 0


def adopt(props: BasicProperties, body: bytes, queue: str, why: MessageDecodeError) -> wire.Decoded:
    """
    A message of somebody else's as a dead letter of ours: bytes untouched, metadata as far as it goes.

    It gets an id of ours: two that are equal in every byte are two all the same.
    """
    headers = {
        str(n).lower(): str(v)
        for n, v in (props.headers or {}).items()
        if not str(n).startswith("x-") and len(str(n).encode()) < 200 and isinstance(v, str | int | bool)
    }
    headers = cloudevents.adopted(headers, [cloudevents.AMQP, "cloudEvents_"])
    if sum(len(n) + len(v.encode()) for n, v in headers.items()) > MAX_HEADERS // 2:
        headers = {}
    accepted = datetime.now(UTC)
    if isinstance(props.timestamp, int):
        try:
            accepted = datetime.fromtimestamp(props.timestamp, UTC)
        except (ValueError, OverflowError, OSError):
            pass
    message = Message(
        id=new_id(),
        body=body,
        accepted_at=accepted,
        headers=headers,
        content_type=props.content_type or "application/octet-stream",
    )
    failure = Failure(reason=str(why), error_class="MessageDecodeError")
    death = Death(failure=failure, queue=queue, attempts=1, died_at=datetime.now(UTC))
    return wire.Decoded(message=message, attempt=1, deferrals=0, death=death)


def death_by_server(
    props: BasicProperties, queue: str, attempts: int, history: tuple[Attempt, ...] = ()
) -> Death:
    """Why the server itself put a message among the dead letters: it was taken back too often."""
    headers = props.headers or {}
    reason = headers.get("x-first-death-reason", "unknown")
    return Death(
        failure=Failure(reason=f"given up by RabbitMQ: {reason}", error_class=str(reason)),
        queue=queue,
        attempts=attempts,
        died_at=datetime.now(UTC),
        history=history,
    )
