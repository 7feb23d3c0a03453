"""What only raw sockets can send: broken, cut off, endless or slow requests."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.gateway.support import RawConnection, request, running
from tests.waiting import until

POST = "POST /v1/queues/orders/messages HTTP/1.1\r\nHost: test\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: -1\r\n",
        "Content-Length: two\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "No colon here\r\n",
        "Evil\x00: x\r\n",
    ],
)
async def test_a_broken_request_is_400_as_a_problem_and_the_connection_ends(head: str) -> None:
    async with running() as gateway:
        connection = await gateway.connect()
        await connection.send(f"{POST}{head}\r\n{{}}".encode())
        answer = await connection.answer()

        assert (answer.status, answer.problem["type"]) == (400, "/problems/invalid-request")
        assert await connection.closed()
        assert gateway.broker.publishes == []
        assert (await gateway.post()).status_code == 202


@pytest.mark.parametrize(
    "line", ["GARBAGE\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\x16\x03\x01\x02\x00\r\n\r\n"]
)
async def test_what_is_not_http_is_told_so(line: str) -> None:
    async with running() as gateway:
        answer = await gateway.raw(line.encode("latin-1"))

        assert (answer.status, answer.problem["status"]) == (400, 400)


@pytest.mark.parametrize(
    "sent",
    [
        f"{POST}Content-Length: 10\r\n\r\n12345".encode(),
        f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk(b"12345"),
    ],
)
async def test_a_truncated_body_publishes_nothing(sent: bytes) -> None:
    async with running() as gateway:
        connection = await gateway.connect()
        await connection.send(sent)
        parts = gateway.app.parts
        assert parts is not None
        await until(lambda: len(parts.ingest.bodies_on_their_way) == 1)
        connection.close()
        await until(lambda: len(parts.ingest.bodies_on_their_way) == 0)

        assert gateway.broker.publishes == []
        assert parts.ingest._admission.size == 0


async def test_a_declared_body_above_the_limit_is_refused_before_it_is_sent() -> None:
    async with running(max_body_bytes=1000) as gateway:
        connection = await gateway.connect()
        await connection.send(f"{POST}Content-Length: 1001\r\n\r\n".encode())
        answer = await connection.answer()

        assert (answer.status, answer.problem["limit"]) == (413, 1000)


async def test_a_chunked_body_above_the_limit_is_refused_while_it_is_still_coming() -> None:
    async with running(max_body_bytes=1000) as gateway:
        connection = await gateway.connect()
        await connection.send(f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk(b"x" * 1001))
        answer = await connection.answer()

        assert answer.status == 413
        parts = gateway.app.parts
        assert parts is not None
        assert (parts.ingest._admission.count, parts.ingest._admission.size) == (0, 0)
        assert gateway.broker.publishes == []


async def test_after_an_early_answer_the_rest_may_come_and_the_connection_is_used_on() -> None:
    async with running(max_body_bytes=1000) as gateway:
        connection = await gateway.connect()
        await connection.send(f"{POST}Content-Length: 5000\r\n\r\n".encode())
        assert (await connection.answer()).status == 413
        await connection.send(b"x" * 5000 + request(b"{}"))

        assert (await connection.answer()).status == 202


async def test_after_an_early_answer_an_endless_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.protocol.MAX_DISCARDED", 100_000)
    async with running(max_body_bytes=1000) as gateway:
        connection = await gateway.connect()
        await connection.send(f"{POST}Content-Length: 100000000\r\n\r\n".encode())
        assert (await connection.answer()).status == 413

        async def flood() -> None:
            while True:
                await connection.send(b"x" * 65536)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(flood(), 5)


async def test_the_brokers_own_limit_counts_too() -> None:
    from tests.unit.gateway.support import ScriptedBroker

    async with running(ScriptedBroker(max_body_bytes=10)) as gateway:
        answer = await gateway.post(b"x" * 11)

        assert (answer.status_code, answer.json()["limit"]) == (413, 10)


@pytest.mark.parametrize("framing", ["Content-Length: 10\r\n", "Transfer-Encoding: chunked\r\n"])
async def test_a_body_that_stalls_is_408(framing: str) -> None:
    async with running(body_timeout=0.1) as gateway:
        connection = await gateway.connect()
        await connection.send(f"{POST}{framing}\r\n".encode())
        answer = await connection.answer()

        assert (answer.status, answer.problem["type"]) == (408, "/problems/body-timeout")
        assert await connection.closed()
        assert gateway.broker.publishes == []


async def test_a_trickle_does_not_hold_a_place_for_ever() -> None:
    """Each pause is short enough, but the body as a whole is far too slow."""
    async with running(body_timeout=0.3) as gateway:
        connection = await gateway.connect()
        await connection.send(f"{POST}Content-Length: 1000\r\n\r\n".encode())
        answering = asyncio.create_task(connection.answer())
        while not answering.done():
            connection.writer.write(b"x")
            await asyncio.wait({answering}, timeout=0.05)

        assert answering.result().status == 408


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running() as gateway:
        connection = await gateway.connect()
        await connection.send(b"".join(request(b"%d" % n) for n in range(20)))
        answers = [await connection.answer() for _ in range(20)]

        assert {a.status for a in answers} == {202}
        assert [m.body for m in gateway.broker.messages] == [b"%d" % n for n in range(20)]
        locations = [a.headers["location"].rpartition("/")[2] for a in answers]
        assert locations == [m.id for m in gateway.broker.messages]


@pytest.mark.parametrize("body", [b"x" * 100_000, b"{}"])
async def test_what_comes_before_a_head_in_the_same_read_is_not_counted_as_head(body: bytes) -> None:
    """A client that pipelines sends large pieces, and each may end in the middle of a head."""
    one = request(body)
    before = one * (1 + 100_000 // len(one))
    async with running() as gateway:
        connection = await gateway.connect()
        await connection.send(before + one[:40])
        assert (await connection.answer()).status == 202
        await connection.send(one[40:])

        for _ in range(len(before) // len(one)):
            assert (await connection.answer()).status == 202


async def test_garbage_after_a_request_does_not_take_its_answer() -> None:
    """The first request's client must not read the garbage's 400 as its own."""
    async with running() as gateway:
        gateway.broker.gate.clear()
        connection = await gateway.connect()
        await connection.send(request(b"good") + b"GARBAGE\r\n\r\n")
        await gateway.broker.began.wait()
        gateway.broker.gate.set()

        assert (await connection.answer()).status == 202
        assert await connection.closed()


@pytest.mark.parametrize(
    "broken", [b"GARBAGE\r\n\r\n", f"{POST}Transfer-Encoding: chunked\r\n\r\nno size\r\n".encode()]
)
@pytest.mark.parametrize("before", [1, 2, 3])
async def test_every_whole_request_before_a_broken_one_gets_its_own_answer(
    before: int, broken: bytes
) -> None:
    """A 400 must not be read as the answer to a message that is stored; and nobody waits in vain."""
    async with running() as gateway:
        gateway.broker.gate.clear()
        connection = await gateway.connect()
        await connection.send(request(b"good") * before + broken)
        await gateway.broker.began.wait()
        gateway.broker.gate.set()

        assert [(await connection.answer()).status for _ in range(before)] == [202] * before
        assert await connection.closed()


async def test_a_client_that_leaves_does_not_take_its_message_with_it() -> None:
    async with running() as gateway:
        gateway.broker.gate.clear()
        connection = await gateway.connect()
        await connection.send(request(b"keep me"))
        await gateway.broker.began.wait()
        connection.close()
        gateway.broker.gate.set()

        await until(lambda: [m.body for m in gateway.broker.messages] == [b"keep me"])


async def test_expect_continue_is_answered_only_when_the_body_is_wanted() -> None:
    async with running(max_body_bytes=1000) as gateway:
        wanted = await gateway.connect()
        await wanted.send(f"{POST}Content-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode())
        assert (await wanted.answer()).status == 100
        await wanted.send(b"{}")
        assert (await wanted.answer()).status == 202

        too_large = await gateway.connect()
        await too_large.send(f"{POST}Content-Length: 2000\r\nExpect: 100-continue\r\n\r\n".encode())
        assert (await too_large.answer()).status == 413


async def test_endless_headers_are_cut_off() -> None:
    async with running() as gateway:
        connection = await gateway.connect()
        await connection.send(POST.encode())
        for n in range(80):
            connection.writer.write(b"X-%d: %s\r\n" % (n, b"x" * 1000))
        answer = await connection.answer()

        assert (answer.status, answer.problem["type"]) == (431, "/problems/headers-too-large")


@pytest.mark.parametrize("sent", [b"", b"POST /v1/que", POST.encode() + b"X-Half: "])
async def test_a_connection_on_which_no_request_arrives_is_closed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.protocol.HEAD_TIMEOUT", 0.2)
    async with running() as gateway:
        connection = await gateway.connect()
        await connection.send(sent)

        assert await connection.closed()


async def test_headers_that_trickle_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes soon enough, but the headers never end."""
    monkeypatch.setattr("gateway.protocol.HEAD_TIMEOUT", 0.3)
    async with running() as gateway:
        connection = await gateway.connect()
        await connection.send(POST.encode() + b"X-Slow: ")

        assert await trickled(connection, b"x")


