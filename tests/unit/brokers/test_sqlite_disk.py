"""A disk that is full or fails: a definite refusal, consumers that go on, and no promise that is not kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from forebay.brokers.api import Ack, Release
from forebay.brokers.sqlite import schema
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.checkpoints import sync
from forebay.brokers.sqlite.files import Ballast
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.errors import BrokerUnavailable, PublishUnconfirmed, QueueFull
from forebay.testing.broker_contract.harness import collect, drain, ids, message, messages, publish
from tests.conftest import SMALL_DISK


async def test_a_full_disk_is_a_definite_refusal_and_consumers_go_on(small_disk: Path) -> None:
    # No low water here: this is about the very last byte.
    settings = SQLiteSettings(ballast_bytes=2**20, min_free_bytes=0)
    filler = small_disk / "filler"
    async with SQLiteBroker.open(small_disk / "queue.db", settings) as broker:
        await broker.declare("orders")
        ballast = small_disk / "queue.db.run" / "ballast"
        assert ballast.stat().st_size == 2**20
        stored: list[str] = []
        with filler.open("wb", buffering=0) as file:
            free = os.statvfs(small_disk)
            file.write(b"\0" * (free.f_bavail * free.f_frsize - 2 * 2**20))
        while True:
            batch = [message(b"x" * 10_000) for _ in range(10)]
            results = await broker.publish("orders", batch, timeout=10)
            stored += [m.id for m, r in zip(batch, results, strict=True) if r.ok]
            if not results[-1].ok:
                break
        assert all(isinstance(r.error, QueueFull) for r in results), "none of this transaction is stored"

        # Not one byte is left for the consumers' log either.
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
        assert os.statvfs(small_disk).f_bavail == 0
        async with broker.subscribe("orders", prefetch=1_000) as subscription:
            # The refused publish may have left some room in the log: go on until that is used up.
            for _ in range(200):
                got = await collect(subscription, len(stored), 5.0)
                if not ballast.exists():
                    break
                assert await subscription.settle([Release(d) for d in got]) == []
            assert await subscription.settle([Ack(d) for d in got]) == []
        assert ids(got) == stored, "what was refused must not be there, what was confirmed must"
        assert not ballast.exists(), "that was what the consumers could go on with"

        filler.unlink()
        await publish(broker, "orders", messages(3))
        assert len(await drain(broker, "orders", 3, 2.0)) == 3


async def test_a_consumer_can_be_started_on_a_full_disk(small_disk: Path) -> None:
    settings = SQLiteSettings(ballast_bytes=2**20, min_free_bytes=0)
    async with SQLiteBroker.open(small_disk / "queue.db", settings) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", messages(50))
    with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)

    async with SQLiteBroker.open(small_disk / "queue.db", settings) as broker:
        assert len(await drain(broker, "orders", 50, 2.0)) == 50


async def test_below_the_low_water_publishes_are_refused_before_the_disk_is_full(small_disk: Path) -> None:
    settings = SQLiteSettings(ballast_bytes=0, min_free_bytes=SMALL_DISK)
    filler = small_disk / "filler"
    async with SQLiteBroker.open(small_disk / "queue.db", settings) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", messages(1))
        free = os.statvfs(small_disk)
        # The setting is the whole disk, so the 5 % rule is what counts: 419 430 bytes.
        filler.write_bytes(b"\0" * (free.f_bavail * free.f_frsize - 300_000))

        [result] = await broker.publish("orders", [message()], timeout=5)

        assert isinstance(result.error, QueueFull)
        assert "min_free_bytes" in str(result.error)
        with pytest.raises(BrokerUnavailable, match="bytes free"):
            await broker.ping()
        assert len(await drain(broker, "orders", 1, 2.0)) == 1
        filler.unlink()
        await publish(broker, "orders", messages(1))


def test_the_ballast_is_taken_again_only_when_there_is_plenty(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast", 4096)
    ballast.restore(free=10_000, low_water=5_000)
    assert not ballast.release()
    ballast.restore(free=100_000, low_water=5_000)
    assert (tmp_path / "ballast").stat().st_size == 4096
    assert ballast.release()
    assert list(tmp_path.iterdir()) == []


class FailingDisk(apsw.VFS):
    """A disk on which fsync fails while `failing`; everything else is the real one."""

    def __init__(self) -> None:
        self.failing = False
        self.syncs = 0
        super().__init__("failing-disk", base="unix", makedefault=True)

    def xOpen(self, name: object, flags: list[int]) -> FailingFile:  # the name is SQLite's
        return FailingFile(self, name, flags)


class FailingFile(apsw.VFSFile):
    def __init__(self, disk: FailingDisk, name: object, flags: list[int]) -> None:
        self.disk = disk
        super().__init__("unix", name, flags)  # type: ignore[arg-type]

    def xSync(self, flags: int) -> None:  # the name is SQLite's
        self.disk.syncs += 1
        if self.disk.failing:
            raise apsw.IOError("the disk is gone")
        super().xSync(flags)


@pytest.fixture
def failing_disk() -> Iterator[FailingDisk]:
    before = apsw.vfs_names()[0]
    disk = FailingDisk()
    yield disk
    disk.unregister()
    assert apsw.vfs_names()[0] == before


async def test_a_failed_fsync_is_unconfirmed_and_the_log_is_rewritten_before_the_next_promise(
    tmp_path: Path, failing_disk: FailingDisk
) -> None:
    """
    The kernel reports it once; the next fsync of the same file would succeed and prove nothing.

    So nothing more is confirmed until the log's pages were copied into the file.
    """
    path = tmp_path / "queue.db"
    suspect = tmp_path / "queue.db.run" / "suspect"
    async with SQLiteBroker.open(path, SQLiteSettings(ballast_bytes=0)) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message(b"before")])
        failing_disk.failing = True
        [result] = await broker.publish("orders", [message(b"maybe")], timeout=5)
        assert isinstance(result.error, PublishUnconfirmed)
        assert suspect.exists()
        with pytest.raises(BrokerUnavailable):
            await broker.publish("orders", [message(b"refused")], timeout=5)

        failing_disk.failing = False
        await publish(broker, "orders", [message(b"after")])

        assert not suspect.exists()
        bodies = [d.message.body for d in await drain(broker, "orders", 3, 1.0)]
    assert [b for b in bodies if b != b"maybe"] == [b"before", b"after"]


async def test_every_confirmed_publish_was_synced_and_acks_are_not(
    tmp_path: Path, failing_disk: FailingDisk
) -> None:
    async with SQLiteBroker.open(tmp_path / "queue.db", SQLiteSettings(ballast_bytes=0)) as broker:
        await broker.declare("orders")
        before = failing_disk.syncs
        for m in messages(5):
            await publish(broker, "orders", [m])
        assert failing_disk.syncs - before >= 5
        before = failing_disk.syncs
        await drain(broker, "orders", 5, 1.0)
        assert failing_disk.syncs == before


@pytest.fixture
def short_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is moved at a MiB already."""
    monkeypatch.setattr("forebay.brokers.sqlite.checkpoints.CHECKPOINT_BYTES", 2**20)
    monkeypatch.setattr("forebay.brokers.sqlite.checkpoints.STEP", 2**18)
    monkeypatch.setattr("forebay.brokers.sqlite.checkpoints.LITTLE", 2**18)
    monkeypatch.setattr(schema, "CHECKPOINT_BYTES", 2**20)


