from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from consumers import worker as worker_module
from consumers.settings import BreakerSettings, ConsumerSettings, QueueSettings, RetrySettings
from consumers.status import QueueStatus
from consumers.supervisor import Supervisor
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.errors import Reject, SettingsError, SinkMisconfigured, SinkUnavailable
from forebay.message import Message
from forebay.sinks import Sink
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from forebay.storage.schema import migrate
from tests.unit.consumers.fakes import MemorySink, messages
from tests.waiting import until

QUICK = QueueSettings(
    batch_size=10,
    max_wait=0.0,
    retry=RetrySettings(max_attempts=2, base=0.01),
    breaker=BreakerSettings(failure_threshold=1, recovery_time=0.05, max_recovery_time=0.1),
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "IDLE_WAIT", 0.05)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/forebay.db")
    migrate(database)
    yield database
    database.dispose()


class Process:
    """A supervisor on a memory broker, with a sink per queue that the test can reach."""

    def __init__(self, database: Database | None = None) -> None:
        self.server = MemoryServer()
        self.broker = MemoryBroker(self.server)
        self.sinks: dict[str, MemorySink] = {}
        self.registry = CollectorRegistry()
        self.supervisor = Supervisor(
            self.broker,
            ConsumerSettings(shutdown_timeout=2.0),
            database=database,
            make_sink=self.make_sink,
            registry=self.registry,
            rng=random.Random(0),
        )
        self.stop = asyncio.Event()

    def make_sink(self, queue: str, settings: QueueSettings) -> Sink:
        self.sinks[queue] = MemorySink()
        return self.sinks[queue]

    async def publish(self, queue: str, count: int) -> list[Message]:
        await self.broker.declare(queue)
        sent = messages(count)
        await self.broker.publish(queue, sent, timeout=1.0)
        return sent

    def status(self, queue: str) -> QueueStatus:
        return next(s for s in self.supervisor.snapshot() if s.queue == queue)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.supervisor.run(self.stop))
        try:
            yield
        finally:
            self.stop.set()
            await asyncio.wait_for(task, 10)


async def test_it_consumes_every_queue_and_says_how_they_are() -> None:
    process = Process()
    process.supervisor.add("orders", QUICK)
    process.supervisor.add("clicks", QUICK)
    await process.publish("orders", 25)
    await process.publish("clicks", 5)
    assert process.status("orders").state == "starting"

    async with process.running():
        await until(lambda: process.status("orders").stored + process.status("clicks").stored == 30)
        assert process.status("orders").state == "running"
        assert process.status("orders").pause_reason is None

    assert process.status("orders").state == "stopped"
    assert process.sinks["orders"].closed
    assert process.metric("forebay_consumer_messages_total", queue="orders", outcome="stored") == 25


async def test_a_queue_added_while_it_runs_is_consumed_too() -> None:
    process = Process()
    async with process.running():
        await process.publish("late", 3)
        process.supervisor.add("late", QUICK)
        process.supervisor.add("late", QUICK)
        await until(lambda: process.status("late").stored == 3)

    assert len(process.supervisor.snapshot()) == 1


@pytest.mark.parametrize(("settings", "most"), [(QueueSettings(max_wait=0.0), 3), (QUICK, 10)])
async def test_a_sink_says_how_many_it_wants_unless_the_settings_do(
    settings: QueueSettings, most: int
) -> None:
    process = Process()
    sink = MemorySink()
    sink.batch_size = 3  # type: ignore[attr-defined]
    process.supervisor._make_sink = lambda queue, settings: sink
    process.supervisor.add("orders", settings)
    await process.publish("orders", 30)
    async with process.running():
        await until(lambda: process.status("orders").stored == 30)

    assert max(len(call) for call in sink.calls) == most


async def test_a_sink_that_cannot_be_made_is_the_callers_to_hear() -> None:
    process = Process()

    def refuse(queue: str, settings: QueueSettings) -> Sink:
        raise SettingsError("no")

    process.supervisor._make_sink = refuse
    with pytest.raises(SettingsError):
        process.supervisor.add("orders", QUICK)
    assert process.supervisor.snapshot() == []


