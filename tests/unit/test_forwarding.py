"""No path leads out of the base that is configured."""

from __future__ import annotations

from urllib.parse import unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.forwarding import MAX_TARGET, checked_target


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("", ""),
        ("/", ""),
        ("/invoices/17", "draft=1&x=%2F..%2F"),
        ("/a%20b/caf%C3%A9/", ""),
        ("/v1/projects/x:cancel;v=2", "q=//"),
        ("/100%25", ""),
        ("/...", ""),
        ("/.well-known/x", ""),
    ],
)
def test_what_is_sent_is_passed_on_character_for_character(path: str, query: str) -> None:
    assert checked_target(path, query) == (f"{path}?{query}" if query else path)


@pytest.mark.parametrize(
    "path",
    [
        "/..", "/a/../b", "/./a", "/a/..;x/b", "/..;/b", "/%2e%2e/b", "/.%2E/b", "/%252e%252e/b",
        "/%25252e%25252e", "//evil.example/a", "/a//b", "/a%2fb", "/a%2F..%2Fb", "/a%252Fb", "/a\\b",
        "/a%5c..", "/a%00b", "/a%0d%0aX: y", "/http://evil.example/", "http://evil.example/", "evil",
        "/a%zz", "/a%", "/a b", "/a#b", "/a?b", "/\x00", "/ä",
    ],
)  # fmt: skip
def test_tricks_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|segment"):
        checked_target(path, "")


@pytest.mark.parametrize("query", ["a b", "a#b", "a\r\nX: y", "ä"])
def test_a_query_cannot_end_the_request_line(query: str) -> None:
    with pytest.raises(ValueError, match="query"):
        checked_target("/a", query)


def test_there_is_an_end_to_it() -> None:
    with pytest.raises(ValueError, match=str(MAX_TARGET)):
        checked_target("/" + "a" * MAX_TARGET, "")


PIECES = ("/", ".", "%2e", "%2E", "%252e", "%2f", "%5c", "\\", ";", "a", "%25", "2e", ":", "@", "?")


@given(st.lists(st.sampled_from(PIECES)))
def test_whatever_passes_stays_below_the_base(pieces: list[str]) -> None:
    path = "".join(pieces)
    try:
        target = checked_target(path, "")
    except ValueError:
        return
    base = "https://b.internal/base"
    url = base + target
    for _ in range(4):
        joined = urlsplit(urljoin("https://b.internal/", url))
        assert (joined.scheme, joined.netloc) == ("https", "b.internal")
        assert joined.path == "/base" or joined.path.startswith("/base/")
        url = unquote(url)
