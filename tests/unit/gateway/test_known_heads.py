"""A head is known only when the parser and the header reader would make the same of it again."""

from __future__ import annotations

from collections.abc import Callable

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.answer import RawHeaders
from gateway.headers import HeaderReader, Meta, Refused
from gateway.known_heads import KnownHead, learn

READER = HeaderReader(["x-kept"])
LINES = [
    b"Host: test",
    b"Content-Type: application/json",
    b"Accept: */*",
    b"X-Kept: a b",
    b"Forebay-Ordering-Key: customer-42",
    b"Forebay-Meta-Source: shop",
    b"X-Content-Length: 7",
    b"X-A: Content-Length: 7",
    b"Prefer: durability=synced",
    b"Idempotency-Key: first",
    b"idempotency-key: first",
    b'Idempotency-Key: "first"',
    b"Idempotency-Key:first",
]


class Parsed:
    """What the parser makes of bytes: the requests that they begin with."""

    def __init__(self, data: bytes) -> None:
        self.requests: list[tuple[bytes, bytes, RawHeaders, bytes]] = []
        self.rest = False
        self._new()
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser = parser
        parser.feed_data(data)

    def _new(self) -> None:
        self.url, self.body = b"", b""
        self.headers: RawHeaders = []
        self.rest = False

    def on_message_begin(self) -> None:
        self._new()
        self.rest = True

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.requests.append((self.parser.get_method(), self.url, self.headers, self.body))
        self.rest = False


def meaning(meta: Meta) -> dict[str, object]:
    return {
        name: getattr(meta, name)
        for name in Meta.__slots__
        if name not in ("content_length", "idempotency_key")
    }


def but_for_what_differs(headers: RawHeaders) -> RawHeaders:
    return [h for h in headers if h[0] not in (b"content-length", b"idempotency-key")]


def head_of(lines: list[bytes], size: int) -> bytes:
    return b"\r\n".join(
        [b"POST /v1/queues/orders/messages HTTP/1.1", *lines, b"Content-Length: %d" % size, b"", b""]
    )


def learned(head: bytes) -> KnownHead | None:
    size = int(head.rpartition(b"Content-Length: ")[2])
    [(_, _, headers, _)] = Parsed(head + b"x" * size).requests
    return learn(head, "orders", headers, READER.read(headers))


Change = Callable[[bytes], bytes]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    kind = draw(st.sampled_from(["byte", "cut", "insert", "key", "length", "twice", "none"]))
    place, byte = draw(st.integers(0, 2_000)), bytes([draw(st.integers(0, 255))])
    key = draw(st.sampled_from([b"second", b"k" * 255, b"k" * 256, b"", b"a b", b'"a"', b"\xff"]))
    length = draw(st.sampled_from([b"0", b"1", b"05", b"+5", b"5 ", b"", b"0x5", b"99999999999", b"5,5"]))
    extra = draw(
        st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"Transfer-Encoding: chunked\r\n", b"A: b\r\n"])
    )

    def change(data: bytes) -> bytes:
        at = place % (len(data) + 1)
        match kind:
            case "byte":
                return data[:at] + byte + data[at + 1 :]
            case "cut":
                return data[:at]
            case "insert":
                return data[:at] + extra + data[at:]
            case "key":
                return data.replace(b"first", key)
            case "length":
                head, _, rest = data.partition(b"Content-Length: ")
                return head + b"Content-Length: " + length + rest[len(rest.partition(b"\r")[0]) :]
            case "twice":
                return data + data
            case _:
                return data

    return change


@settings(max_examples=1_500, deadline=None)
@given(
    st.lists(st.sampled_from(LINES), max_size=5).map(lambda lines: [b"Host: test", *lines]),
    st.integers(1, 12),
    st.lists(changes(), min_size=1, max_size=2),
)
def test_what_is_known_means_what_the_parser_and_the_reader_say(
    lines: list[bytes], size: int, changed: list[Change]
) -> None:
    head = head_of(lines, size)
    try:
        known = learned(head)
    except Refused:
        return  # what is refused is never learned
    data = head + b"x" * size
    for change in changed:
        data = change(data)

    brought = None if known is None else known.match(data)

    if known is None or brought is None:
        return
    body, key = brought
    parsed = Parsed(data)
    assert not parsed.rest
    [(method, url, headers, parsed_body)] = parsed.requests
    meta = READER.read(headers)
    assert (method, url, parsed_body) == (b"POST", b"/v1/queues/orders/messages", body)
    assert but_for_what_differs(headers) == but_for_what_differs(known.headers)
    assert meaning(meta) == meaning(known.meta)
    assert meta.content_length == len(body)
    assert meta.idempotency_key == (known.meta.idempotency_key if key is None else key)


def test_another_length_and_another_key_are_known() -> None:
    for lines in ([b"Idempotency-Key: first", b"A: b"], [b"A: b"]):
        known = learned(head_of(lines, 3))
        assert known is not None
        key = "second" if len(lines) == 2 else None

        assert known.match(head_of(lines, 5).replace(b"first", b"second") + b"hello") == (b"hello", key)


def test_a_head_that_is_not_all_of_it_is_not_learned() -> None:
    """What came before in the same read might belong to another request."""
    head = head_of([b"Host: test"], 1)
    [(_, _, headers, _)] = Parsed(head + b"x").requests
    for odd in (b"\r\n" + head, head + head, b"x" + head, head[:-1], b"POST /x" + b"y" * 5_000 + head):
        assert learn(odd, "orders", headers, READER.read(headers)) is None
