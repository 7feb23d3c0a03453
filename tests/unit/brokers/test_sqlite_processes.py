"""Several processes on one queue file, killed and stopped at will: nothing lost, nobody starved or hung."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.brokers.api import Ack
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.files import Doorbells
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.errors import BrokerUnavailable
from forebay.testing.broker_contract.harness import collect, drain, ids, message, messages, publish

pytestmark = pytest.mark.system

SETTINGS = SQLiteSettings(ballast_bytes=0)


@contextlib.contextmanager
def process(what: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.unit.brokers.process", what, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def line(of: subprocess.Popen[str]) -> list[str]:
    assert of.stdout is not None
    return of.stdout.readline().split()


def rest(of: subprocess.Popen[str]) -> list[str]:
    """What a killed process had still said, whole lines only."""
    assert of.stdout is not None
    said = of.stdout.read()
    return said[: said.rfind("\n") + 1].split()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


async def test_four_processes_that_come_back_at_once_share_the_turns(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(process("turns", tmp_path)) for _ in range(4)]
        for w in writers:
            assert line(w) == ["ready"]
        for w in writers:
            assert w.stdin is not None
            w.stdin.write("go\n")
            w.stdin.flush()
        counts = [int(line(w)[0]) for w in writers]
    # They do not begin and stop at the same instant, so not exactly equal. Waiting as SQLite
    # does, by sleeping and trying again, gives some of them next to nothing.
    assert min(counts) > 0.5 * max(counts), counts


async def test_what_a_killed_publisher_was_told_is_there(path: Path) -> None:
    rng = random.Random(7)
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        told: set[str] = set()
        for _ in range(6):
            with process("publish", path) as publisher:
                assert line(publisher) == ["ready"]
                await asyncio.sleep(rng.uniform(0.02, 0.2))
                publisher.kill()
                told.update(rest(publisher))
        stored = ids(await drain(broker, "orders", len(told) + 30, 2.0))
    assert told
    assert told <= set(stored)
    assert len(stored) == len(set(stored))


async def test_a_killed_process_keeps_no_lock_through_its_forked_children(path: Path) -> None:
    """A handler's pool of processes survives a kill of the consumer."""
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        with process("orphan", path) as parent:
            child = int(line(parent)[0])
            try:
                parent.wait()
                await publish(broker, "orders", messages(1), timeout=3.0)
            finally:
                os.kill(child, signal.SIGKILL)


async def test_what_a_killed_consumer_held_goes_to_others_within_two_seconds(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        sent = messages(50)
        await publish(broker, "orders", sent)
        with process("hold", path) as holder:
            assert line(holder) == ["holding", "50"]
            async with broker.subscribe("orders", prefetch=100) as subscription:
                assert await subscription.receive(1, 1.5) == [], "the holder lives; its loans are its own"
                holder.kill()
                killed = time.monotonic()
                got = await collect(subscription, 50, 5.0)
                waited = time.monotonic() - killed
                assert await subscription.settle([Ack(d) for d in got]) == []
    assert sorted(ids(got)) == sorted(ids(sent))
    assert {d.attempt for d in got} == {1}, "a crash is no attempt"
    assert waited < 2.0


async def test_what_was_held_at_a_crash_of_everybody_is_there_at_the_next_start(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", messages(10))
    with process("hold", path) as holder:
        assert line(holder) == ["holding", "10"]
        holder.kill()
        holder.wait()
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        got = await drain(broker, "orders", 10, 0.5)
    assert [d.attempt for d in got] == [1] * 10


async def test_consumers_killed_in_the_middle_lose_and_repeat_no_acknowledged_message(path: Path) -> None:
    """
    What a consumer said was acknowledged is never delivered again, and all else is.

    An ack whose answer the kill cut off was done or was not; either is right.
    """
    rng = random.Random(11)
    sent = messages(12_000)
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", sent)
        acknowledged: list[str] = []
        for _ in range(4):
            with process("consume", path) as consumer:
                assert line(consumer) == ["ready"]
                await asyncio.sleep(rng.uniform(0.05, 0.25))
                consumer.kill()
                acknowledged += rest(consumer)
        left: list[str] = []
        async with broker.subscribe("orders", prefetch=5_000) as subscription:
            while batch := await subscription.receive(5_000, 2.0):
                left += ids(batch)
                await subscription.settle([Ack(d) for d in batch])
    assert 0 < len(acknowledged) < len(sent)
    assert not set(acknowledged) & set(left)
    assert len(left) == len(set(left))
    missing = set(ids(sent)) - set(acknowledged) - set(left)
    assert len(missing) <= 4 * 10, "at most one batch per kill can have been acknowledged unheard"


async def test_a_stopped_process_with_the_turn_hangs_nobody(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message(b"before")])
        with process("keep_turn", path.with_name("queue.db.run")) as holder:
            assert line(holder) == ["mine"]
            os.kill(holder.pid, signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(BrokerUnavailable, match="no turn to write"):
                await broker.publish("orders", [message(b"withdrawn")], timeout=0.3)
            with pytest.raises(BrokerUnavailable, match="no turn to write"):
                await broker.ping()
            assert (await broker.depth("orders")).waiting == 1, "reading needs no turn"
            assert time.monotonic() - started < 4
            holder.kill()
        await publish(broker, "orders", [message(b"after")])
        got = await drain(broker, "orders", 3, 0.5)
    assert [d.message.body for d in got] == [b"before", b"after"]


async def test_an_idle_consumer_in_another_process_wakes_within_50_ms_and_uses_no_time(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        with process("wait_once", path) as consumer:
            assert line(consumer) == ["ready"]
            latencies, cpu = [], []
            for _ in range(12):
                await asyncio.sleep(0.25)
                stored = time.time()
                await publish(broker, "orders", [message()])
                # From before the publish: its fsync is inside, too.
                at, used = await asyncio.to_thread(line, consumer)
                latencies.append(float(at) - stored)
                cpu.append(float(used))
    # The median: the machine that runs this may be busy with other things.
    assert sorted(latencies)[len(latencies) // 2] < 0.05, latencies
    assert cpu[-1] - cpu[0] < 0.2, "3 seconds of waiting must not be a busy loop"


def test_the_socket_of_a_killed_process_is_removed_by_whoever_rings_it(tmp_path: Path) -> None:
    bells = Doorbells(tmp_path)
    bell = bells.listen(7)
    bell._bell.close()
    assert [p.name.partition(".")[0] for p in tmp_path.iterdir()] == ["7"]

    bells.ring({8})
    assert len(list(tmp_path.iterdir())) == 1
    bells.ring({7})

    assert list(tmp_path.iterdir()) == []
    bells.close()


async def test_a_queue_deeper_than_a_socket_address_is_long_wakes_too(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "queue.db"
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        async with broker.subscribe("orders", prefetch=1) as subscription:
            receiving = asyncio.create_task(subscription.receive(1, 60))
            await asyncio.sleep(0.1)
            started = time.monotonic()
            await publish(broker, "orders", [message()])
            await receiving
            assert time.monotonic() - started < 0.5, "the fallback poll is a second"
