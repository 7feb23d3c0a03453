"""
A request's head that a connection has sent before, but for its Content-Length and its Idempotency-Key.

A client that keeps its connection sends the same headers with every message. What the parser and the
header reader made of them the first time holds for the same bytes again: neither looks at anything
else between two requests. The two values that differ are read here, and only in a form that
says the same in every position of a head: digits, and the letters of a plain key.
"""

from __future__ import annotations

import re

from gateway.answer import RawHeaders
from gateway.callers import Caller
from gateway.headers import PLAIN_KEY, Meta

MAX_REMEMBERED = 4096
"""Bytes of a head that is worth its memory, once per connection."""

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: ([0-9]{1,9})(?=\r\n)")
_KEY = re.compile(rb"(?i)\r\nidempotency-key: ([a-zA-Z0-9_.:/-]{1,255})(?=\r\n)")
_END = b"\r\n\r\n"
_LONGEST = 256
"""One more than either value may have."""


class KnownHead:
    """
    The pieces of a head between the values that differ, and what it means.

    `learn` makes one of a head that was parsed; its `meta` must not be changed afterwards. `headers`,
    `meta` and `queue` are what the parser and the header reader made of it.
    """

    __slots__ = (
        "_after",
        "_after_both",
        "_first",
        "_key_first",
        "_keyed",
        "_length",
        "_length_text",
        "caller",
        "era",
        "headers",
        "meta",
        "queue",
    )

    def __init__(
        self, pieces: list[bytes], keyed: bool, key_first: bool, queue: str, headers: RawHeaders, meta: Meta
    ) -> None:
        self._first = pieces[0]
        self._after = pieces[1]
        self._after_both = pieces[2] if keyed else b""
        self._key_first = key_first
        self._keyed = keyed
        self._length_text = b""
        self._length = 0
        """The Content-Length that was read last: often it is the next one's, too."""
        self.queue = queue
        self.headers = headers
        self.meta = meta
        self.caller: Caller | None = None
        self.era: object = None
        """Whose API key is in it, and of which era of the keyring; None: that has to be looked up."""

    def match(self, data: bytes) -> tuple[bytes, str | None] | None:
        """
        Body and idempotency key, if what is read is exactly one whole request with this head.

        No key: the head has none, or it is part of what must be the same.
        """
        first = self._first
        if not data.startswith(first):
            return None
        key: bytes | None = None
        begin = len(first)
        end = data.find(b"\r", begin, begin + _LONGEST)
        length, after = data[begin:end], self._after
        if self._keyed:
            if end < 0 or not data.startswith(after, end):
                return None
            begin = end + len(after)
            end = data.find(b"\r", begin, begin + _LONGEST)
            key, after = data[begin:end], self._after_both
            if self._key_first:
                key, length = length, key
            if PLAIN_KEY.fullmatch(key) is None:
                return None
        if end < 0 or not data.startswith(after, end):
            return None
        if length != self._length_text:
            if len(length) > 9 or not length.isdigit():
                return None
            self._length_text, self._length = length, int(length)
        body = data[end + len(after) :]
        if len(body) != self._length or not body:
            return None
        return body, None if key is None else key.decode("ascii")


def learn(head: bytes, queue: str, headers: RawHeaders, meta: Meta) -> KnownHead | None:
    """
    The head of a plain request as it was sent, up to and with the empty line; None: it is not worth it.

    `headers` and `meta` are what was made of it, from the same bytes.
    """
    if len(head) > MAX_REMEMBERED or not head.startswith(b"POST /") or head.find(_END) != len(head) - 4:
        return None
    length, key = _LENGTH.search(head), _KEY.search(head)
    if length is None:
        return None
    if key is None or meta.idempotency_key != key[1].decode("ascii"):
        return KnownHead([head[: length.start(1)], head[length.end(1) :]], False, False, queue, headers, meta)
    first, second = (key, length) if key.start() < length.start() else (length, key)
    pieces = [head[: first.start(1)], head[first.end(1) : second.start(1)], head[second.end(1) :]]
    return KnownHead(pieces, True, first is key, queue, headers, meta)