@pytest.mark.usefixtures("short_log")
async def test_publishes_are_confirmed_while_a_long_log_is_moved_into_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def held(database: Path) -> None:
        reached.set()
        go_on.wait(30)
        sync(database)

    monkeypatch.setattr("forebay.brokers.sqlite.checkpoints.sync", held)
    try:
        async with SQLiteBroker.open(tmp_path / "queue.db", SQLiteSettings(ballast_bytes=0)) as broker:
            await broker.declare("orders")
            sent = 0
            while not reached.is_set():
                assert sent < 400, "the log is never moved"
                await publish(broker, "orders", [message(b"x" * 10_000) for _ in range(5)])
                sent += 5
            await publish(broker, "orders", messages(3))
            assert not go_on.is_set()
            go_on.set()
            assert len(await drain(broker, "orders", sent + 3, 2.0)) == sent + 3
    finally:
        go_on.set()


@pytest.mark.usefixtures("short_log")
async def test_the_log_does_not_grow_without_bound(tmp_path: Path) -> None:
    log = tmp_path / "queue.db-wal"
    async with SQLiteBroker.open(tmp_path / "queue.db", SQLiteSettings(ballast_bytes=0)) as broker:
        await broker.declare("orders")
        for _ in range(40):
            await publish(broker, "orders", [message(b"x" * 10_000) for _ in range(20)])
            await drain(broker, "orders", 20, 1.0)
        assert log.stat().st_size < 5 * 2**20, "16 MB went through it"


