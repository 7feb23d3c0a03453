"""
What nobody should send: seeded requests, each broken in one way.

A case says how many whole requests stand before the broken one: those may be answered 202. All else must be
a 4xx problem document or the end of the connection.
"""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from backports import zstd

TARGET = "/v1/queues/orders/messages"
LIMIT = 900_000
"""Largest body that the gateway takes."""

GOOD = f"POST {TARGET} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\ngood".encode()


@dataclass(frozen=True)
class Case:
    """One connection's worth of bytes."""

    kind: str
    pieces: list[bytes]
    good: int = 0
    """Whole requests before the broken one."""
    pause: float = 0.0
    """Seconds between the pieces."""
    end: Literal["sentinel", "hang up", "wait"] = "sentinel"
    """What follows the last piece: a request that must be answered in its turn, or not at all, and ends the
    connection; nothing, our side being closed; nothing, until the gateway loses patience."""


def head(*lines: str, target: str = TARGET, method: str = "POST", version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {target} {version}", "Host: x", *lines, "", ""]).encode("latin-1")


def chunked(*chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + last


def _noise(rng: random.Random, most: int = 200) -> bytes:
    return rng.randbytes(rng.randint(1, most))


def _word(rng: random.Random, most: int = 12) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, most)))


def _case_of(rng: random.Random, word: str) -> str:
    return "".join(rng.choice((c.upper(), c.lower())) for c in word)


# ---- the ways to be broken


def truncated(rng: random.Random) -> Case:
    """Cut off somewhere, and gone."""
    in_chunks = head("Transfer-Encoding: chunked") + chunked(b"good", b"more")
    whole = rng.choice((GOOD, in_chunks, head("Content-Length: 5000") + b"x" * 5000))
    cut = whole[: rng.randint(1, len(whole) - 1)]
    return Case("truncated", [cut], end="hang up")


def garbage(rng: random.Random) -> Case:
    odd = (33, 65, 90, 0, 10, 13, 32, 127, 200, 255)
    noise = bytes(rng.choice(odd) for _ in range(rng.randint(1, 300)))
    noise = rng.choice((noise, _noise(rng), b"\x16\x03\x01" + _noise(rng)))
    return Case("garbage", [noise + b"\r\n\r\n"], end="hang up")


def request_line(rng: random.Random) -> Case:
    line = rng.choice(
        (
            f"post {TARGET} HTTP/1.1",
            f"POST{TARGET} HTTP/1.1",
            f"POST\t{TARGET}\tHTTP/1.1",
            f"POST {TARGET} HTTP/1.1 x",
            f"POST {TARGET} HTTP/{rng.choice(('0.9', '1.2', '2.0', '3.0', '1', '11', '1.10', 'x'))}",
            f"POST {TARGET} {_word(rng)}/1.1",
            f"POST {TARGET}",
            f"{_word(rng).upper()}Q {TARGET} HTTP/1.1",
            f" POST {TARGET} HTTP/1.1",
            "PRI * HTTP/2.0",
            f"POST {TARGET} HTTP/1.1\rX: y",
        )
    )
    return Case("request line", [f"{line}\r\nHost: x\r\nContent-Length: 4\r\n\r\ngood".encode("latin-1")])


def content_length(rng: random.Random) -> Case:
    value = rng.choice(
        (
            "-1",
            "+4",
            "0x4",
            "4,4",
            "4, 5",
            "4 4",
            "4.0",
            "4e0",
            "four",
            "",
            "9" * rng.randint(19, 60),
            "4\x0b",
            "\xb4",
            "4;",
            "--4",
            f"-{rng.randint(1, 10**9)}",
            "1_0",
            "NaN",
            "4\x00",
        )
    )
    return Case("Content-Length", [head(f"Content-Length: {value}") + b"good"])


def two_lengths(rng: random.Random) -> Case:
    first, second = rng.choice(((4, 5), (5, 4), (4, 0), (0, 4), (4, 4), (40, 4)))
    both = head(f"Content-Length: {first}", f"{_case_of(rng, 'content-length')}: {second}")
    return Case("two Content-Lengths", [both + b"good" + GOOD])


