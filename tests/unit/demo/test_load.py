"""The load of `forebay demo`: open loop, timed from the moment when a request was due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from forebay.demo.connection import NO_ANSWER, TIMED_OUT
from forebay.demo.load import Load, Outcomes, Tick, quantile
from forebay.ledger import Recorder, read_record

ID = "019aaf0e-8d0c-7c52-b7a5-0d7f9f0f3a11"
ACCEPTED = b'HTTP/1.1 202 Accepted\r\nContent-Length: 45\r\n\r\n{"id":"%s"}' % ID.encode()

Answer = Callable[[bytes], Awaitable[bytes | None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Answers each request with what `answer` makes of its head; None: closes the connection."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                answered = await answer(head)
                if answered is None:
                    break
                writer.write(answered)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/orders"
    if serving:
        await asyncio.wait(serving)


async def test_what_is_accepted_is_counted_timed_and_recorded(tmp_path: Path) -> None:
    async def answer(_: bytes) -> bytes:
        return ACCEPTED

    recorder = Recorder(tmp_path / "sent.txt")
    ticks: list[Tick] = []
    async with server(answer) as url:
        load = Load(url, rate=200, seconds=0.25, record=("orders", recorder))
        outcomes = await load.run(ticks.append, every=0.1)
    recorder.close()

    assert (load.sent, load.accepted, load.failed, len(outcomes)) == (50, 50, 0, 50)
    assert set(outcomes.status) == {202}
    assert (ticks[-1].sent, ticks[-1].accepted) == (50, 50)
    with (tmp_path / "sent.txt").open("rb") as lines:
        record = read_record(lines)
    assert record.lines == 50
    assert {(sent.id, sent.queue) for sent in record.sent} == {(ID, "orders")}


async def test_a_server_that_stalls_is_still_sent_everything_in_time_and_the_wait_counts() -> None:
    """A closed loop would have sent one request and timed one wait."""
    go = asyncio.Event()
    arrived = 0

    async def answer(_: bytes) -> bytes:
        nonlocal arrived
        arrived += 1
        if arrived == 20:
            go.set()
        await go.wait()
        return ACCEPTED

    async with server(answer) as url:
        outcomes = await Load(url, rate=100, seconds=0.2).run()

    first = outcomes.took[outcomes.due.index(0.0)]
    assert first >= 0.19
    assert len(outcomes) == 20
    assert set(outcomes.status) == {202}


async def test_a_sender_gives_up_when_its_time_is_over() -> None:
    forever = asyncio.Event()

    async def answer(_: bytes) -> bytes:
        await forever.wait()
        return ACCEPTED

    async with server(answer) as url:
        load = Load(url, rate=100, seconds=0.05, timeout=0.2)
        outcomes = await load.run()
        forever.set()

    assert (load.accepted, load.failed) == (0, 5)
    assert set(outcomes.status) == {TIMED_OUT}
    assert min(outcomes.took) >= 0.2


@pytest.mark.parametrize("nobody_listens", [False, True])
async def test_no_answer_is_a_failure_and_nothing_is_sent_twice(nobody_listens: bool) -> None:
    arrived = 0

    async def answer(_: bytes) -> None:
        nonlocal arrived
        arrived += 1

    async with server(answer) as url:
        if not nobody_listens:
            outcomes = await Load(url, rate=100, seconds=0.05).run()
    if nobody_listens:
        outcomes = await Load(url, rate=100, seconds=0.05).run()

    assert set(outcomes.status) == {NO_ANSWER}
    assert arrived == (0 if nobody_listens else 5)


async def test_a_record_that_cannot_be_written_ends_the_sending_and_is_told() -> None:
    async def answer(_: bytes) -> bytes:
        return ACCEPTED

    recorder = Recorder(Path("/dev/full"))
    async with server(answer) as url:
        load = Load(url, rate=50, seconds=60, record=("orders", recorder))
        with pytest.raises(OSError, match="record cannot be written"):
            await load.run()
    recorder.close()

    assert load.sent < 3000


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    outcomes = Outcomes()
    outcomes.add(0.25, 0.001234, 202)
    outcomes.add(0.5, 30.0, TIMED_OUT)
    outcomes.write(tmp_path / "outcomes")

    assert Outcomes.read(tmp_path / "outcomes") == outcomes


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([float(n) for n in range(1, 101)], 0.99) == 99.0