async def test_an_idle_queue_gives_the_space_of_its_log_back_also_beside_a_subscription(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscription looks all the time, and settles after the publisher has come to rest."""
    monkeypatch.setattr("forebay.brokers.sqlite.checkpoints.IDLE", 0.2)
    monkeypatch.setattr("forebay.brokers.sqlite.checkpoints.LOG_KEPT", 2**20)
    monkeypatch.setattr("forebay.brokers.sqlite.broker.FALLBACK_POLL", 0.05)
    path, log = tmp_path / "queue.db", tmp_path / "queue.db-wal"
    async with SQLiteBroker.open(path, SQLiteSettings(ballast_bytes=0)) as broker:
        await broker.declare("orders")
        async with broker.subscribe("orders", prefetch=100) as subscription:
            for _ in range(30):
                await publish(broker, "orders", [message(b"x" * 10_000) for _ in range(20)])
            assert log.stat().st_size > 2**20
            reader = apsw.Connection(str(path))
            reader.execute("begin")
            assert reader.execute("select count(*) from message").get == 600
            settled = 0
            while settled < 600:
                found = await subscription.receive(100, 1.0)
                await subscription.settle([Ack(one) for one in found])
                settled += len(found)
            started = time.monotonic()
            await publish(broker, "orders", [message()])
            await _publisher_at_rest(broker)
            await publish(broker, "orders", [message()])
            assert time.monotonic() - started < 3, "the turn was kept, waiting for the one who reads"
            await _publisher_at_rest(broker)
            assert log.stat().st_size > 2**20
            reader.close()
            await subscription.settle([Ack(one) for one in await subscription.receive(2, 1.0)])
            deadline = time.monotonic() + 10
            while log.stat().st_size > 2**20:
                assert time.monotonic() < deadline, "the log keeps its space"
                await asyncio.sleep(0.05)
            await publish(broker, "orders", [message(b"after")])
            (last,) = await subscription.receive(1, 1.0)
            assert last.message.body == b"after"


async def _publisher_at_rest(broker: SQLiteBroker) -> None:
    deadline = time.monotonic() + 10
    while broker._publisher._dirty:
        assert time.monotonic() < deadline, "never idle"
        await asyncio.sleep(0.01)


async def test_an_idle_queue_moves_its_log_into_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.brokers.sqlite.checkpoints.IDLE", 0.05)
    path = tmp_path / "queue.db"
    async with SQLiteBroker.open(path, SQLiteSettings(ballast_bytes=0)) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message(b"x" * 100_000)])
        deadline = time.monotonic() + 5
        while path.stat().st_size < 100_000:
            assert time.monotonic() < deadline, "the log was not moved"
            time.sleep(0.01)  # noqa: ASYNC251  # the writer is a thread; the loop has nothing to do
