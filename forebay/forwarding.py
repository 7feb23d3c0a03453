"""
What a forwarded request is as a message: the words that gateway and consumers share.

The method and the target (path and query) travel among the message's headers. Their names begin with
a colon, which no header of a request can: a producer cannot send them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

METHOD = ":method"
TARGET = ":target"

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
"""Those that can be forwarded. CONNECT and TRACE are about the connection, OPTIONS asks without effect."""

MAX_TARGET = 8_000
"""Bytes of path and query together."""

_VISIBLE = re.compile(r"[\x21-\x7e]*")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NOT_IN_SEGMENTS = re.compile(r"[/\\\x00-\x1f\x7f]")
_DECODINGS = 5


def is_forwarded(headers: Mapping[str, str]) -> bool:
    """Whether a message with these headers is a request that was kept."""
    return METHOD in headers


def checked_target(path: str, query: str) -> str:
    """
    Path and query as they are sent on, behind the base URL; an empty path is the base itself.

    Nothing is decoded or normalised: the service gets the characters that were sent. What could lead out
    of the base path at any server, however often it decodes, is refused: dot segments, also escaped or
    before a `;`, slashes and backslashes in disguise, empty segments (`//host` is another host where URLs
    are joined).

    Raises:
        ValueError: with what is the matter, as a clause.
    """
    if len(path) + len(query) > MAX_TARGET:
        raise ValueError(f"path and query have more than {MAX_TARGET} characters")
    if not _VISIBLE.fullmatch(path) or not _VISIBLE.fullmatch(query) or "#" in path + query or "?" in path:
        raise ValueError("path or query hold characters that must be escaped")
    if path and not path.startswith("/"):
        raise ValueError("the path does not begin with a slash")
    if _BROKEN_ESCAPE.search(path):
        raise ValueError("the path holds a % that begins no escape")
    segments = path.split("/")[1:]
    for place, segment in enumerate(segments):
        if not segment and place < len(segments) - 1:
            raise ValueError("the path has an empty segment (//)")
        _check_segment(segment)
    return f"{path}?{query}" if query else path


def _check_segment(segment: str) -> None:
    for _ in range(_DECODINGS):
        if _NOT_IN_SEGMENTS.search(segment):
            raise ValueError(
                "a segment of the path holds a slash, a backslash or a control character, escaped"
            )
        if segment.partition(";")[0] in (".", ".."):
            raise ValueError("the path has a dot segment (. or ..)")
        decoded = unquote(segment, errors="replace")
        if decoded == segment:
            return
        segment = decoded
    raise ValueError("a segment of the path is escaped again and again")
