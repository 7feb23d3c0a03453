"""More than the gateway may hold is refused at once, and given back exactly."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from gateway.admission import Admission
from gateway.arriving import SLOW, Arriving
from tests.unit.gateway.support import request, running
from tests.waiting import until


def test_places_and_bytes_are_taken_within_their_limits_and_given_back() -> None:
    admission = Admission(2, 100)

    assert admission.enter()
    assert admission.grow(60)
    assert admission.fits(40)
    assert not admission.fits(41)
    assert not admission.grow(41)
    assert admission.enter()
    assert not admission.enter()
    assert not admission.fits(0)
    admission.release(60, 1)
    assert admission.fits(100)
    assert (admission.count, admission.size) == (1, 0)


class Body:
    def __init__(self, reserved: int) -> None:
        self.reserved = reserved


def test_the_oldest_slow_bodies_give_way_and_no_more_than_are_needed() -> None:
    time = 0.0
    gone: list[str] = []
    arriving = Arriving(lambda: time)
    for name, size in {"first": 10, "empty": 0, "second": 10, "third": 10}.items():
        arriving.add(Body(size), partial(gone.append, name))
        time += 0.4

    assert arriving.could_make_room(10)
    assert not arriving.could_make_room(11)  # the second is not slow yet
    assert not arriving.make_room(11)
    assert gone == []
    time += SLOW
    assert arriving.make_room(15)
    assert gone == ["first", "second"]


def test_a_body_gives_way_to_younger_ones_only() -> None:
    time = 0.0
    arriving = Arriving(lambda: time)
    old, young = Body(10), Body(10)
    gone: list[str] = []
    arriving.add(old, partial(gone.append, "old"))
    arriving.add(young, partial(gone.append, "young"))
    time = 2 * SLOW

    assert not arriving.make_room(1, asking=old)
    assert arriving.make_room(1, asking=young)
    assert gone == ["old"]


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


async def test_a_body_holds_what_has_arrived_of_it_and_not_what_is_announced() -> None:
    async with running(max_body_bytes=1000, max_in_flight_bytes=1500) as gateway:
        slow = await gateway.connect()
        await slow.send(
            b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            + b"x" * 600
        )
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: parts.ingest._admission.size == 600)
        refused = await gateway.raw(request(b"x" * 1000))
        fits = await gateway.raw(request(b"x" * 900))
        await slow.send(b"x" * 400)

        assert (refused.status, fits.status) == (503, 202)
        assert (await slow.answer()).status == 202
        assert (parts.ingest._admission.count, parts.ingest._admission.size) == (0, 0)


async def test_many_bodies_on_their_way_take_no_places() -> None:
    async with running(max_in_flight=3) as gateway:
        for _ in range(10):
            await (await gateway.connect()).send(
                b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"
            )
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: len(parts.ingest.bodies_on_their_way) == 10)

        assert (await gateway.post()).status_code == 202


async def test_slow_bodies_give_way_when_memory_runs_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow one is told to come back; the good one is taken."""
    monkeypatch.setattr("gateway.arriving.SLOW", 0.0)
    async with running(max_body_bytes=1000, max_in_flight_bytes=1500) as gateway:
        slow = await gateway.connect()
        await slow.send(
            b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            + b"x" * 900
        )
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: parts.ingest._admission.size == 900)
        good = await gateway.raw(request(b"x" * 1000))
        answer = await slow.answer()

        assert good.status == 202
        assert (answer.status, answer.problem["type"]) == (503, "/problems/overloaded")
        assert await slow.closed()
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
