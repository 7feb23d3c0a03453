"""The main job with real parts: the embedded queue, a supervisor, an SQLite database, and trouble."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from consumers.settings import BreakerSettings, ConsumerSettings, QueueSettings
from consumers.sinks.factory import make_sink
from consumers.status import QueueStatus
from consumers.supervisor import Supervisor
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.ids import conflict_id
from forebay.message import Message
from forebay.storage.classify import TransientError
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from forebay.storage.schema import migrate
from forebay.storage.settings import DatabaseSettings
from tests.unit.consumers.fakes import messages
from tests.waiting import until

SETTINGS = QueueSettings(
    batch_size=100,
    breaker=BreakerSettings(failure_threshold=1, recovery_time=0.1, max_recovery_time=0.2),
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/forebay.db", DatabaseSettings(lock_timeout=0.05))
    migrate(database)
    yield database
    database.dispose()


@contextmanager
def outage(database: Database) -> Iterator[None]:
    """Another program holds the lock: nothing can be written, nor read."""
    assert database.path is not None
    lock = sqlite3.connect(database.path, isolation_level=None)
    try:
        lock.execute("PRAGMA busy_timeout=5000")
        lock.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        lock.close()


@asynccontextmanager
async def consuming(path: Path, database: Database) -> AsyncIterator[Supervisor]:
    """As `forebay consume` does, with a connection of its own to the queue."""
    stop = asyncio.Event()
    async with SQLiteBroker.open(path, SQLiteSettings(ballast_bytes=0)) as broker:
        supervisor = Supervisor(
            broker,
            ConsumerSettings(),
            database=database,
            make_sink=lambda queue, settings: make_sink(queue, settings, database),
        )
        supervisor.add("orders", SETTINGS)
        task = asyncio.create_task(supervisor.run(stop))
        try:
            yield supervisor
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)


def status(supervisor: Supervisor, queue: str = "orders") -> QueueStatus:
    return next(s for s in supervisor.snapshot() if s.queue == queue)


async def publish(broker: SQLiteBroker, batch: list[Message]) -> None:
    for start in range(0, len(batch), 250):
        results = await broker.publish("orders", batch[start : start + 250], timeout=10.0)
        assert [r.error for r in results if r.error] == []


async def test_everything_ends_stored_exactly_once_and_an_outage_burns_no_attempt(
    tmp_path: Path, database: Database
) -> None:
    rng = random.Random(7)
    queue_file = tmp_path / "queue.db"
    sent = messages(2_000)
    for n, message in enumerate(sent):
        message.body = f'{{"n": {n}}}'.encode()
    repeats = rng.sample(sent, 200)
    conflicts = [
        Message(id=m.id, body=b"other " + m.body, accepted_at=m.accepted_at) for m in rng.sample(sent, 20)
    ]

    async with SQLiteBroker.open(queue_file, SQLiteSettings(ballast_bytes=0)) as producer:
        await producer.declare("orders")
        await publish(producer, sent[:1_000])
        async with consuming(queue_file, database) as supervisor:
            await until(lambda: status(supervisor).stored >= 300)
            with outage(database):
                await publish(producer, sent[1_000:] + repeats)
                await until(lambda: status(supervisor).state == "paused")
                await asyncio.sleep(0.5)
        # A second process takes over what the first one left; then the conflicts come.
        async with consuming(queue_file, database) as supervisor:
            with outage(database):
                await until(lambda: status(supervisor).state == "paused")
            await until(lambda: _count(database, "messages") == 2_000, timeout=30)
            await publish(producer, conflicts)
            await until(lambda: status(supervisor, "orders.dead").stored == 20, timeout=30)
            await _empty(producer)

    with database.read() as db:
        stored = {
            row.id: (bytes(row.body), row.attempts) for row in db.execute(sa.text("SELECT * FROM messages"))
        }
    assert stored == {m.id: (m.body, 1) for m in sent}
    dead = DeadLetterStore(database).list(DeadLetterFilter(), limit=100, bodies=True)
    assert {(d.id, d.original_id, d.body, d.error_class, d.destination) for d in dead} == {
        (conflict_id(m.id, m.body), m.id, m.body, "idempotency-conflict", "database") for m in conflicts
    }


async def test_a_queue_with_a_handler_counts_every_effect_once(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tills.py").write_text(
        "import sqlalchemy as sa\n"
        "def handle(message, db):\n"
        "    db.execute(sa.text('UPDATE till SET total = total + :n'), {'n': int(message.body)})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with database.begin() as db:
        db.execute(sa.text("CREATE TABLE till (total INTEGER)"))
        db.execute(sa.text("INSERT INTO till VALUES (0)"))
    sent = messages(300)
    for n, message in enumerate(sent):
        message.body = str(n).encode()
    stop = asyncio.Event()
    async with SQLiteBroker.open(tmp_path / "queue.db", SQLiteSettings(ballast_bytes=0)) as broker:
        await broker.declare("orders")
        await publish(broker, sent + sent[:100])
        supervisor = Supervisor(
            broker,
            ConsumerSettings(),
            database=database,
            make_sink=lambda queue, settings: make_sink(queue, settings, database),
        )
        supervisor.add("orders", SETTINGS.model_copy(update={"handler": "tills:handle"}))
        task = asyncio.create_task(supervisor.run(stop))
        await until(lambda: status(supervisor).stored + status(supervisor).duplicates == 400, timeout=30)
        stop.set()
        await task

    assert status(supervisor).duplicates == 100
    with database.read() as db:
        assert db.execute(sa.text("SELECT total FROM till")).scalar_one() == sum(range(300))


def _count(database: Database, table: str) -> int:
    """Its rows; -1 while a writer does not let us look."""
    try:
        with database.read() as db:
            count: int = db.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()
            return count
    except TransientError:
        return -1


async def _empty(broker: SQLiteBroker) -> None:
    async with asyncio.timeout(20):
        while True:
            depths = [await broker.depth("orders"), await broker.depth("orders.dead")]
            if not any((d.waiting or 0) + (d.scheduled or 0) + (d.in_hand or 0) for d in depths):
                return
            await asyncio.sleep(0.05)