def length_and_chunks(rng: random.Random) -> Case:
    """CL.TE and TE.CL: two proxies that disagree about the end would let the rest be a request of its own."""
    lines = [f"Content-Length: {rng.choice((0, 4, 5, 60))}", f"{_case_of(rng, 'transfer-encoding')}: chunked"]
    rng.shuffle(lines)
    return Case("length and chunks", [head(*lines) + chunked(b"good") + GOOD])


def transfer_encoding(rng: random.Random) -> Case:
    value = rng.choice(
        (
            "xchunked",
            "chunked, identity",
            "identity",
            "chunked;x=1",
            "chunked, gzip",
            "chunk",
            "chunked\x0b",
            "\x0bchunked",
            '"chunked"',
            "gzip",
            "chunked,",
            "chunked, chunked",
            "cow",
            "",
            "\x00chunked",
            "chunked chunked",
            "gzip, chunked",
            "identity, chunked",
        )
    )
    return Case("Transfer-Encoding", [head(f"Transfer-Encoding: {value}") + chunked(b"good") + GOOD])


def hidden_encoding(rng: random.Random) -> Case:
    line = rng.choice(
        (
            "Transfer-Encoding : chunked",
            " Transfer-Encoding: chunked",
            "Transfer-Encoding\t: chunked",
            "X: y\r\n Transfer-Encoding: chunked",
            "Transfer-Encoding:\r\n chunked",
            "Transfer-Encoding\r\n: chunked",
            "X: y\nTransfer-Encoding: chunked",
            "X: y\rTransfer-Encoding: chunked",
            "Transfer-Encoding\x00: chunked",
            "Foo: bar\r\n\tbaz: quux",
            ": chunked",
            "Transfer Encoding: chunked",
        )
    )
    return Case("hidden header", [head(line, "Content-Length: 4") + b"good"])


def old_chunks(rng: random.Random) -> Case:
    """HTTP/1.0 has no chunks: who sends some is confused, or hopes that we are."""
    old = head("Transfer-Encoding: chunked", version="HTTP/1.0")
    return Case("chunks in HTTP/1.0", [old + chunked(b"good")])


def chunk_framing(rng: random.Random) -> Case:
    body = rng.choice(
        (
            b"xyz\r\ngood\r\n0\r\n\r\n",
            b"+4\r\ngood\r\n0\r\n\r\n",
            b"0x4\r\ngood\r\n0\r\n\r\n",
            b"-4\r\ngood\r\n0\r\n\r\n",
            b"4\r\ngoodX\r\n0\r\n\r\n",
            b"4\r\ngo\r\n0\r\n\r\n",
            b"F" * 17 + b"\r\ngood\r\n0\r\n\r\n",
            b"\r\ngood\r\n0\r\n\r\n",
            b"4\ngood\n0\n\n",
            b"4\r\ngood0\r\n\r\n",
            b"4\r\ngood\n0\r\n\r\n",
            b"4 4\r\ngood\r\n0\r\n\r\n",
            b"4\rgood\r\n0\r\n\r\n",
            b"4\x00\r\ngood\r\n0\r\n\r\n",
            b"4\r\ngood\r\n0\r\nnot a trailer\r\n\r\n",
            b"4,4\r\ngood\r\n0\r\n\r\n",
            b";x\r\ngood\r\n0\r\n\r\n",
        )
    )
    return Case("chunk framing", [head("Transfer-Encoding: chunked") + body])


def header_syntax(rng: random.Random) -> Case:
    line = rng.choice(
        (
            f"{_word(rng)} no colon",
            f"X{chr(rng.choice((0, 1, 7, 8, 11, 12, 31, 127)))}: y",
            "X: a\x00b",
            "X: a\rb",
            f"X: a{chr(rng.choice((0, 1, 7, 8, 11, 12, 31, 127)))}b",
            "X@: y",
            "X(): y",
            "\xe9: y",
            ": empty name",
            "X\r: y",
            "X y: z",
            '"X": y',
            "X: y\r\n folded",
            "X: y\r\n\tfolded",
            "X[1]: y",
            "X=y: z",
        )
    )
    return Case("header syntax", [head(line, "Content-Length: 4") + b"good"])


def host(rng: random.Random) -> Case:
    one = rng.choice(("x y", "a/b", "a@b", "x:port", "", "x, y", "[::1", "x:1:2", "[x]", "http://x"))
    hosts = rng.choice(((), ("x", "y"), ("x", "x"), (one,)))
    lines = [f"POST {TARGET} HTTP/1.1", *(f"Host: {h}" for h in hosts), "Content-Length: 4", "", ""]
    return Case("Host", ["\r\n".join(lines).encode() + b"good"])


