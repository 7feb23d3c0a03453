"""The http sink against real services: what is sent, what is not sent twice, whose fault it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from consumers.sinks import NotTried
from consumers.sinks.http import sink as sink_module
from consumers.sinks.http.verdicts import RequestFailed
from forebay.errors import MessageRejected, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.database import Database
from forebay.storage.schema import migrate
from forebay.testing.sink_contract import deliveries, delivery, outcomes
from tests.servers.receiver import Receiver, always, hang
from tests.unit.consumers.http import only, sink_to


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


async def test_a_message_is_one_request_with_its_body_byte_for_byte(receiver: Receiver) -> None:
    d = delivery(b"\xff\x00{", key="k", content_type="application/x-thing", headers={"source": "shop"})
    async with sink_to(receiver.url, headers=["X-Key: sesame"]) as sink:
        await sink.write([d])

    (request, body), = receiver.requests  # fmt: skip
    assert (request.method, body) == ("POST", b"\xff\x00{")
    assert request.headers["Content-Length"] == "3"
    assert request.headers["Content-Type"] == "application/x-thing"
    assert request.headers["Idempotency-Key"] == d.message.id
    assert request.headers["Forebay-Meta-source"] == "shop"
    assert request.headers["X-Key"] == "sesame"


async def test_an_empty_body_has_a_length_and_the_type_it_came_with(receiver: Receiver) -> None:
    async with sink_to(receiver.url, method="PUT") as sink:
        await sink.write([delivery(b"")])

    request, _ = receiver.requests[0]
    assert (request.method, request.headers["Content-Length"]) == ("PUT", "0")
    assert request.headers["Content-Type"] == "application/json"


async def test_a_body_of_many_megabytes_arrives(receiver: Receiver) -> None:
    large = delivery(bytes(range(256)) * 16_384)
    async with sink_to(receiver.url) as sink:
        await sink.write([large])

    assert receiver.effects[large.message.id] == large.message.body


async def test_connections_are_few_and_used_again(receiver: Receiver) -> None:
    async with sink_to(receiver.url, connections=3) as sink:
        await asyncio.gather(*(sink.write(deliveries(50)) for _ in range(3)))

    assert len(receiver.effects) == 150
    assert len(receiver.connections) <= 3
    assert receiver.most_at_once <= 3


async def test_when_the_destination_fails_in_the_middle_what_is_done_stays_done(receiver: Receiver) -> None:
    async def after_four(request: web.Request, body: bytes) -> web.StreamResponse | None:
        return web.Response(status=503) if len(receiver.effects) == 4 else None

    receiver.answer = after_four
    batch = deliveries(10)
    async with sink_to(receiver.url, connections=1) as sink:
        results = await sink.write(batch)
        requests = len(receiver.requests)

        assert outcomes(batch, results) == ["new"] * 4 + ["SinkUnavailable"] + ["NotTried"] * 5
        assert requests == 5, "nothing is sent to a service that has just said that it is down"
        with pytest.raises(SinkUnavailable, match="503 Service Unavailable"):
            await sink.write(batch[4:])


async def test_what_is_done_is_not_sent_again_after_an_outage(receiver: Receiver, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/a.db")
    migrate(database)
    batch = deliveries(4)
    async with sink_to(receiver.url, database) as sink:
        await sink.write(batch[:2])
        async with receiver.away():
            with pytest.raises(SinkUnavailable):
                await sink.write(batch)
        assert outcomes(batch, await sink.write(batch)) == ["duplicate", "duplicate", "new", "new"]
    database.dispose()

    assert len(receiver.requests) == 4


async def test_what_is_sent_is_done_even_if_it_cannot_be_recorded(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handing it back would only send it again."""
    database = Database(f"sqlite:///{tmp_path}/a.db")
    migrate(database)
    async with sink_to(receiver.url, database) as sink:

        def full(_: object, results: object) -> list[WriteResult]:
            raise SinkUnavailable("disk full")

        monkeypatch.setattr(sink._outside._record, "add", full)  # type: ignore[attr-defined]
        batch = deliveries(2)
        assert outcomes(batch, await sink.write(batch)) == ["new", "new"]
    database.dispose()


async def test_without_a_database_the_service_may_say_what_it_had_before(receiver: Receiver) -> None:
    batch = deliveries(2)
    async with sink_to(receiver.url) as sink:
        await sink.write(batch)
        assert outcomes(batch, await sink.write(batch)) == ["duplicate", "duplicate"]


async def test_a_service_that_asks_for_silence_is_heard(receiver: Receiver) -> None:
    receiver.answer = always(429, Retry_After="33")
    async with sink_to(receiver.url) as sink:
        with pytest.raises(SinkUnavailable) as told:
            await sink.write(deliveries(3))

    assert told.value.retry_after == 33.0


async def test_a_refused_message_is_rejected_with_the_services_words_as_detail(receiver: Receiver) -> None:
    receiver.answer = always(422, "no such customer")
    async with sink_to(receiver.url) as sink:
        error = only(await sink.write([delivery(b"sesame")]))

    assert isinstance(error, MessageRejected)
    assert (str(error), error.detail) == ("422 Unprocessable Entity", "no such customer")


