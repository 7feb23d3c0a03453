"""The request headers that mean something to us, read in one pass over what the server parsed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import copy
from datetime import UTC, datetime, timedelta

from forebay.brokers.api import DURABILITIES, Durability
from forebay.errors import SettingsError
from forebay.section import parse_duration
from gateway.answer import Answer, RawHeaders
from gateway.compression import ENCODINGS
from gateway.problems import (
    HEADERS_TOO_LARGE,
    INVALID_HEADER,
    INVALID_REQUEST,
    UNSUPPORTED_ENCODING,
    Kind,
    problem,
)

MAX_KEPT_HEADERS = 64
MAX_KEPT_BYTES = 16 * 2**10
"""Names and values together; every broker can carry this much beside a body."""

MAX_AHEAD = timedelta(days=366)
"""How far in the future a message may be due, or expire."""

MAX_KEY = 255

MAX_WAIT = 30.0
"""Seconds that a request may wait for what becomes of its message; who asks for more gets this."""

_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}")
PLAIN_KEY = re.compile(rb"[a-zA-Z0-9_.:/-]{1,255}")
_META_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}")
_MEDIA_TYPE = re.compile(r"[\x20-\x7e\t]{1,255}")
_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}")

_SECRET = re.compile(
    r"authorization|cookie2?|set-cookie2?|proxy-.*|.*signature.*|x-api-key|.*-secret|.*-token"
)


class Refused(Exception):
    """A header cannot be accepted; `answer` is what the client gets."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def invalid(header: str, detail: str, kind: Kind = INVALID_HEADER) -> Refused:
    return Refused(problem(kind, f"{header}: {detail}", header=header))


class Meta:
    """What a request's headers say, as far as we read them."""

    __slots__ = (
        "content_length",
        "content_type",
        "delay",
        "deliver_at",
        "durability",
        "encoding",
        "idempotency_key",
        "keeps_conflicts",
        "kept",
        "minimal",
        "ordering_key",
        "ttl",
        "wait",
    )

    def __init__(self) -> None:
        self.content_length: int | None = None
        self.content_type = "application/octet-stream"
        self.delay: float | None = None
        self.deliver_at: datetime | None = None
        self.durability: Durability | None = None
        self.encoding: str | None = None
        """How the body is compressed; one of `compression.ENCODINGS`."""
        self.idempotency_key: str | None = None
        self.keeps_conflicts = False
        """Another message under a known key is not refused but published, for the database to set aside."""
        self.kept: dict[str, str] = {}
        self.minimal = False
        """Prefer: return=minimal; the answer to a batch then has counts, and results of failures only."""
        self.ordering_key: str | None = None
        self.ttl: float | None = None
        self.wait: float | None = None
        """Seconds to wait for what becomes of the message; 0.0: not at all. None: it says nothing of it."""


def is_secret(name: str) -> bool:
    """Whether a header of this name may hold a credential or a signature; such are never kept."""
    return _SECRET.fullmatch(name) is not None