def line_ends(rng: random.Random) -> Case:
    lines = [f"POST {TARGET} HTTP/1.1", "Host: x", "Content-Length: 4", "X-A: b"]
    ends = ["\r\n"] * 4
    ends[rng.randrange(4)] = rng.choice(("\n", "\r", "\n\r", "\r\r\n"))
    whole = "".join(a + b for a, b in zip(lines, ends, strict=True))
    return Case("line ends", [whole.encode() + rng.choice((b"\r\n", b"\n")) + b"good"])


def path(rng: random.Random) -> Case:
    target = rng.choice(
        (
            "/v1/queues/orders/../orders/messages",
            "/v1/queues/./orders/messages",
            "/v1//queues/orders/messages",
            "//v1/queues/orders/messages",
            "/v1/queues/orders/messages/",
            "/v1/queues/orders//messages",
            "/v1/queues/orders%2fmessages",
            "/v1/queues/%6frders/messages",
            "/v1/queues/orders/%6dessages",
            "/v1/queues/%2e%2e/queues/orders/messages",
            "/%76%31/queues/orders/messages",
            "\\v1\\queues\\orders\\messages",
            "/v1/queues/orders\\messages",
            "/v1/queues/orders%5cmessages",
            "/v1/queues/orders%00/messages",
            "/v1/queues/orders/messages%00",
            "/v1/queues/orders/messages;x=y",
            "/v1/queues/orders;x/messages",
            "/v1/queues/orders/messages#x",
            "/v1/queues/orders%/messages",
            "/v1/queues/%zz/messages",
            "v1/queues/orders/messages",
            "/v1/queues/ord\xe9rs/messages",
            "/v1/queues/orders/messages%20",
            "/..%2f..%2fetc/passwd",
            "/%252e%252e/",
            "/v1/queues/ORDERS/messages",
            "/V1/queues/orders/messages",
            "*",
            "http://",
            "http:///v1/queues/orders/messages",
            "http://elsewhere/v1/queues/orders/messages",
            "https://x@elsewhere" + TARGET,
            "file:///etc/passwd",
            "/v1/queues/" + "a" * rng.randint(64, 3000) + "/messages",
            "/" * rng.randint(2, 500),
            "?" + TARGET,
            "/v1/queues/orders/messages/../../../../livez",
            "/%2e%2e/%2e%2e/livez",
            "/livez/../v1/queues/orders/messages",
            "/v1/sources/../queues/orders/messages",
            "/v1/queues/\x00/messages",
            "/v1/queues/\t/messages",
            "/v1/queues/\x7f/messages",
        )
    )
    return Case("path", [head("Content-Length: 4", target=target) + b"good"])


def connect(rng: random.Random) -> Case:
    target = rng.choice(("x:80", TARGET, "/", "*", "http://x/"))
    return Case("CONNECT", [head("Content-Length: 4", target=target, method="CONNECT") + b"good" + GOOD])


def header_flood(rng: random.Random) -> Case:
    lines = rng.choice(
        (
            [f"X-{n}: y" for n in range(rng.randint(200, 3000))],
            [f"X: {'y' * rng.randint(70_000, 250_000)}"],
            ["a" * rng.randint(70_000, 200_000) + ": x"],
            [f"Forebay-Meta-{n}: {'v' * 400}" for n in range(65)],
            ["Cookie: a=b"] * rng.randint(200, 2000),
        )
    )
    return Case("header flood", [head(*lines, "Content-Length: 4") + b"good"])


def long_target(rng: random.Random) -> Case:
    target = f"{TARGET}?{'q' * rng.randint(70_000, 200_000)}"
    return Case("long target", [head("Content-Length: 4", target=target) + b"good"])


def trailer_flood(rng: random.Random) -> Case:
    """Many small ones, one that is large, or the like behind the size of a chunk."""
    begun = head("Transfer-Encoding: chunked") + b"4\r\ngood\r\n"
    flood = rng.choice(
        (
            b"0\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(rng.randint(700, 2000))),
            b"0\r\nX: " + b"y" * rng.randint(600_000, 900_000),
            b"4;" + b"y" * rng.randint(600_000, 900_000) + b"\r\ngood\r\n0\r\n",
        )
    )
    return Case("trailer flood", [begun + flood + b"\r\n\r\n"])


