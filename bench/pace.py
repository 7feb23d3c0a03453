"""
What the client library alone needs to store one message, at a steady rate: what latency is held against.

    python -m bench.pace URL QUEUE RATE SECONDS

A message at a time, confirmed: pika to a quorum queue, aiokafka's `send` with acks=all, apsw with a
transaction for all that have become due. Prints the p50 and p99 in milliseconds.

pika and aiokafka send a message while others are on their way, and their time is counted from then. apsw
blocks: what becomes due while a transaction runs waits for it, and is counted from when it was due.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pika
import uvloop
from aiokafka import AIOKafkaProducer
from pika.adapters.asyncio_connection import AsyncioConnection

from bench.load import body
from forebay.ids import new_id

TICK = 0.001
"""Seconds between two looks at what is due; the event loop's clock has no finer ones."""
WARM_UP = 0.2
"""Of the time, at its beginning, that is not counted."""

Told = Callable[[float], None]
"""Is given when a message was sent, at the time of its confirmation."""


class Latencies:
    def __init__(self, rate: float, seconds: float) -> None:
        self._rate = rate
        self._began = time.perf_counter()
        self._count_from = self._began + WARM_UP * seconds
        self._until = self._began + seconds
        self._values: list[float] = []
        self.sent = 0

    def due(self) -> int:
        """How many are to be sent now; -1 at the end."""
        now = time.perf_counter()
        if now >= self._until:
            return -1
        count = int((now - self._began) * self._rate) - self.sent
        self.sent += count
        return count

    def due_at(self, number: int) -> float:
        """When the message with this number, from 0, was to be sent."""
        return self._began + (number + 1) / self._rate

    def confirmed(self, sent_at: float) -> None:
        now = time.perf_counter()
        if sent_at >= self._count_from:
            self._values.append((now - sent_at) * 1000)

    def figures(self) -> tuple[float, float]:
        cuts = statistics.quantiles(self._values, n=100)
        return cuts[49], cuts[98]


async def _steady(latencies: Latencies, send: Callable[[float], None]) -> None:
    while (count := latencies.due()) >= 0:
        for _ in range(count):
            send(time.perf_counter())
        await asyncio.sleep(TICK)


async def rabbitmq(url: str, queue: str, latencies: Latencies) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Any] = loop.create_future()
    closed: asyncio.Future[None] = loop.create_future()
    times: dict[int, float] = {}
    tag = first = 0

    def on_answer(frame: Any) -> None:
        nonlocal first
        upto = frame.method.delivery_tag
        assert isinstance(frame.method, pika.spec.Basic.Ack), frame
        tags = range(first + 1, upto + 1) if frame.method.multiple else (upto,)
        for one in tags:
            if (sent_at := times.pop(one, None)) is not None:
                latencies.confirmed(sent_at)
        if frame.method.multiple:
            first = upto

    def on_channel(channel: Any) -> None:
        channel.confirm_delivery(on_answer, lambda _: ready.set_result(channel))

    def on_end(_: Any, error: Exception) -> None:
        if not closed.done():
            closed.set_result(None)
        if not ready.done():
            ready.set_exception(error)

    connection = AsyncioConnection(
        pika.URLParameters(url), lambda c: c.channel(on_open_callback=on_channel), on_end, on_end,
        custom_ioloop=loop,
    )  # fmt: skip
    channel = await ready

    def send(now: float) -> None:
        nonlocal tag
        tag += 1
        times[tag] = now
        properties = pika.BasicProperties(
            message_id=new_id(), content_type="application/json", delivery_mode=2
        )
        channel.basic_publish("", queue, body(tag), properties, mandatory=True)

    await _steady(latencies, send)
    connection.close()
    await asyncio.wait((closed,), timeout=2)


async def kafka(url: str, topic: str, latencies: Latencies) -> None:
    running: set[asyncio.Task[None]] = set()
    async with AIOKafkaProducer(
        bootstrap_servers=url.removeprefix("kafka://"), acks="all", enable_idempotence=True
    ) as producer:

        async def one(now: float) -> None:
            await (await producer.send(topic, body(0), headers=[("id", new_id().encode())]))
            latencies.confirmed(now)

        def send(now: float) -> None:
            task = asyncio.create_task(one(now))
            running.add(task)
            task.add_done_callback(running.discard)

        await _steady(latencies, send)
        await asyncio.gather(*running)


def sqlite(path: Path, latencies: Latencies) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS messages (n INTEGER PRIMARY KEY, id BLOB, body BLOB)")
    while (count := latencies.due()) >= 0:
        if not count:
            time.sleep(TICK / 10)
            continue
        rows = [(new_id().encode(), body(0)) for _ in range(count)]
        with connection:
            connection.executemany("INSERT INTO messages (id, body) VALUES (?, ?)", rows)
        for number in range(latencies.sent - count, latencies.sent):
            latencies.confirmed(latencies.due_at(number))


def p99(url: str, queue: str, rate: float, seconds: int) -> float:
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.pace", url, queue, f"{rate:.0f}", f"{seconds}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"bench.pace {url} failed:\n{done.stderr[-3000:]}")
    found: float = json.loads(done.stdout.splitlines()[-1])[1]
    return found


def main(url: str, queue: str, rate: float, seconds: float) -> int:
    latencies = Latencies(rate, seconds)
    if url.startswith("sqlite"):
        sqlite(Path(url.removeprefix("sqlite:///")), latencies)
    else:
        run = kafka if url.startswith("kafka") else rabbitmq
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(url, queue, latencies))
    print(json.dumps(latencies.figures()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
