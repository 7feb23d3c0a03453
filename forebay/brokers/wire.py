"""
How a message's metadata travels in broker headers, the body beside it untouched.

The id, content type and time of acceptance use the broker's own properties where
it has them; all else is text in headers named `forebay-*`, with a version, so that
old and new releases work side by side during a rolling deploy. A reader takes any
version: it uses the names it knows and passes on the rest. The producer's own
headers travel under `forebay-meta-<name>`: an unknown `forebay-*` name of a later
release cannot be mistaken for one of them.

Times are integer microseconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import orjson

from forebay.brokers.api import Attempt, Death, Failure
from forebay.errors import MessageDecodeError
from forebay.message import Message

VERSION = "1"

V = "forebay-v"
ID = "forebay-id"
CONTENT_TYPE = "forebay-content-type"
ACCEPTED_AT = "forebay-accepted-at"
KEY = "forebay-key"
NOT_BEFORE = "forebay-not-before"
EXPIRES_AT = "forebay-expires-at"
META = "forebay-meta-"
ATTEMPT = "forebay-attempt"
DEFERRALS = "forebay-deferrals"
HISTORY = "forebay-history"
DEAD_REASON = "forebay-dead-reason"
DEAD_CLASS = "forebay-dead-class"
DEAD_DESTINATION = "forebay-dead-destination"
DEAD_DETAIL = "forebay-dead-detail"
DEAD_QUEUE = "forebay-dead-queue"
DEAD_ATTEMPTS = "forebay-dead-attempts"
DEAD_AT = "forebay-dead-at"
DEAD_ORIGINAL_ID = "forebay-dead-original-id"
DEAD_HISTORY = "forebay-dead-history"

MAX_DETAIL = 2_000
"""Characters of a failure's detail that travel; headers must not outgrow the broker's frame."""

LEAST = 60
"""Characters of a reason that are kept in any case."""

HISTORY_VERSION = 1
"""Of the JSON in the two headers of histories: a reader ignores one that it does not know."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EXACT = 1 << 52
"""Microseconds, until 2112, that a float of seconds tells from their neighbours: twice as fast."""
_fromtimestamp = datetime.fromtimestamp


def to_micros(when: datetime) -> int:
    """
    Microseconds since the epoch, exactly: a float would be off by one now and then.

    By its parts: a division of one timedelta by another takes longer than all the rest of a header.
    """
    since = when - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(micros: int) -> datetime:
    if 0 <= micros < _EXACT:
        return _fromtimestamp(micros / 1e6, UTC)
    return _EPOCH + timedelta(microseconds=micros)


@dataclass(slots=True, kw_only=True)
class Decoded:
    """A message with what its headers say about its way so far. Never changed in place."""

    message: Message
    attempt: int
    deferrals: int
    death: Death | None
    history: tuple[Attempt, ...] = ()


_new = object.__new__


def untried(message: Message) -> Decoded:
    """A message to which nothing has happened yet; made as `usual_message` makes messages."""
    made: Decoded = _new(Decoded)
    made.message = message
    made.attempt = 1
    made.deferrals = 0
    made.death = None
    made.history = ()
    return made


def encode(
    message: Message,
    *,
    attempt: int = 1,
    deferrals: int = 0,
    death: Death | None = None,
    history: Sequence[Attempt] = (),
) -> dict[str, str]:
    """All of it as headers; a driver leaves out what it keeps in properties or columns of its own."""
    headers = {
        V: VERSION,
        ID: message.id,
        CONTENT_TYPE: message.content_type,
        ACCEPTED_AT: str(to_micros(message.accepted_at)),
    }
    if message.key is not None:
        headers[KEY] = message.key
    if message.not_before is not None:
        headers[NOT_BEFORE] = str(to_micros(message.not_before))
    if message.expires_at is not None:
        headers[EXPIRES_AT] = str(to_micros(message.expires_at))
    if attempt != 1:
        headers[ATTEMPT] = str(attempt)
    if deferrals:
        headers[DEFERRALS] = str(deferrals)
    if history:
        headers[HISTORY] = encode_history(history)
    for name, value in message.headers.items():
        headers[META + name] = value
    if death is not None:
        headers |= encode_death(death)
    return headers


