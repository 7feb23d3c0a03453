"""The fast lane and the application are two ways to the same answer: the same bytes, the same effect."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway import server
from gateway.fastlane import FastLane, PlainRequest
from gateway.known_heads import KnownHead
from tests.system.hostile_cases import cases
from tests.unit.gateway.keys import Keys
from tests.unit.gateway.support import Running, request, running

LAST = b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"

VARYING = [
    (re.compile(rb"(?m)^date: .*\r$"), b"date\r"),
    # Spread on purpose.
    (re.compile(rb"(?m)^retry-after: [123]\r$"), b"retry-after\r"),
    # Told where it is news, by the clock.
    (re.compile(rb"(?m)^ratelimit(-policy)?: .*\r\n"), b""),
    # A version 7: made anew for each message. One of a key is a version 5, and the same for both.
    (re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), b"id"),
]

HEADERS = [
    "Content-Type: application/json\r\n",
    "Content-Type: text/plain; charset=utf-8\r\n",
    "content-TYPE:   \r\n",
    "Content-Type: application/cloudevents+json\r\n",
    "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /a\r\nce-type: t\r\n",
    "ce-specversion: 2.0\r\n",
    "Idempotency-Key: one\r\n",
    'Idempotency-Key: "one"\r\n',
    "Idempotency-Key: two\r\n",
    "Idempotency-Key: a\r\nIdempotency-Key: b\r\n",
    "Idempotency-Key: not one word\r\n",
    "Forebay-Ordering-Key: customer-42\r\n",
    "Forebay-Ordering-Key: \r\n",
    "Forebay-Delay: 30s\r\n",
    "Forebay-Delay: soon\r\n",
    "Forebay-TTL: 10\r\nForebay-Delay: 20\r\n",
    "Forebay-Meta-Source: shop\r\n",
    "Forebay-Unheard-Of: 1\r\n",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
    "Prefer: durability=synced\r\n",
    "Prefer: durability=replicated\r\n",
    "Prefer: wait=0\r\n",
    "Connection: keep-alive\r\n",
    "Connection: close\r\n",
    "Connection: upgrade\r\nUpgrade: h2c\r\n",
    "Upgrade: websocket\r\n",
    "Expect: 100-continue\r\n",
    "Content-Encoding: gzip\r\n",
    "Origin: https://a.example\r\n",
    "TE: trailers\r\n",
    "Host: other\r\n",
    "X-Anything: at all\r\n",
    "Evil\x00: x\r\n",
    "No colon here\r\n",
]
PATHS = [
    "/v1/queues/orders/messages",
    "/v1/queues/clicks/messages",
    "/v1/queues/orders/messages?x=1",
    "/v1/queues/order/messages",
    "/v1/queues/ORDERS/messages",
    "/v1/queues/%6frders/messages",
    "/v1/queues/orders/messages/",
    "/v1/queues//messages",
    "/v1/queues/orders.dead/messages",
    "http://test/v1/queues/orders/messages",
    "/livez",
]
BODIES = [b"", b"{}", b'{"order": 1}', b"x" * 999, b"x" * 1_000, b"x" * 1_001, b"\x00\xff"]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    headers = "".join(draw(st.lists(st.sampled_from(HEADERS), max_size=4)))
    path = draw(st.sampled_from(PATHS) | st.just(PATHS[0]))
    body = draw(st.sampled_from(BODIES))
    kind = draw(
        st.sampled_from(["plain", "plain", "plain", "chunked", "short", "long", "get", "old", "none"])
    )
    if kind == "chunked":
        sent = request(headers=headers + "Transfer-Encoding: chunked\r\n", path=path, length=False)
        return sent + (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    sent = request(body, headers=headers, path=path, length=kind != "none")
    if kind == "short":
        return sent[:-1]
    if kind == "long":
        return sent + b"y"
    if kind == "get":
        return sent.replace(b"POST", b"GET", 1)
    if kind == "old":
        return sent.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    return sent


async def exchange(gateway: Running, pieces: Sequence[bytes]) -> tuple[bytes, bool]:
    """What comes back for these pieces, and whether that is all: a reset destroys what was not read yet."""
    connection = await gateway.connect()
    came = bytearray()

    async def read() -> bool:
        try:
            while data := await connection.reader.read(65_536):
                came.extend(data)
        except ConnectionError:
            return False
        return True

    reading = asyncio.create_task(read())
    try:
        for piece in pieces:
            await connection.send(piece)
            # So that it is read by itself.
            await asyncio.sleep(0.001)
    except ConnectionError:
        pass  # refused and closed, perhaps before all of it was sent
    async with asyncio.timeout(15):
        whole = await reading
    connection.close()
    gateway.connections.remove(connection)
    return bytes(came), whole


def alike(answer: bytes) -> bytes:
    for varying, instead in VARYING:
        answer = varying.sub(instead, answer)
    return answer


def effect(gateway: Running) -> list[tuple[object, ...]]:
    """What was published, but for what is the gateway's own: the time, and ids that are made anew."""
    return [
        (
            m.body,
            m.key,
            m.content_type,
            dict(m.headers),
            m.not_before is not None,
            m.expires_at is not None,
            m.id if m.id[14] == "5" else "",
        )
        for _, messages in gateway.broker.publishes
        for m in messages
    ]