class HeaderReader:
    """
    Reads requests' headers; `keep` names the ones kept besides ours, ce-* and the trace context.

    Raises:
        SettingsError: `keep` names a header that may hold a credential, or that is acted upon.
    """

    def __init__(self, keep: Iterable[str] = ()) -> None:
        names = [name.strip().lower() for name in keep]
        for name in names:
            if is_secret(name) or name.startswith("forebay-"):
                raise SettingsError(
                    f"gateway.keep_headers names {name!r}, which is never kept:"
                    " credentials, cookies and signatures stay out of the queue"
                )
            if name.encode() in _CONTROL:
                raise SettingsError(
                    f"gateway.keep_headers names {name!r}, which the gateway itself acts upon; leave it out"
                )
        self._keep = frozenset(n.encode() for n in (*names, "traceparent", "tracestate"))
        self._known = self._keep | _CONTROL.keys()

    def read(self, headers: RawHeaders) -> Meta:
        """
        The meaning of these headers.

        Raises:
            Refused: with the answer that names the header and shows a right one.
        """
        meta = Meta()
        known = self._known
        seen: set[bytes] | None = None
        for name, value in headers:
            if name == b"content-type":
                meta.content_type = _content_type(value)
            elif name == b"content-length":
                meta.content_length = _content_length(value)
            elif name in known:
                if name in self._keep:
                    _keep(meta, name, value)
                    continue
                if name not in _LISTS:
                    if seen is None:
                        seen = set()
                    if name in seen:
                        raise invalid(_shown(name), "sent more than once; send it once")
                    seen.add(name)
                _CONTROL[name](meta, value)
            elif name.startswith(b"ce-"):
                _keep(meta, name, value)
            elif name.startswith(b"forebay-"):
                _forebay(meta, name, value)
        if seen is not None:
            _check_times(meta)
        if meta.kept:
            check_kept(meta.kept)
        return meta


def _shown(name: bytes) -> str:
    return "-".join(part.capitalize() for part in name.decode("latin-1").split("-")).replace("Ttl", "TTL")


def _text(name: bytes, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise invalid(_shown(name), "the value is not UTF-8 text") from None


def _content_type(value: bytes) -> str:
    text = value.decode("latin-1").strip()
    if not text:
        return "application/octet-stream"
    if not _MEDIA_TYPE.fullmatch(text):
        raise invalid("Content-Type", "at most 255 ASCII characters, like: application/json")
    return text


def _content_length(value: bytes) -> int:
    # The server's parser refuses these before us; another server's may not.
    if not _CONTENT_LENGTH.fullmatch(value):
        raise invalid("Content-Length", "not a number of bytes, like: 512", INVALID_REQUEST)
    return int(value)


def _idempotency_key(meta: Meta, value: bytes) -> None:
    """
    Take the bare form and the draft's quoted form as the same key.

    The draft standard writes the key as a structured-field string ("abc"); most
    clients send it bare. Were they different keys, a client library's upgrade
    between a request and its retry would double the message.
    """
    if PLAIN_KEY.fullmatch(value):  # almost all of them; spares the rest of this
        meta.idempotency_key = value.decode("ascii")
        return
    text = value.decode("latin-1").strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = re.sub(r"\\([\"\\])", r"\1", text[1:-1])
    if not _VISIBLE.fullmatch(text):
        raise invalid(
            "Idempotency-Key", "1 to 255 visible ASCII characters without spaces, like: order-1234-created"
        )
    meta.idempotency_key = text


def _ordering_key(meta: Meta, value: bytes) -> None:
    text = _text(b"forebay-ordering-key", value).strip()
    if not 1 <= len(text.encode()) <= MAX_KEY:
        raise invalid("Forebay-Ordering-Key", f"1 to {MAX_KEY} bytes of text, like: customer-42")
    meta.ordering_key = text


def _duration(header: str, value: bytes) -> float:
    text = value.decode("latin-1")
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = None
    if not isinstance(seconds, float) or not 0 <= seconds <= MAX_AHEAD.total_seconds():
        raise invalid(header, "seconds or a duration up to 366 days, like: 30 or 30s or 15m")
    return seconds


def _delay(meta: Meta, value: bytes) -> None:
    meta.delay = _duration("Forebay-Delay", value)


def _ttl(meta: Meta, value: bytes) -> None:
    meta.ttl = _duration("Forebay-TTL", value)
    if meta.ttl == 0:
        raise invalid("Forebay-TTL", "must be above zero, like: 30 or 15m")


_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)  # fromisoformat alone takes week dates and times without a zone, too


def _deliver_at(meta: Meta, value: bytes) -> None:
    text = value.decode("latin-1").strip().upper()
    try:
        if not _RFC3339.fullmatch(text):
            raise ValueError
        # Six digits of a second is all a datetime holds.
        meta.deliver_at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid(
            "Forebay-Deliver-At", "a time with its zone (RFC 3339), like: 2027-01-31T08:00:00Z"
        ) from None