def encode_death(death: Death) -> dict[str, str]:
    failure = death.failure
    headers = {
        DEAD_REASON: failure.reason,
        DEAD_CLASS: failure.error_class,
        DEAD_DESTINATION: failure.destination,
        DEAD_QUEUE: death.queue,
        DEAD_ATTEMPTS: str(death.attempts),
        DEAD_AT: str(to_micros(death.died_at)),
    }
    if failure.detail:
        headers[DEAD_DETAIL] = failure.detail[:MAX_DETAIL]
    if death.original_id is not None:
        headers[DEAD_ORIGINAL_ID] = death.original_id
    if death.history:
        headers[DEAD_HISTORY] = encode_history(death.history)
    return headers


def lighter(
    death: Death | None, history: tuple[Attempt, ...]
) -> Iterator[tuple[Death | None, tuple[Attempt, ...]]]:
    """
    What a copy says of its way, from all of it to the least: for a message that would not fit otherwise.

    First without the destination's own text, then without the attempts before, then with
    the beginning of the reason. The message itself is never cut.
    """
    yield death, history
    if death is not None and death.failure.detail:
        death = replace(death, failure=replace(death.failure, detail=""))
        yield death, history
    if history or (death is not None and death.history):
        death = None if death is None else replace(death, history=())
        yield death, ()
    if death is not None:
        f = death.failure
        least = {n: getattr(f, n)[:LEAST] for n in ("reason", "error_class", "destination")}
        yield replace(death, failure=replace(f, **least)), ()


def encode_history(history: Sequence[Attempt]) -> str:
    """Compact: what travels with a message is paid for at each of its tries."""
    rows = [
        (a.number, to_micros(a.failed_at), a.worker, round(a.seconds, 6), a.error_class, a.reason)
        for a in history
    ]
    try:
        return orjson.dumps([HISTORY_VERSION, *rows]).decode()
    except TypeError:
        # Half a surrogate pair, out of somebody's exception.
        rows = [(n, at, _text(w), s, _text(c), _text(r)) for n, at, w, s, c, r in rows]
        return orjson.dumps([HISTORY_VERSION, *rows]).decode()


def decode_history(text: str | None) -> tuple[Attempt, ...]:
    """What `encode_history` made; nothing of what cannot be read: no message is worth less for that."""
    if not text:
        return ()
    try:
        version, *rows = orjson.loads(text)
        if version != HISTORY_VERSION:
            return ()
        return tuple(
            Attempt(
                number=int(number),
                failed_at=from_micros(int(at)),
                worker=str(worker),
                seconds=float(seconds),
                error_class=str(error_class),
                reason=str(reason),
            )
            for number, at, worker, seconds, error_class, reason in rows
        )
    except (ValueError, TypeError, OverflowError):
        return ()


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def decode(headers: Mapping[str, str], body: bytes) -> Decoded:
    """
    The message that `encode` made these headers of.

    Raises:
        MessageDecodeError: a header is missing or does not hold what its name says.
    """
    try:
        return Decoded(
            message=Message(
                id=headers[ID],
                body=body,
                accepted_at=from_micros(int(headers[ACCEPTED_AT])),
                key=headers.get(KEY),
                headers={n[len(META) :]: v for n, v in headers.items() if n.startswith(META)},
                content_type=headers.get(CONTENT_TYPE, "application/octet-stream"),
                not_before=_time(headers, NOT_BEFORE),
                expires_at=_time(headers, EXPIRES_AT),
            ),
            attempt=int(headers.get(ATTEMPT, "1")),
            deferrals=int(headers.get(DEFERRALS, "0")),
            death=decode_death(headers),
            history=decode_history(headers.get(HISTORY)),
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise MessageDecodeError(f"not a Forebay message: {error!r}") from error


def decode_death(headers: Mapping[str, str]) -> Death | None:
    if DEAD_AT not in headers:
        return None
    return Death(
        failure=Failure(
            reason=headers.get(DEAD_REASON, ""),
            error_class=headers.get(DEAD_CLASS, ""),
            destination=headers.get(DEAD_DESTINATION, ""),
            detail=headers.get(DEAD_DETAIL, ""),
        ),
        queue=headers.get(DEAD_QUEUE, ""),
        attempts=int(headers.get(DEAD_ATTEMPTS, "1")),
        died_at=from_micros(int(headers[DEAD_AT])),
        original_id=headers.get(DEAD_ORIGINAL_ID),
        history=decode_history(headers.get(DEAD_HISTORY)),
    )


def _time(headers: Mapping[str, str], name: str) -> datetime | None:
    return from_micros(int(headers[name])) if name in headers else None