class Both:
    """A gateway with the fast lane and one without, on a loop of their own."""

    def __init__(self, **settings: Any) -> None:
        self.settings = {"max_body_bytes": 1_000, "body_timeout": 0.3} | settings
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()

    def __enter__(self) -> Both:
        self.fast, self.other = self.runner.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()

    async def _open(self) -> tuple[Running, Running]:
        fast = await self.stack.enter_async_context(running(fast_lane=True, **self.settings))
        other = await self.stack.enter_async_context(running(fast_lane=False, **self.settings))
        return fast, other

    def compare(self, pieces: Sequence[bytes]) -> None:
        async def ask() -> tuple[tuple[bytes, bool], tuple[bytes, bool]]:
            return await asyncio.gather(exchange(self.fast, pieces), exchange(self.other, pieces))

        for gateway in (self.fast, self.other):
            gateway.broker.publishes.clear()
        (fast, fast_whole), (other, other_whole) = self.runner.run(ask())
        fast, other = alike(fast), alike(other)
        if not fast_whole:
            other = other[: len(fast)]
        if not other_whole:
            fast = fast[: len(other)]
        assert fast == other
        assert effect(self.fast) == effect(self.other)

    def compare_turns(self, sent: Sequence[bytes]) -> None:
        """One connection, and each request after the answer to the one before."""

        async def ask() -> tuple[list[object], list[object]]:
            return await asyncio.gather(turns(self.fast, sent), turns(self.other, sent))

        for gateway in (self.fast, self.other):
            gateway.broker.publishes.clear()
        fast, other = self.runner.run(ask())
        assert fast == other
        assert effect(self.fast) == effect(self.other)


async def turns(gateway: Running, sent: Sequence[bytes]) -> list[object]:
    """The answers, with the headers in their order; "closed" where the connection ended."""
    connection = await gateway.connect()
    answers: list[object] = []
    try:
        for data in sent:
            await connection.send(data)
            answer = await connection.answer()
            if answer.status == 100:
                answer = await connection.answer()
            headers = [f"{n}: {v}".encode() for n, v in answer.headers.items()]
            said = b"".join(line + b"\r\n" for line in headers)
            answers.append((answer.status, alike(said), alike(answer.body)))
    except (asyncio.IncompleteReadError, ConnectionError):
        answers.append("closed")
    connection.close()
    gateway.connections.remove(connection)
    return answers


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(marks)]


def test_the_same_bytes_have_the_same_answers_and_the_same_effect_on_both_lanes() -> None:
    with Both() as both:

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 4_000), max_size=3))
        @example([request(b"{}")] * 3, [])
        def check(sent: list[bytes], places: list[int]) -> None:
            both.compare(cut(b"".join(sent) + LAST, places))

        check()