async def test_an_order_that_the_broker_cannot_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordering by key is never quietly turned into something weaker."""
    process = Process()
    weaker = replace(process.broker.capabilities, ordering="one_subscription")
    monkeypatch.setattr(MemoryBroker, "capabilities", weaker)

    with pytest.raises(SettingsError, match=r'queues.orders.order is "key", which this broker cannot keep'):
        process.supervisor.add("orders", QUICK.model_copy(update={"order": "key"}))

    assert process.supervisor.snapshot() == []


async def test_concurrency_means_that_many_batches_at_once_and_order_by_key_means_one() -> None:
    process = Process()
    process.supervisor.add("orders", QUICK.model_copy(update={"concurrency": 3}))
    process.supervisor.add("ledger", QUICK.model_copy(update={"concurrency": 3, "order": "key"}))
    for sink in process.sinks.values():
        sink.gate.clear()
    await process.publish("orders", 200)
    await process.publish("ledger", 200)

    async with process.running():
        await until(lambda: len(process.sinks["orders"].calls) == 3)
        await until(lambda: len(process.sinks["ledger"].calls) == 1)
        for sink in process.sinks.values():
            sink.gate.set()
        await until(lambda: process.status("ledger").stored == 200)


@pytest.mark.parametrize(
    ("error", "needs_someone", "reason"),
    [
        (SinkUnavailable("connection refused"), False, "unavailable"),
        (SinkMisconfigured("permission denied"), True, "misconfigured"),
    ],
)
async def test_a_pause_is_visible_with_its_reason(error: Exception, needs_someone: bool, reason: str) -> None:
    process = Process()
    process.supervisor.add("orders", QUICK)
    process.sinks["orders"].down = error
    await process.publish("orders", 5)

    async with process.running():
        await until(lambda: process.status("orders").state == "paused")
        status = process.status("orders")
        assert status.pause_reason == str(error)
        assert status.needs_someone is needs_someone
        assert process.metric("forebay_consumer_paused", destination="memory", reason=reason) == 1
        process.sinks["orders"].down = None
        await until(lambda: process.status("orders").stored == 5)

    assert process.metric("forebay_consumer_paused", destination="memory", reason=reason) == 0


async def test_queues_with_one_destination_share_its_breaker() -> None:
    """While one queue's message probes the destination, the other queue sends nothing there."""
    process = Process()
    settings = QUICK.model_copy(
        update={"breaker": BreakerSettings(failure_threshold=1, recovery_time=60, max_recovery_time=60)}
    )
    process.supervisor.add("orders", settings)
    process.supervisor.add("clicks", settings)
    process.sinks["orders"].down = SinkUnavailable("connection refused")
    await process.publish("orders", 5)

    async with process.running():
        await until(lambda: process.status("orders").state == "paused")
        assert process.status("clicks").state == "paused"
        await process.publish("clicks", 5)
        await asyncio.sleep(0.1)

    assert process.sinks["clicks"].calls == []


async def test_dead_letters_are_archived_with_their_reason(database: Database) -> None:
    process = Process(database)
    process.supervisor.add("orders", QUICK)
    process.sinks["orders"].errors = lambda _: Reject("no such customer")
    sent = await process.publish("orders", 3)

    async with process.running():
        await until(lambda: process.status("orders.dead").stored == 3)

    records = DeadLetterStore(database).list(DeadLetterFilter(queue="orders"), limit=10, bodies=True)
    assert {r.id for r in records} == {m.id for m in sent}
    assert {(r.reason, r.destination, r.attempts, r.body) for r in records} == {
        ("no such customer", "memory", 1, b"{}")
    }
    assert not process.server.queues["orders.dead"].entries


async def test_while_the_database_is_away_dead_letters_rest_in_the_broker(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(database)
    process.supervisor.add("orders", QUICK)
    process.sinks["orders"].errors = lambda _: Reject("no such customer")
    archive: Callable[..., None] = DeadLetterStore.archive
    down = True

    def sometimes(self: DeadLetterStore, deliveries: object) -> None:
        if down:
            raise SinkUnavailable("connection refused")
        archive(self, deliveries)

    monkeypatch.setattr(DeadLetterStore, "archive", sometimes)
    await process.publish("orders", 3)

    async with process.running():
        await until(lambda: process.status("orders.dead").state == "paused")
        await until(lambda: len(process.server.queues["orders.dead"].entries) == 3)
        assert process.status("orders").state == "running"
        down = False
        await until(lambda: process.status("orders.dead").stored == 3)


async def test_a_dead_letter_that_cannot_be_archived_harms_no_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(database)
    process.supervisor.add("orders", QUICK)
    process.sinks["orders"].errors = lambda _: Reject("no such customer")
    sent = await process.publish("orders", 10)
    archive: Callable[..., None] = DeadLetterStore.archive

    def picky(self: DeadLetterStore, deliveries: list[object]) -> None:
        if any(d.message.id == sent[4].id for d in deliveries):  # type: ignore[attr-defined]  # deliveries
            raise ValueError("a bug, say")
        archive(self, deliveries)

    monkeypatch.setattr(DeadLetterStore, "archive", picky)
    async with process.running():
        await until(lambda: process.status("orders.dead").stored == 9)
        await until(lambda: process.status("orders.dead").retried >= 1)

    assert len(process.server.queues["orders.dead"].entries) == 1


async def test_it_stops_even_when_the_sink_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    process.supervisor._settings = ConsumerSettings(shutdown_timeout=0.1)
    process.supervisor.add("orders", QUICK)
    process.sinks["orders"].gate.clear()
    await process.publish("orders", 5)
    async with process.running():
        await process.sinks["orders"].called.wait()
        started_at = time.monotonic()

    assert time.monotonic() - started_at < 1.0