def oversized(rng: random.Random) -> Case:
    announced = head(f"Content-Length: {rng.choice((LIMIT + 1, LIMIT * 2, 2**31, 2**32 + 4, 2**62))}")
    if rng.random() < 0.9:
        return Case("oversized", [announced + b"x" * rng.randint(0, 5000)])
    return Case("oversized", [head("Transfer-Encoding: chunked"), *[chunked(b"x" * 60_000, last=b"")] * 16])


_BOMBS: list[tuple[str, bytes]] = []


def bomb(rng: random.Random) -> Case:
    """Small here, large there."""
    if not _BOMBS:
        zeros = bytes(8 * 2**20)
        deep = gzip.compress(zeros)
        _BOMBS.extend(
            (
                ("gzip", deep),
                ("gzip", deep * 8),
                ("x-gzip", deep),
                ("zstd", zstd.compress(zeros)),
                ("zstd", zstd.compress(zeros) * 100),
            )
        )
    coding, body = rng.choice(_BOMBS)
    return Case("bomb", [head(f"Content-Encoding: {coding}", f"Content-Length: {len(body)}") + body])


def broken_compression(rng: random.Random) -> Case:
    good = gzip.compress(b"good" * 1000)
    coding, body = rng.choice(
        (
            ("gzip", good[: rng.randint(1, len(good) - 1)]),
            ("gzip", b"not compressed"),
            ("gzip", good + b"trailing"),
            ("zstd", good),
            ("zstd", b"\x28\xb5\x2f\xfd" + rng.randbytes(40)),
            ("gzip, gzip", gzip.compress(good)),
            ("br", b"good"),
            ("deflate", zlib.compress(b"good")),
            ("gzip", b""),
            (_word(rng) + "q", b"good"),
        )
    )
    return Case(
        "broken compression", [head(f"Content-Encoding: {coding}", f"Content-Length: {len(body)}") + body]
    )


def our_headers(rng: random.Random) -> Case:
    line = rng.choice(
        (
            "Idempotency-Key:",
            f"Idempotency-Key: {'k' * 256}",
            "Idempotency-Key: a b",
            "Idempotency-Key: \xe9",
            "Idempotency-Key: a\r\nIdempotency-Key: b",
            "Forebay-Delay: soon",
            "Forebay-Delay: -1",
            "Forebay-TTL: 0",
            "Forebay-TTL: 1e9",
            "Forebay-Deliver-At: tomorrow",
            "Forebay-Deliver-At: 2027-01-01",
            "Forebay-Nonsense: 1",
            "Forebay-Meta-: x",
            "Forebay-Meta-Authorization: x",
            "Prefer: durability=certain",
            f"Forebay-Ordering-Key: {'k' * 256}",
            "Forebay-Meta-A: \xff",
            f"Content-Type: {'x' * 300}",
        )
    )
    return Case("our headers", [head(line, "Content-Length: 4") + b"good"])


def batch(rng: random.Random) -> Case:
    """Of which no item can be taken."""
    kind, body = rng.choice(
        (
            ("application/json", b"[" * rng.randint(1, 5000)),
            ("application/json", b'["' + b"\\" * rng.randint(1, 300)),
            ("application/json", b"{" + _noise(rng)),
            ("application/json", b"[%s]" % b",".join([b"tru"] * rng.randint(1, 500))),
            ("application/json", b"[," + _noise(rng)),
            ("application/x-ndjson", b"x" * (LIMIT + rng.randint(1, 5000))),
            ("application/vnd.forebay.batch+ndjson", b"\n".join([b"[{}"] * rng.randint(1, 500))),
            (
                "application/vnd.forebay.batch+ndjson",
                b'{"body":1,"body":1,"x":' + b"[" * rng.randint(1, 3000),
            ),
            ("application/vnd.forebay.batch+ndjson", b'{"body_base64":"%s?"}' % (b"A" * rng.randint(0, 90))),
            ("application/cloudevents-batch+json", b'[{"specversion":"1.0","id":"\\ud800"}]'),
            ("application/cloudevents-batch+json", b'[{"specversion":1},[],0,"x",null]'),
            ("application/" + _word(rng), b"1\n"),
        )
    )
    target = TARGET.replace("messages", "batch")
    lines = [f"Content-Type: {kind}"]
    if rng.random() < 0.3:
        lines.append("Content-Encoding: gzip")
        body = gzip.compress(body, 1)[: None if rng.random() < 0.5 else -rng.randint(1, 8)]
    if rng.random() < 0.5:
        return Case("batch", [head(*lines, f"Content-Length: {len(body)}", target=target) + body])
    cut = rng.randint(0, len(body) - 1)
    pieces = chunked(*[piece for piece in (body[:cut], body[cut:]) if piece])
    return Case("batch", [head(*lines, "Transfer-Encoding: chunked", target=target) + pieces])


