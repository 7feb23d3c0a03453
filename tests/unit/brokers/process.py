"""
What the tests of several processes run in the others: `python -m tests.unit.brokers.process WHAT FILE …`.

Each prints one line per thing that has certainly happened, so that a test knows
what a killed process had been told.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from forebay.brokers.api import Ack, Broker
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.files import Turn
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.testing.broker_contract.harness import ids, messages

SETTINGS = SQLiteSettings(ballast_bytes=0)


def say(*words: object) -> None:
    print(*words, flush=True)


async def publish(broker: Broker) -> None:
    """Publish for ever; the ids of what was confirmed."""
    say("ready")
    while True:
        batch = messages(5)
        results = await broker.publish("orders", batch, timeout=10)
        say(*[m.id for m, r in zip(batch, results, strict=True) if r.ok])


async def hold(broker: Broker) -> None:
    """Take all there is and settle none of it."""
    async with broker.subscribe("orders", prefetch=10_000) as subscription:
        held = await subscription.receive(10_000, 0.5)
        say("holding", len(held))
        await asyncio.sleep(3600)


async def consume(broker: Broker) -> None:
    """Acknowledge for ever; the ids of what was."""
    async with broker.subscribe("orders", prefetch=50) as subscription:
        say("ready")
        while True:
            batch = await subscription.receive(10, 0.05)
            stale = await subscription.settle([Ack(d) for d in batch])
            if batch:
                say(*[id_ for id_ in ids(batch) if id_ not in ids(stale)])


async def wait_once(broker: Broker) -> None:
    """Wait idle for each of the messages; the time at which it was here, and the CPU time used so far."""
    async with broker.subscribe("orders", prefetch=10) as subscription:
        say("ready")
        while True:
            batch = await subscription.receive(1, 60)
            say(time.time(), time.process_time())
            await subscription.settle([Ack(d) for d in batch])


async def orphan(broker: Broker) -> None:
    """Be killed in the middle of a write, and leave a forked child behind; its process id."""
    await broker.ping()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        signal.pause()
    assert isinstance(broker, SQLiteBroker)
    assert broker._publisher._turn is not None
    with broker._publisher._turn:
        say(child)
        os.kill(os.getpid(), signal.SIGKILL)


def turns(path: Path) -> None:
    """Take the turn for ever, coming back at once; say how often when told to stop by a line."""
    turn = Turn(path)
    say("ready")
    sys.stdin.readline()
    count, until = 0, time.monotonic() + 1.5
    while time.monotonic() < until:
        with turn:
            count += 1
            busy = time.monotonic() + 0.001
            while time.monotonic() < busy:
                pass
    say(count)


def keep_turn(path: Path) -> None:
    turn = Turn(path)
    with turn:
        say("mine")
        sys.stdin.readline()


async def with_broker(path: Path, what: Callable[[Broker], Awaitable[None]]) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await what(broker)


if __name__ == "__main__":
    what, file = sys.argv[1], Path(sys.argv[2])
    if what in ("turns", "keep_turn"):
        {"turns": turns, "keep_turn": keep_turn}[what](file)
    else:
        jobs = {
            "publish": publish,
            "hold": hold,
            "consume": consume,
            "wait_once": wait_once,
            "orphan": orphan,
        }
        asyncio.run(with_broker(file, jobs[what]))
