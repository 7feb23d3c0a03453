"""
What a message becomes in a row, so that no message is poison to our tables.

The body is kept byte for byte. Everything else is text, and databases refuse two
things that a string may hold: NUL and lone surrogates. In keys, content types,
headers and reasons each of them becomes U+FFFD, the replacement character. HTTP
allows neither in a header, so only what another program put on the broker is
ever changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import orjson

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NUL_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def clean(text: str) -> str:
    """`text` with U+FFFD in place of what no database holds."""
    return _UNSTORABLE.sub("\ufffd", text)


clean_name = lru_cache(maxsize=1024)(clean)
"""As `clean`, for what few messages differ in: queues and content types."""


def clean_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {clean(name): clean(value) for name, value in headers.items()}


def text_bytes(text: str) -> bytes:
    """`clean(text)` in UTF-8."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return clean(text).encode()
    return encoded if b"\x00" not in encoded else clean(text).encode()


name_bytes = lru_cache(maxsize=1024)(text_bytes)
"""As `text_bytes`, for what few messages differ in: queues and content types."""


def headers_json(headers: Mapping[str, str]) -> bytes:
    """`headers`, cleaned, as a JSON object."""
    try:
        encoded = orjson.dumps(headers if type(headers) is dict else dict(headers))
    except TypeError:  # lone surrogates
        return orjson.dumps(clean_headers(headers))
    # A backslash before the u makes this a false alarm, which cleaning does not mind.
    return orjson.dumps(clean_headers(headers)) if b"\\u0000" in encoded else encoded


def headers_jsons(headers: Sequence[Mapping[str, str]]) -> list[bytes]:
    """
    `headers_json` of each, in one call.

    A call for each would cost twenty times as much: orjson begins with a kilobyte for every text, and
    giving back the rest of those that are kept is what is slow.
    """
    try:
        encoded = orjson.dumps([h if type(h) is dict else dict(h) for h in headers])
    except TypeError:
        return [headers_json(h) for h in headers]
    # They hold no objects, so that only in a value there could be more of these: then it is not as many.
    texts = encoded[2:-2].split(b"},{")
    if len(texts) != len(headers) or b"\\u0000" in encoded:
        return [headers_json(h) for h in headers]
    return [b"{%b}" % text for text in texts]


@lru_cache(maxsize=1024)
def says_json(content_type: str) -> bool:
    """Does the producer call the body JSON: application/json or any type ending in +json."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def holds_json(body: bytes) -> bool:
    """
    Is `body` JSON that a database's JSON type takes.

    Refuses what PostgreSQL's jsonb refuses: NUL, lone surrogates, NaN, bytes that are
    not UTF-8, thousands of levels; also numbers beyond a double, to be the same
    everywhere. Costs 0.5 to 2 µs for 500 bytes, most of it for objects that nobody
    looks at; no parser at hand checks without building them.
    """
    try:
        orjson.loads(body)
    except ValueError:
        return False
    return b"\\" not in body or _NUL_ESCAPE.search(body) is None