async def test_an_answer_without_end_hurts_nobody(receiver: Receiver) -> None:
    async def endless(request: web.Request, body: bytes) -> web.StreamResponse | None:
        answer = web.StreamResponse(status=400)
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b"x" * 10_000)
        except ConnectionError:
            pass
        return answer

    receiver.answer = endless
    async with sink_to(receiver.url) as sink, asyncio.timeout(5):
        error = only(await sink.write(deliveries(1)))

    assert isinstance(error, MessageRejected)
    assert len(error.detail) == 2_000


# ---- no answer


async def test_a_message_without_an_answer_is_a_failed_attempt_if_the_service_lives(
    receiver: Receiver,
) -> None:
    async def slow(request: web.Request, body: bytes) -> web.StreamResponse | None:
        return await hang(request, body) if body == b"slow" else None

    receiver.answer = slow
    batch = [delivery(b"quick"), delivery(b"slow"), delivery(b"too")]
    async with sink_to(receiver.url, timeout=0.3) as sink:
        results = await sink.write(batch)

    assert outcomes(batch, results) == ["new", "RequestFailed", "new"]
    assert "no answer in time; the message may have been handled" in str(results[1].error)


async def test_a_service_that_answers_nothing_at_all_is_an_outage(receiver: Receiver) -> None:
    receiver.answer = hang
    async with sink_to(receiver.url, timeout=0.3) as sink:
        with pytest.raises(SinkUnavailable, match="does not answer"):
            await sink.write(deliveries(3))
        with pytest.raises(SinkUnavailable, match="does not answer"):
            await sink.probe()


async def test_a_connection_that_ends_before_the_answer_is_a_failed_attempt(receiver: Receiver) -> None:
    async def cut(request: web.Request, body: bytes) -> web.StreamResponse | None:
        if request.method == "POST":
            assert request.transport is not None
            request.transport.abort()
        return None

    receiver.answer = cut
    async with sink_to(receiver.url) as sink:
        error = only(await sink.write(deliveries(1)))

    assert isinstance(error, RequestFailed)
    assert "the connection ended before the answer" in str(error)


async def test_a_kept_connection_that_the_service_just_closed_costs_nothing() -> None:
    """It answers one request on each connection, and closes it when the second one arrives."""
    taken: list[bytes] = []

    async def one_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        taken.append(head)
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(one_each, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    batch = deliveries(3)
    async with sink_to(url, connections=1) as sink:
        assert outcomes(batch, await sink.write(batch)) == ["new"] * 3
    server.close()

    assert len(taken) == 3


@pytest.mark.parametrize(
    "says", [b"220 mail.test ESMTP\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"\x15\x03\x01\x00\x02"]
)
async def test_something_that_speaks_no_http_is_no_reason_to_reject_messages(says: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with sink_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/") as sink:
        with pytest.raises(SinkUnavailable):
            await sink.write(deliveries(2))
    server.close()


async def test_an_unforeseen_error_is_about_one_message_and_worth_another_try(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = deliveries(3)
    async with sink_to(receiver.url) as sink:
        send = sink._client.send  # type: ignore[attr-defined]

        async def sometimes(d: Any, heard: Any) -> bool:
            if d is batch[1]:
                raise KeyError("a bug")
            return bool(await send(d, heard))

        monkeypatch.setattr(sink._client, "send", sometimes)  # type: ignore[attr-defined]
        assert outcomes(batch, await sink.write(batch)) == ["new", "KeyError", "new"]


async def test_a_slow_batch_hands_back_what_it_does_not_get_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "BUDGET", 0.0)
    batch = deliveries(3)
    async with sink_to(receiver.url, connections=1) as sink:
        results = await sink.write(batch)

    assert [type(r.error) for r in results] == [type(None), NotTried, NotTried]


async def test_an_abandoned_call_comes_to_its_end(receiver: Receiver) -> None:
    batch = deliveries(3)
    async with sink_to(receiver.url) as sink:
        writing = asyncio.create_task(sink.write(batch))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait({writing})

    assert len(receiver.effects) == 3


# ---- probing


@pytest.mark.parametrize("status", [200, 204, 401, 404, 405, 500])
async def test_a_probe_asks_with_options_and_takes_any_answer_for_life(
    receiver: Receiver, status: int
) -> None:
    async def answer(request: web.Request, body: bytes) -> web.StreamResponse | None:
        return web.Response(status=status)

    receiver.answer = answer
    async with sink_to(receiver.url) as sink:
        await sink.probe()

    assert receiver.requests == [], "a probe sends no message"


async def test_a_probe_hears_that_the_service_is_down(receiver: Receiver) -> None:
    async def answer(request: web.Request, body: bytes) -> web.StreamResponse | None:
        return web.Response(status=503, headers={"Retry-After": "7"})

    receiver.answer = answer
    async with sink_to(receiver.url) as sink:
        with pytest.raises(SinkUnavailable) as told:
            await sink.probe()

    assert told.value.retry_after == 7.0