SAME = [
    "Content-Type: application/json\r\n",
    "Content-Type: application/cloudevents+json\r\n",
    "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /a\r\nce-type: t\r\n",
    "Forebay-Ordering-Key: customer-42\r\n",
    "Forebay-Delay: 30s\r\n",
    "Forebay-Meta-Source: shop\r\n",
    "Prefer: durability=synced\r\n",
    "Prefer: durability=replicated\r\n",
    "X-Anything: at all\r\n",
]
OWN = [
    *[""] * 8,
    "Idempotency-Key: one\r\n",
    "Idempotency-Key: two\r\n",
    "idempotency-key: three\r\n",
    'Idempotency-Key: "one"\r\n',
    "Idempotency-Key: one word\r\n",
    "Idempotency-Key: one\r\nIdempotency-Key: one\r\n",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "X-Another: header\r\n",
]


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[str, str, bytes]]:
    """What the requests of one connection have in common, what each has of its own, and bodies."""
    same = "".join(draw(st.lists(st.sampled_from(SAME), max_size=3, unique=True)))
    own = draw(st.lists(st.sampled_from(OWN), min_size=2, max_size=6))
    return [(same, more, draw(st.sampled_from(BODIES))) for more in own]


@pytest.mark.parametrize("who", ["anybody", "a key", "keys"])
def test_one_request_after_the_other_has_the_same_answers_on_both_lanes(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[bool] = []
    match = KnownHead.match

    def counting(head: KnownHead, data: bytes) -> tuple[bytes, str | None] | None:
        brought = match(head, data)
        known.append(brought is not None)
        return brought

    monkeypatch.setattr(KnownHead, "match", counting)
    settings_of: dict[str, Any] = {}
    callers = [""]
    if who != "anybody":
        keys = Keys(tmp_path)
        limits: list[dict[str, Any]] = [
            {"rate": 1e6, "max_body_bytes": 999},
            {"queues": ["clicks"]},
            {"tenant": "t"},
        ]
        for number, limit in enumerate(limits):
            keys.add(f"k{number}", **limit)
        settings_of["keys_file"] = keys.path
        callers = [f"Authorization: {keys.headers(name)['Authorization']}\r\n" for name in keys.of]
        callers = callers[:1] if who == "a key" else [*callers, "Authorization: Bearer fbk_x\r\n", ""]
    with Both(**settings_of) as both:

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(
            conversations(),
            st.sampled_from(callers).map(lambda caller: [caller] * 6)
            | st.lists(st.sampled_from(callers), min_size=6, max_size=6),
        )
        def check(said: list[tuple[str, str, bytes]], by: list[str]) -> None:
            both.compare_turns(
                [
                    request(body, headers=f"{same}{caller}{own}")
                    for (same, own, body), caller in zip(said, by, strict=False)
                ]
            )

        check()
    assert sum(known) > 10


def test_a_request_may_be_cut_in_two_anywhere() -> None:
    sent = request(b'{"order": 1}', headers="Content-Type: application/json\r\nIdempotency-Key: k\r\n")
    with Both() as both:
        for place in range(1, len(sent)):
            both.compare([sent[:place], sent[place:] + LAST])


def test_what_nobody_should_send_is_refused_alike() -> None:
    with Both() as both:
        for case in cases(seed=11, count=250, slow_ones=0):
            if case.end == "sentinel":
                both.compare([*case.pieces, LAST])


def test_a_plain_request_takes_the_fast_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or all of the above would compare the application with itself."""
    served: list[str] = []
    serve = FastLane.serve

    def counting(lane: FastLane, plain: PlainRequest) -> None:
        served.append(plain.queue)
        serve(lane, plain)

    monkeypatch.setattr(FastLane, "serve", counting)
    with Both() as both:
        both.compare([request(b"{}") + LAST])
        assert served == ["orders"]
        both.compare([request(b"{}", headers="Prefer: wait=0\r\n") + LAST])
        assert served == ["orders"]


async def test_a_connection_that_rests_is_closed_in_time_and_one_with_a_request_at_work_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE", 1)
    loop = asyncio.get_running_loop()
    async with running() as gateway:
        connection = await gateway.connect()
        for _ in range(3):  # the last two with a head that is known
            await connection.send(request(b"{}"))
            assert (await connection.answer()).status == 202
        gateway.broker.gate.clear()
        await connection.send(request(b"{}"))
        # As long as is tested: the timer of the first answer goes off, and finds a request at work.
        await asyncio.sleep(1.5)
        gateway.broker.gate.set()
        assert (await connection.answer()).status == 202
        rests = loop.time()
        assert await connection.closed()
        assert loop.time() - rests > 0.9
