"""
What the parser lets through and we do not: requests that two programs on their way may read differently.

A proxy in front and we must agree on where a request ends, what it is for and to whom it is
addressed; else somebody can hide a second request in the body of a first one (request smuggling), or
reach past the proxy's rules. RFC 9112, sections 2.3, 3.2, 6.1 and 11.2, and RFC 3986, section 6.2.2.
"""

from __future__ import annotations

import functools
import re

MAX_HEAD = 64 * 2**10
"""Bytes of request line and headers."""
MAX_HEADERS = 128
"""Header fields. Proxies add theirs; browsers and webhooks send twenty or so."""

_SEGMENT = rb"[A-Za-z0-9_~!$&'()*+,;=:@-][A-Za-z0-9._~!$&'()*+,;=:@-]*"
_PLAIN = re.compile(rb"/(?:%(s)b(?:/%(s)b)*/?)?(?:\?[!-~]*)?" % {b"s": _SEGMENT})
"""The target of nearly every request: nothing escaped, no empty segment, none that begins with a dot."""

_PATH = re.compile(rb"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_DOTS = re.compile(rb"(?i)/(?:\.|%2e){1,2}(?:/|$)")
_MISLEADING = re.compile(rb"(?i)//|%(?:2f|5c|00)")
_ABSOLUTE = re.compile(rb"(?i)https?://([^/?#@]+)(/[^#]*)")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")

MAX_REMEMBERED = 256
"""Bytes of an address: long ones, made up by somebody, must not fill the memory."""

FORWARDED = b"/v1/forward/"
"""Below it the path is another program's, whose segments may be empty or hold escaped slashes."""


class TooManyHeaders(Exception):
    """There are more, or larger ones, than are taken; the text is for the client."""


class Ambiguous(Exception):
    """The request is not valid, or could be read in two ways; the text is for the client."""


def check(method: bytes, target: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """
    Return if the head of a request has one meaning. Names of headers are in lower case.

    Raises:
        Ambiguous, TooManyHeaders.
    """
    size = len(target)
    host: bytes | None = None
    chunked = False
    for name, value in headers:
        size += len(name) + len(value)
        if name == b"host":
            if host is not None:
                raise Ambiguous("There are two Host headers.")
            host = value
        elif name == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise Ambiguous("Transfer-Encoding: only “chunked” is taken, once.")
            chunked = True
    if size > MAX_HEAD:
        raise TooManyHeaders(f"The headers are larger than {MAX_HEAD} bytes.")
    if len(headers) > MAX_HEADERS:
        raise TooManyHeaders(f"There are {len(headers)} headers; at most {MAX_HEADERS} are taken.")
    if version == "1.1":
        if host is None:
            raise Ambiguous("There is no Host header.")
    elif version != "1.0":
        raise Ambiguous("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    elif chunked:
        raise Ambiguous("HTTP/1.0 has no Transfer-Encoding.")
    if len(target) + len(host or b"") <= MAX_REMEMBERED:
        _known_address(method, target, host)
    else:
        _check_address(method, target, host)


def _check_address(method: bytes, target: bytes, host: bytes | None) -> None:
    """
    Raises:
        Ambiguous
    """
    if method == b"CONNECT":
        raise Ambiguous("This is no proxy: CONNECT is not taken.")
    if host == b"":
        raise Ambiguous("The Host header is empty.")
    if host is not None and not _HOST.fullmatch(host):
        raise Ambiguous("The Host header is no host.")
    if not _PLAIN.fullmatch(target):
        _check_target(method, target, host)


_known_address = functools.lru_cache(maxsize=1024)(_check_address)
"""Nearly all requests have one of a few addresses. What is wrong is not remembered: it raises."""


def _check_target(method: bytes, target: bytes, host: bytes | None) -> None:
    if target == b"*" and method == b"OPTIONS":
        return
    if absolute := _ABSOLUTE.fullmatch(target):
        if host is not None and absolute[1].lower() != host.lower():
            raise Ambiguous("The address and the Host header name two hosts.")
        target = absolute[2]
    path = target.partition(b"?")[0]
    if not _PATH.fullmatch(path):
        raise Ambiguous("The path has characters that must be escaped, or escapes that are none.")
    if _DOTS.search(path):
        raise Ambiguous("The path has segments of dots; write the path that is meant.")
    if _MISLEADING.search(path) and not path.startswith(FORWARDED):
        raise Ambiguous("The path has an empty segment, or an escaped slash, backslash or null.")