def pipelined(rng: random.Random) -> Case:
    """Good ones, then a broken one, and another good one that must not be reached."""
    good = rng.randint(1, 5)
    broken = rng.choice(
        (
            b"GARBAGE\r\n\r\n",
            head("Content-Length: x"),
            head("Content-Length: 4", "Transfer-Encoding: chunked"),
            head("Transfer-Encoding: chunked") + b"zz\r\n",
            _noise(rng, 40) + b"\r\n\r\n",
            head("X : y", "Content-Length: 0"),
        )
    )
    whole = GOOD * good + broken + GOOD
    at = rng.randint(1, len(whole) - 1)
    return Case("pipelined", [whole[:at], whole[at:]] if rng.random() < 0.5 else [whole], good=good)


def in_pieces(rng: random.Random) -> Case:
    """Another broken one, a few bytes at a time."""
    makers = (content_length, transfer_encoding, hidden_encoding, chunk_framing, header_syntax, path)
    case = rng.choice(makers)(rng)
    data = b"".join(case.pieces)
    size = rng.randint(1, 9)
    pieces = [data[i : i + size] for i in range(0, min(len(data), 600), size)]
    return Case(f"{case.kind} in pieces", pieces)


def elsewhere(rng: random.Random) -> Case:
    """Another broken one, at another address."""
    framing = (content_length, two_lengths, length_and_chunks, transfer_encoding, hidden_encoding, old_chunks)
    rest = (chunk_framing, header_syntax, line_ends, oversized, bomb, truncated)
    case = rng.choice(framing + rest)(rng)
    address = rng.choice(
        (
            b"/v1/queues/orders/batch",
            b"/v1/sources/shop",
            b"/v1/forward/billing/invoices",
            b"/v1/messages/0198f3c2-0000-7000-8000-000000000000",
            b"/livez",
        )
    )
    pieces = [piece.replace(TARGET.encode(), address) for piece in case.pieces]
    return Case(f"{case.kind} elsewhere", pieces, end=case.end)


def slow(rng: random.Random) -> Case:
    """Never ends, and is not in a hurry."""
    whole = (head("Content-Length: 800000"), head("Transfer-Encoding: chunked"))
    begun = rng.choice((b"", b"POST /v1", head()[:-2], *whole))
    return Case("slow", [begun, *[b"x"] * 40], pause=0.5, end="wait")


KINDS: list[tuple[Callable[[random.Random], Case], int]] = [
    (truncated, 10),
    (garbage, 8),
    (request_line, 8),
    (content_length, 8),
    (two_lengths, 4),
    (length_and_chunks, 6),
    (transfer_encoding, 8),
    (hidden_encoding, 6),
    (old_chunks, 2),
    (chunk_framing, 8),
    (header_syntax, 8),
    (host, 4),
    (line_ends, 6),
    (path, 16),
    (connect, 3),
    (header_flood, 2),
    (long_target, 1),
    (trailer_flood, 1),
    (oversized, 2),
    (bomb, 2),
    (broken_compression, 6),
    (our_headers, 6),
    (batch, 8),
    (pipelined, 8),
    (in_pieces, 4),
    (elsewhere, 12),
]
"""With how many of each there are; `slow` ones are sent beside them."""


def cases(count: int, seed: int, *, slow_ones: int) -> Iterator[Case]:
    """`slow_ones` first, since they take longest; then `count` of all other kinds."""
    rng = random.Random(seed)
    for _ in range(slow_ones):
        yield slow(rng)
    makers, weights = zip(*KINDS, strict=True)
    for _ in range(count):
        yield rng.choices(makers, weights)[0](rng)
