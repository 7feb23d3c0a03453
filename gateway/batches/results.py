"""What became of each item of a batch, in at most 40 bytes per item, and the answer made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import orjson

from forebay.brokers.api import Durability
from gateway.problems import Kind

Status = Literal["ok", "duplicate", "rejected", "retry"]

STATUSES: tuple[Status, ...] = ("ok", "duplicate", "rejected", "retry")

ID = 36
"""Characters of an id."""
NO_ID = " " * ID
_MOST = 200
"""Different texts that one batch may have in its answer; after that only the kind of problem is told."""
PIECE = 256 * 2**10


class Span:
    """Some items in a row: one byte each for what became of it, and its id."""

    __slots__ = ("codes", "first", "ids")

    def __init__(self, first: int, ids: str, codes: bytearray) -> None:
        self.first = first
        self.ids = ids
        """As many times ID characters as items; spaces for what has none."""
        self.codes = codes
        """Each an index into the texts."""


class Results:
    """
    The results of one batch, in order of its items.

    Spans are added in that order, and their codes may change until the answer is made. What an item's
    result says beside its id is one of a few texts, so that a byte is enough.
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._texts: list[tuple[Status, bytes, bytes]] = []
        """Status, and what stands in front of the id and behind it."""
        self._codes: dict[tuple[object, ...], int] = {}
        self._kinds: dict[int, Kind] = {}
        self.count = 0

    def add(self, span: Span) -> None:
        self._spans.append(span)
        self.count += len(span.codes)

    def stored(self, status: Status, durability: Durability) -> int:
        """The code for an item that is stored."""
        return self._code((status, durability), status, {"durability": durability})

    def failed(self, kind: Kind, detail: str, durability: Durability | None = None) -> int:
        """The code for an item that is not stored, or only less safely than was asked for."""
        status: Status = "retry" if kind.retryable else "rejected"
        if len(self._texts) >= _MOST:
            detail = kind.title
        members = {"type": kind.type, "detail": detail}
        if durability is not None:
            members["durability"] = durability
        code = self._code((status, kind.name, detail, durability), status, members)
        self._kinds[code] = kind
        return code

    def _code(self, key: tuple[object, ...], status: Status, members: dict[str, str]) -> int:
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = len(self._texts)
            head = f'{{"status":"{status}","id":"'.encode()
            self._texts.append((status, head, b'",' + orjson.dumps(members)[1:]))
        return code

    def counts(self) -> dict[Status, int]:
        found = dict.fromkeys(STATUSES, 0)
        for code, count in self.outcomes().items():
            found[self._texts[code][0]] += count
        return found

    def outcomes(self) -> dict[int, int]:
        """How many items have each code."""
        found: dict[int, int] = {}
        for span in self._spans:
            for code in set(span.codes):
                found[code] = found.get(code, 0) + span.codes.count(code)
        return found

    def name(self, code: int) -> str:
        """For metrics: accepted, duplicate, or the name of a problem."""
        status = self._texts[code][0]
        return "accepted" if status == "ok" else status if status == "duplicate" else self._kinds[code].name

    def first_retry(self) -> tuple[Kind, str]:
        """Of what kind the first item is that is to be sent again, and why; there must be one."""
        retries = {code for code, text in enumerate(self._texts) if text[0] == "retry"}
        code = next(code for span in self._spans for code in span.codes if code in retries)
        detail: str = orjson.loads(b"{" + self._texts[code][2][2:])["detail"]
        return self._kinds[code], detail

    def render(self, *, failures_only: bool) -> Iterator[bytes]:
        """The members of a JSON array, in pieces of about PIECE bytes; with `failures_only` numbered."""
        pieces: list[bytes] = []
        size = 0
        comma = b""
        for span in self._spans:
            text = self._failures(span) if failures_only else self._all(span)
            if not text:
                continue
            pieces += (comma, text)
            comma = b","
            size += len(text)
            if size > PIECE:
                yield b"".join(pieces)
                pieces, size = [], 0
        yield b"".join(pieces)

    def _all(self, span: Span) -> bytes:
        ids, codes = span.ids, span.codes
        if codes.count(codes[0]) == len(codes) and ids[0] != " ":
            _, head, tail = self._texts[codes[0]]
            between = (tail + b"," + head).decode()
            joined = between.join([ids[at : at + ID] for at in range(0, len(ids), ID)])
            return head + joined.encode() + tail
        return b",".join([self._one(span, n) for n in range(len(codes))])

    def _failures(self, span: Span) -> bytes:
        good = {code for code, text in enumerate(self._texts) if text[0] in ("ok", "duplicate")}
        if good.issuperset(span.codes):
            return b""
        return b",".join(
            [
                b'{"item":%d,' % (span.first + n) + self._one(span, n)[1:]
                for n, code in enumerate(span.codes)
                if code not in good
            ]
        )

    def _one(self, span: Span, n: int) -> bytes:
        status, head, tail = self._texts[span.codes[n]]
        message_id = span.ids[n * ID : (n + 1) * ID]
        if message_id == NO_ID:
            return b'{"status":"%s",' % status.encode() + tail[2:]
        return head + message_id.encode() + tail