@pytest.mark.parametrize("answers", [0, 2])
async def test_empty_lines_between_requests_do_not_hold_a_connection(
    answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser passes over them: no request begins that could be too slow."""
    monkeypatch.setattr("gateway.protocol.HEAD_TIMEOUT", 0.3)
    monkeypatch.setattr("gateway.server.KEEP_ALIVE", 0.3)
    async with running() as gateway:
        connection = await gateway.connect()
        for _ in range(answers):
            await connection.send(request(b"{}"))
            assert (await connection.answer()).status == 202

        assert await trickled(connection, b"\r\n")


async def test_after_an_early_answer_trailers_that_trickle_do_not_hold_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.protocol.LINGER", 0.3)
    async with running(max_body_bytes=1000) as gateway:
        connection = await gateway.connect()
        await connection.send(f"{POST}Transfer-Encoding: chunked\r\n\r\n400\r\n{'x' * 1024}\r\n".encode())
        assert (await connection.answer()).status == 413
        await connection.send(b"0\r\nX-Slow: ")

        assert await trickled(connection, b"x")


async def trickled(connection: RawConnection, piece: bytes) -> bool:
    """Whether the other side ends the connection while this is sent again and again."""
    closing = asyncio.create_task(connection.closed())
    while not closing.done():
        connection.writer.write(piece)
        await asyncio.wait({closing}, timeout=0.05)
    return closing.result()


async def test_an_early_answer_does_not_let_a_stalled_body_hold_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.protocol.LINGER", 0.2)
    async with running(max_body_bytes=1000) as gateway:
        connection = await gateway.connect()
        await connection.send(f"{POST}Content-Length: 5000\r\n\r\n".encode())
        assert (await connection.answer()).status == 413
        await connection.send(b"x" * 100)

        assert await connection.closed()


async def test_an_upgrade_is_not_taken_and_the_request_is_served() -> None:
    async with running() as gateway:
        answer = await gateway.raw(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )

        assert answer.status == 200


@pytest.mark.parametrize("framing", ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("in_pieces", [True, False])
async def test_a_request_that_offers_an_upgrade_keeps_its_body(framing: str, in_pieces: bool) -> None:
    """Java's client offers h2c with its first request; to the parser, what follows is another protocol's."""
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n"
    body = b"12345" if "Length" in framing else chunk(b"12345") + chunk(b"")
    sent = f"{POST}{offer}{framing}\r\n".encode() + body
    async with running() as gateway:
        connection = await gateway.connect()
        for piece in [sent[i : i + 1] for i in range(len(sent))] if in_pieces else [sent * 2]:
            await connection.send(piece)
            await asyncio.sleep(0)
        await connection.send(request(b"next"))

        answers = 2 if in_pieces else 3
        assert [(await connection.answer()).status for _ in range(answers)] == [202] * answers
        assert [m.body for m in gateway.broker.messages] == [b"12345"] * (answers - 1) + [b"next"]