def _prefer(meta: Meta, value: bytes) -> None:
    for name, wanted in _preferences(value):
        if name == "durability":
            level = wanted.lower()
            if level not in DURABILITIES:
                raise invalid(
                    "Prefer", f"durability is one of {', '.join(DURABILITIES)}, like: durability=synced"
                )
            meta.durability = DURABILITIES[DURABILITIES.index(level)]
        elif name == "wait":
            meta.wait = _wait(wanted)
        elif name == "respond-async":
            # With a wait it means: after that (RFC 7240, section 4.3).
            meta.wait = 0.0 if meta.wait is None else meta.wait
        elif name == "return":
            meta.minimal = wanted.lower() == "minimal"


def _preferences(value: bytes) -> Iterable[tuple[str, str]]:
    """Names and values; preferences nobody knows are ignored (RFC 7240)."""
    for preference in value.decode("latin-1").split(","):
        name, _, wanted = preference.partition(";")[0].partition("=")
        yield name.strip().lower(), wanted.strip().strip('"')


def _wait(text: str) -> float:
    if not _SECONDS.fullmatch(text):
        raise invalid("Prefer", "wait is a whole number of seconds, like: wait=10")
    return min(float(text), MAX_WAIT)


def wait_of(headers: RawHeaders) -> float:
    """
    How long the client would wait, in seconds, MAX_WAIT at most; 0.0 if it says nothing of it.

    Raises:
        Refused
    """
    for name, value in headers:
        if name == b"prefer":
            for preference, wanted in _preferences(value):
                if preference == "wait":
                    return _wait(wanted)
    return 0.0


def _content_encoding(meta: Meta, value: bytes) -> None:
    for coding in value.decode("latin-1").lower().split(","):
        coding = coding.strip()
        if coding in ("", "identity"):
            continue
        if coding == "x-gzip":  # the same (RFC 9110, section 8.4.1.3)
            coding = "gzip"
        if coding not in ENCODINGS or meta.encoding is not None:
            raise Refused(
                problem(
                    UNSUPPORTED_ENCODING,
                    f"Content-Encoding: {', '.join(ENCODINGS)} or none is taken, and only one of them.",
                    header="Content-Encoding",
                    headers=[(b"accept-encoding", ", ".join(ENCODINGS).encode())],
                )
            )
        meta.encoding = coding


_FORWARDED = frozenset({b"forebay-attempt", b"forebay-queue", b"forebay-accepted-at", b"forebay-message-id"})
"""What the http sink of another Forebay tells besides; about its own queue, not about ours."""


def _forebay(meta: Meta, name: bytes, value: bytes) -> None:
    if name in _FORWARDED:
        return
    if not name.startswith(b"forebay-meta-"):
        raise invalid(
            _shown(name),
            "no such header; there are Forebay-Ordering-Key, Forebay-Delay, Forebay-Deliver-At,"
            " Forebay-TTL and Forebay-Meta-<Name>",
        )
    own = name[len(b"forebay-meta-") :]
    text = own.decode("latin-1")
    if not _META_NAME.fullmatch(text):
        raise invalid(
            _shown(name), "a name of 1 to 100 characters is missing, like: Forebay-Meta-Source: shop"
        )
    if is_secret(text):
        raise invalid(_shown(name), "credentials, cookies and signatures are not kept with a message")
    _keep(meta, own, value)


def _keep(meta: Meta, name: bytes, value: bytes) -> None:
    text = name.decode("latin-1")
    if is_secret(text):
        return
    kept = _text(name, value)
    before = meta.kept.get(text)
    # Repeated fields are one list (RFC 9110, section 5.3).
    meta.kept[text] = kept if before is None else f"{before}, {kept}"


