"""Where one item of a batch ends and the next begins, in a body that arrives in pieces."""

from __future__ import annotations

import io
import re
from typing import Protocol

from gateway.problems import BODY_TOO_LARGE, Kind

Item = bytes | Kind
"""The exact bytes of one item; or why nobody kept it."""


class BrokenBatch(Exception):
    """The body is not a batch of its kind from here on. The text is for its sender."""


class Splitter(Protocol):
    """Cuts a body into items, of which it holds at most one: the last, as far as it is here."""

    @property
    def held(self) -> int:
        """Bytes of the item that is not complete."""
        ...

    def most(self, data: bytes) -> int:
        """How many items may end in `data`, at most."""
        ...

    def feed(self, data: bytes) -> list[Item]:
        """
        The items that end in `data`.

        Raises:
            BrokenBatch: with the items before it as `args[1]`.
        """
        ...

    def drop(self, why: Kind) -> None:
        """Forget the item that is not complete, if there is one; the rest of it is read over."""
        ...

    def finish(self) -> list[Item]:
        """
        The body is at its end: what is left.

        Raises:
            BrokenBatch: it ends in the middle.
        """
        ...


class Lines:
    """
    One item per line (NDJSON). Lines end with LF or CRLF; empty ones are no items.

    What is in a line is nobody's business here.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._carry = bytearray()
        self._dropped: Kind | None = None

    @property
    def held(self) -> int:
        return len(self._carry)

    def most(self, data: bytes) -> int:
        return max(0, len(_lines(data)) - (not data.endswith(b"\n")))

    def feed(self, data: bytes) -> list[Item]:
        # Only what is new is searched, or a long line in many pieces would cost its square.
        if data.find(b"\n") < 0:
            if self._dropped is None:
                self._hold(data)
            return []
        lines = _lines(data)
        rest = b"" if data.endswith(b"\n") else lines.pop()
        first: list[Item] = []
        if self._dropped is not None:
            first.append(self._dropped)
            del lines[0]
        elif self._carry:
            lines[0] = bytes(self._carry) + lines[0]
        self._dropped = None
        self._carry = bytearray()
        self._hold(rest)
        longest = max(map(len, lines), default=0)
        if b"\r" in data or (lines and lines[0].endswith(b"\r\n")):
            lines = [line[: -2 if line.endswith(b"\r\n") else -1] for line in lines]
        else:
            lines = [line[:-1] for line in lines]
        if longest <= self._limit:
            return first + [line for line in lines if line]
        return first + [line if len(line) <= self._limit else BODY_TOO_LARGE for line in lines if line]

    def _hold(self, data: bytes) -> None:
        self._carry += data
        if len(self._carry) > self._limit + 1:  # a CR may be the last
            self.drop(BODY_TOO_LARGE)

    def drop(self, why: Kind) -> None:
        if self._carry:
            self._carry = bytearray()
            self._dropped = why

    def finish(self) -> list[Item]:
        return self.feed(b"\n")


def _lines(data: bytes) -> list[bytes]:
    """With their LF; the last may have none."""
    # `bytes.split` and `bytes.count` look at byte after byte; this searches.
    return io.BytesIO(data).readlines()


_STRING = rb'(?:[^"\\]++|\\.)*+'
_OUTSIDE = re.compile(rb'"' + _STRING + rb'("?)|[\[\]{},]', re.DOTALL)
_INSIDE = re.compile(rb'"' + _STRING + rb'("?)|[\[\]{}]', re.DOTALL)
_REST_OF_STRING = re.compile(_STRING + rb'("?)', re.DOTALL)
_SPACE = b" \t\r\n"
_SLACK = 64
"""Bytes of space that may follow the largest element."""


class Elements:
    """
    The elements of one JSON array, with their bytes as they stand in the text.

    Only the ends of elements are looked for: brackets, commas between them, and strings, in which
    neither counts. Whether an element is JSON by itself is for others to find out.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._carry = bytearray()
        self._dropped: Kind | None = None
        self._place = "before"
        """Before the array, `inside` or `after` it."""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._first = True

    @property
    def held(self) -> int:
        return len(self._carry)

    def most(self, data: bytes) -> int:
        return data.count(b",") + data.count(b"]")

    def feed(self, data: bytes) -> list[Item]:
        items: list[Item] = []
        at = 0
        if self._place == "before":
            stripped = data.lstrip(_SPACE)
            if not stripped:
                return items
            if stripped[:1] != b"[":
                raise BrokenBatch("the body is not a JSON array: it does not begin with “[”", items)
            at = len(data) - len(stripped) + 1
            self._place = "inside"
        if self._place == "inside":
            at = self._scan(data, at, items)
        if self._place == "after" and data[at:].strip(_SPACE):
            raise BrokenBatch("something follows the “]” that ends the array", items)
        return items

    def _scan(self, data: bytes, at: int, items: list[Item]) -> int:
        """Go through `data` from `at`; return where the array ended, or the end of the data."""
        start = at
        if self._in_string:
            at = self._rest_of_string(data, at)
        while not self._in_string:
            token = (_INSIDE if self._depth else _OUTSIDE).search(data, at)
            if token is None:
                break
            at = token.end()
            match data[token.start()]:
                case 0x22:  # "
                    self._string_ended(data, token)
                case 0x5B | 0x7B:  # [ {
                    self._depth += 1
                case 0x2C:  # , and at no depth
                    self._end(data[start : at - 1], items)
                    start = at
                case _ if self._depth:  # ] }
                    self._depth -= 1
                case 0x5D:
                    self._place = "after"
                    self._end(data[start : at - 1], items, last=True)
                    return at
                case _:
                    raise BrokenBatch("a “}” without its “{”", items)
        if self._dropped is None:
            self._carry += data[start:]
            if len(self._carry) > self._limit + _SLACK:
                self._carry = self._carry.lstrip(_SPACE)
                if len(self._carry) > self._limit + _SLACK:
                    self.drop(BODY_TOO_LARGE)
        return len(data)

    def _rest_of_string(self, data: bytes, at: int) -> int:
        if self._escaped and data:
            self._escaped = False
            at += 1
        token = _REST_OF_STRING.match(data, at)
        assert token is not None, "it matches nothing, too"
        self._in_string = False
        self._string_ended(data, token)
        return token.end()

    def _string_ended(self, data: bytes, token: re.Match[bytes]) -> None:
        if not token[1]:
            # The data ends in the string, or even between a backslash and what it escapes.
            self._in_string = True
            self._escaped = token.end() < len(data)

    def _end(self, piece: bytes, items: list[Item], *, last: bool = False) -> None:
        if self._dropped is not None:
            items.append(self._dropped)
        else:
            element = (bytes(self._carry) + piece if self._carry else piece).strip(_SPACE)
            if element:
                items.append(element if len(element) <= self._limit else BODY_TOO_LARGE)
            elif not (last and self._first):
                raise BrokenBatch("an element is missing before a “,” or “]”", items)
        self._first = False
        self._dropped = None
        self._carry = bytearray()

    def drop(self, why: Kind) -> None:
        if self._carry.strip(_SPACE):
            self._carry = bytearray()
            self._dropped = why

    def finish(self) -> list[Item]:
        if self._place != "after":
            raise BrokenBatch("the body ends before the array does", [])
        return []
