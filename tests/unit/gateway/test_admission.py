"""More than the gateway may hold is refused at once, and given back exactly."""

from __future__ import annotations

import asyncio

from gateway.admission import Admission
from tests.unit.gateway.support import request, running
from tests.waiting import until


def test_bytes_and_places_are_taken_together_or_not_at_all() -> None:
    admission = Admission(2, 100)

    assert admission.enter(60)
    assert not admission.enter(60)
    assert admission.enter(40)
    assert not admission.enter(0)
    assert not admission.grow(1)
    admission.leave(60)
    assert admission.grow(60)
    assert (admission.count, admission.size) == (1, 100)


async def test_too_many_requests_are_503_with_retry_after_and_none_is_held_for_long() -> None:
    async with running(max_in_flight=3) as gateway:
        gateway.broker.gate.clear()
        held = [asyncio.create_task(gateway.post()) for _ in range(3)]
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: parts.ingest._admission.count == 3)
        refused = await gateway.post()
        gateway.broker.gate.set()

        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert [(await answer).status_code for answer in held] == [202] * 3
        assert (await gateway.post()).status_code == 202


async def test_bytes_are_reserved_before_they_are_read() -> None:
    async with running(max_body_bytes=1000, max_in_flight_bytes=1500) as gateway:
        slow = await gateway.connect()
        await slow.send(
            b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        )
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: parts.ingest._admission.size == 1000)
        refused = await gateway.raw(request(b"x" * 600))
        small = await gateway.raw(request(b"x" * 400))
        await slow.send(b"x" * 1000)

        assert (refused.status, small.status) == (503, 202)
        assert (await slow.answer()).status == 202
        assert (parts.ingest._admission.count, parts.ingest._admission.size) == (0, 0)


async def test_chunked_bodies_are_counted_as_they_come() -> None:
    async with running(max_body_bytes=1000, max_in_flight_bytes=1500) as gateway:
        head = b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        first, second = await gateway.connect(), await gateway.connect()
        await first.send(head + b"320\r\n" + b"x" * 800 + b"\r\n")
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: parts.ingest._admission.size == 800)
        await second.send(head + b"320\r\n" + b"x" * 800 + b"\r\n")
        refused = await second.answer()
        await first.send(b"0\r\n\r\n")

        assert (refused.status, refused.problem["type"]) == (503, "/problems/overloaded")
        assert (await first.answer()).status == 202
        assert (parts.ingest._admission.count, parts.ingest._admission.size) == (0, 0)


async def test_messages_of_a_stalled_publish_still_count_after_their_answer() -> None:
    """They are still in memory: a broker that hangs must not make room for ever more of them."""
    async with running(max_in_flight=1, request_timeout=0.1) as gateway:
        gateway.broker.gate.clear()
        unknown = await gateway.post()
        refused = await gateway.post()
        gateway.broker.gate.set()
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: parts.ingest._admission.count == 0)

        assert unknown.json()["type"] == "/problems/outcome-unknown"
        assert refused.json()["type"] == "/problems/overloaded"