def check_kept(kept: dict[str, str]) -> dict[str, str]:
    """
    These headers, if every broker can carry them beside a body.

    Raises:
        Refused
    """
    size = sum(len(n) + len(v.encode()) for n, v in kept.items())
    if len(kept) > MAX_KEPT_HEADERS or size > MAX_KEPT_BYTES:
        raise Refused(
            problem(
                HEADERS_TOO_LARGE,
                f"{len(kept)} headers of {size} bytes would be kept with the message;"
                f" at most {MAX_KEPT_HEADERS} of {MAX_KEPT_BYTES} bytes together are",
                limit=MAX_KEPT_BYTES,
            )
        )
    return kept


def _check_times(meta: Meta) -> None:
    if meta.delay is not None and meta.deliver_at is not None:
        raise invalid("Forebay-Deliver-At", "sent together with Forebay-Delay; send one of them")


_LISTS = frozenset({b"prefer", b"content-encoding"})
"""Headers that may be sent several times: they are one list then (RFC 9110, section 5.3)."""

_CONTROL = {
    b"idempotency-key": _idempotency_key,
    b"forebay-ordering-key": _ordering_key,
    b"forebay-delay": _delay,
    b"forebay-deliver-at": _deliver_at,
    b"forebay-ttl": _ttl,
    b"prefer": _prefer,
    b"content-encoding": _content_encoding,
}


def override(
    base: Meta,
    *,
    content_type: str | None = None,
    idempotency_key: str | None = None,
    ordering_key: str | None = None,
    delay: str | None = None,
    ttl: str | None = None,
    headers: Mapping[str, str] | None = None,
    kept: Mapping[str, str] | None = None,
) -> Meta:
    """
    What is known about one of several messages of a request, in a new Meta.

    Each is a header's value and obeys the same rules; `headers` are those of Forebay-Meta-<name>,
    `kept` are names and values that are kept as they are.

    Raises:
        Refused
    """
    meta = copy(base)
    if content_type is not None:
        meta.content_type = _content_type(_value("Content-Type", content_type))
    if idempotency_key is not None:
        _idempotency_key(meta, _value("Idempotency-Key", idempotency_key))
    if ordering_key is not None:
        _ordering_key(meta, _value("Forebay-Ordering-Key", ordering_key))
    if delay is not None:
        meta.deliver_at = None
        _delay(meta, _value("Forebay-Delay", delay))
    if ttl is not None:
        _ttl(meta, _value("Forebay-TTL", ttl))
    if headers or kept:
        meta.kept = dict(base.kept)
        for name, value in (headers or {}).items():
            raw = _value(name[:100], name.lower())
            meta.kept.pop(name.lower(), None)
            _forebay(meta, b"forebay-meta-" + raw, _value(name, value))
        meta.kept |= {name: value for name, value in (kept or {}).items() if not is_secret(name)}
        check_kept(meta.kept)
    return meta


_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def _value(header: str, text: str) -> bytes:
    """A text as the value of a header, which cannot hold everything."""
    if _CONTROLS.search(text):
        raise invalid(header, "a control character is in it")
    return text.strip().encode()


def due_times(meta: Meta, now: datetime) -> tuple[datetime | None, datetime | None]:
    """
    When the message may be delivered, and when it expires.

    Raises:
        Refused: it would expire before it is due, or is due in too far a future.
    """
    not_before = meta.deliver_at
    if meta.delay is not None:
        not_before = now + timedelta(seconds=meta.delay)
    if not_before is not None:
        if not_before > now + MAX_AHEAD:
            raise invalid("Forebay-Deliver-At", "more than 366 days ahead; the furthest is a year from now")
        if not_before <= now:
            not_before = None
    expires_at = None if meta.ttl is None else now + timedelta(seconds=meta.ttl)
    if expires_at is not None and not_before is not None and expires_at <= not_before:
        raise invalid("Forebay-TTL", "the message would expire before it is due; the TTL counts from now")
    return not_before, expires_at
