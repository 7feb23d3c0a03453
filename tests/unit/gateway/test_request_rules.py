"""Heads of requests that may be read in two ways are refused; all others are let through."""

from __future__ import annotations

import pytest

from gateway.request_rules import MAX_HEAD, MAX_HEADERS, Ambiguous, TooManyHeaders, check

HOST = [(b"host", b"gateway.example:8080")]
SEND = b"/v1/queues/orders/messages"


@pytest.mark.parametrize(
    "target",
    [
        SEND,
        SEND + b"?a=b&c=/../d%20%zz",
        b"/",
        b"/v1/messages/%E2%82%AC",
        b"/v1/forward/billing/a//b/c%2Fd?x=1",
        b"/assets/fonts.v1/.well-known",
        b"/...",
        b"http://gateway.example:8080/v1/queues",
        b"HTTP://GATEWAY.EXAMPLE:8080/v1/queues",
    ],
)
def test_a_target_of_one_meaning_is_let_through(target: bytes) -> None:
    check(b"GET", target, "1.1", HOST)


@pytest.mark.parametrize(
    "target",
    [
        b"/a/../b", b"/a/./b", b"/a/..", b"/.", b"/%2e%2E/b", b"/.%2e/b", b"/v1/forward/x/../y",
        b"/v1/forward/x/%2e%2e/y", b"//a", b"/a//b", b"/a%2fb", b"/a%5Cb", b"/a%00", b"/a\\b",
        b"/a%", b"/a%zz", b"/a#b", b"a", b"*", b"",
        b"/\xc3\xa9", b"http://elsewhere/a", b"http://x@gateway.example:8080/a", b"ftp://gateway.example:8080/a",
        b"http://gateway.example:8080/a/../b", b"http://gateway.example:8080",
    ],
)  # fmt: skip
def test_a_target_of_two_meanings_is_refused(target: bytes) -> None:
    with pytest.raises(Ambiguous):
        check(b"GET", target, "1.1", HOST)


@pytest.mark.parametrize("host", [b"a", b"a:80", b"[::1]:80", b"a_b.c", b"10.0.0.1", b"a:"])
def test_a_host_is_a_host(host: bytes) -> None:
    check(b"GET", b"/", "1.1", [(b"host", host)])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"host", b"a"), (b"host", b"a")],
        *([(b"host", h)] for h in (b"", b"a b", b"a,b", b"a/b", b"u@a", b"a:b", b"[::1", b"a:1:2")),
    ],
)
def test_a_request_for_no_one_host_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Ambiguous):
        check(b"POST", SEND, "1.1", headers)


@pytest.mark.parametrize("value", [b"gzip, chunked", b"identity", b"chunked, chunked", b"", b"chunked;q=1"])
def test_only_plain_chunks_are_taken(value: bytes) -> None:
    check(b"POST", SEND, "1.1", [*HOST, (b"transfer-encoding", b"Chunked")])
    with pytest.raises(Ambiguous):
        check(b"POST", SEND, "1.1", [*HOST, (b"transfer-encoding", value)])
    with pytest.raises(Ambiguous):
        check(b"POST", SEND, "1.1", [*HOST, *[(b"transfer-encoding", b"chunked")] * 2])


def test_old_and_new_versions() -> None:
    check(b"POST", SEND, "1.0", [])
    for version, headers in (
        ("0.9", HOST),
        ("2.0", HOST),
        ("1.0", [*HOST, (b"transfer-encoding", b"chunked")]),
    ):
        with pytest.raises(Ambiguous):
            check(b"POST", SEND, version, headers)


def test_connect_is_never_taken() -> None:
    for target in (b"x:443", SEND, b"/"):
        with pytest.raises(Ambiguous):
            check(b"CONNECT", target, "1.1", HOST)


def test_headers_are_limited_in_number_and_size() -> None:
    most = [*HOST, *[(b"x", b"y")] * (MAX_HEADERS - 1)]
    check(b"POST", SEND, "1.1", most)
    for headers in ([*most, (b"x", b"y")], [*HOST, (b"x", b"y" * MAX_HEAD)]):
        with pytest.raises(TooManyHeaders):
            check(b"POST", SEND, "1.1", headers)
