"""One thing fails at the worst moment: nobody waits for ever, nothing is held by nobody or by two."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import apsw
import pytest
from structlog.testing import capture_logs

from forebay.brokers.api import Ack, Retry
from forebay.brokers.sqlite import consuming
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.brokers.sqlite.subscription import SQLiteSubscription
from forebay.errors import BrokerUnavailable
from forebay.testing.broker_contract.harness import FAILURE, collect, message, publish
from tests.waiting import until

SETTINGS = SQLiteSettings(ballast_bytes=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


async def test_a_look_that_fails_is_told_and_the_next_one_works(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to those who asked for something else in the same moment: a settlement must not vanish."""

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise apsw.IOError("disk I/O error")

    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message(b"one")])
        async with broker.subscribe("orders", prefetch=10) as subscription:
            held = await collect(subscription, 1, 2.0)
            assert await subscription.receive(1, 0.0) == []
            monkeypatch.setattr(consuming.Lease, "look", fail)
            with pytest.MonkeyPatch.context() as silence:
                # The writer's thread is not told before it has both to take at once.
                silence.setattr(broker._consumer, "_ring", lambda: None)
                waiting = asyncio.create_task(subscription.receive(1, 0.0))
                settling = asyncio.create_task(subscription.settle([Ack(d) for d in held]))
                await asyncio.sleep(0)
            broker._consumer._ring()
            with pytest.raises(BrokerUnavailable):
                async with asyncio.timeout(1.0):
                    await waiting
            with pytest.raises(BrokerUnavailable):
                async with asyncio.timeout(1.0):
                    await settling
            [again] = await collect(subscription, 1, 3.0)
            assert again.message == held[0].message


def overwrite(path: Path, content: bytes) -> bytes:
    """Return what was there before."""
    before = path.read_bytes()
    path.write_bytes(content)
    return before


async def test_a_file_that_is_no_queue_any_more_is_refused_once_per_request(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        sound = overwrite(path, b"overwritten by a careless restore " * 1000)
        started = time.monotonic()
        with capture_logs() as logs, pytest.raises(BrokerUnavailable, match="is not a queue file"):
            await broker.ping()
        assert time.monotonic() - started < 1.0, "told at once, not at the deadline"
        assert len(logs) <= 1
        overwrite(path, sound)
        await broker.ping()


def when_leases_are_over() -> float:
    return time.time() + 2 * SETTINGS.lease


async def test_what_a_failed_settlement_left_is_not_handed_back_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed, the process was stopped, others took over; now it goes on, under another owner."""

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise apsw.IOError("disk I/O error")

    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message(b"one")])
        async with broker.subscribe("orders", prefetch=10) as subscription:
            assert isinstance(subscription, SQLiteSubscription)
            assert broker._keeper is not None
            broker._keeper.cancel()  # as if stopped
            [mine] = await collect(subscription, 1, 2.0)
            monkeypatch.setattr(consuming.Settle, "apply", fail)
            with pytest.raises(BrokerUnavailable):
                await subscription.settle([Ack(mine)])

            async with (
                SQLiteBroker.open(path, SETTINGS, clock=when_leases_are_over) as other,
                other.subscribe("orders", prefetch=10) as theirs,
            ):
                [lent] = await collect(theirs, 1, 5.0)
                await publish(broker, "orders", [message(b"two")])
                got = await collect(subscription, 1, 3.0)  # under a new owner
                subscription.release_unapplied()
                assert await subscription.settle([Ack(d) for d in got]) == []
                assert await subscription.receive(1, 0.2) == [], "it is lent to the other"
                assert await theirs.settle([Ack(lent)]) == []
            depth = await broker.depth("orders")
            assert (depth.waiting, depth.in_hand, depth.bytes) == (0, 0, 0)
            assert await subscription.receive(1, 0.2) == []


async def test_a_ring_during_a_look_is_not_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look came too early for the message: it is looked again at once, not at the next poll."""
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        async with broker.subscribe("orders", prefetch=10) as subscription:
            assert isinstance(subscription, SQLiteSubscription)
            waiting = asyncio.create_task(subscription.receive(1, 10.0))
            await until(lambda: subscription._listening)
            take = subscription._take
            late: list[object] = []
            monkeypatch.setattr(subscription, "_take", late.append)
            await until(lambda: len(late) > 0)  # the next poll's look: nothing was there
            assert subscription._listening
            await publish(broker, "orders", [message(b"one")])
            await until(lambda: subscription._heard)
            monkeypatch.undo()
            began = time.monotonic()
            take(late[0])
            assert len(await waiting) == 1
            assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("delay", [1e20, float("inf")])
async def test_an_endless_delay_spoils_no_other_settlement(path: Path, delay: float) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message(b"one"), message(b"two")])
        async with broker.subscribe("orders", prefetch=10) as subscription:
            one, two = await collect(subscription, 2, 2.0)
            assert await subscription.settle([Ack(one), Retry(two, delay, FAILURE)]) == []
            depth = await broker.depth("orders")
            assert (depth.waiting, depth.scheduled, depth.in_hand) == (0, 1, 0)
            assert await subscription.receive(1, 0.1) == []
