"""Two brokers in one process: the one in use and an old one that is drained."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from consumers import fleet as fleet_module
from consumers import worker as worker_module
from consumers.controls import ControlRoom
from consumers.fleet import Fleet, OldBroker
from consumers.housekeeping import Housekeeper
from consumers.reporter import Reporter, Watched
from consumers.settings import BreakerSettings, ConsumerSettings, QueueSettings, RetrySettings
from consumers.supervisor import Supervisor
from forebay.brokers.api import Broker, Capabilities, Depth
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.errors import BrokerUnavailable, SinkUnavailable
from forebay.figures import Figures, Place
from forebay.message import Message
from forebay.sinks import Sink
from forebay.storage.database import Database
from forebay.storage.reports import left_behind, read_reports
from forebay.storage.schema import migrate
from tests.unit.consumers.fakes import MemorySink, messages
from tests.waiting import until

QUICK = QueueSettings(
    batch_size=10,
    max_wait=0.0,
    retry=RetrySettings(max_attempts=2, base=0.01),
    breaker=BreakerSettings(failure_threshold=1, recovery_time=0.05, max_recovery_time=0.1),
)
ORDERED = QUICK.model_copy(update={"order": "key"})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "IDLE_WAIT", 0.05)
    monkeypatch.setattr(fleet_module, "DRAIN_EVERY", 0.02)
    monkeypatch.setattr(fleet_module, "LOOK_EVERY", 0.02)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/forebay.db")
    migrate(database)
    yield database
    database.dispose()


class Unordered(MemoryBroker):
    """Keeps the order of a single subscription, and says so."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, ordering="one_subscription")


class Silent(MemoryBroker):
    """Does not tell what its consumers hold."""

    async def depth(self, queue: str) -> Depth:
        told = await super().depth(queue)
        return Depth(
            waiting=told.waiting, scheduled=told.scheduled, in_hand=None, bytes=None, oldest_age=None,
            unknown="only consumers know what they hold",
        )  # fmt: skip


class CountingReporter(Reporter):
    looks = 0

    async def look(self, watched: Sequence[Watched]) -> dict[Place, Figures]:
        figures = await super().look(watched)
        self.looks += 1
        return figures


class Process:
    """A fleet on a new broker beside an old one; both write to one sink."""

    def __init__(
        self,
        old: MemoryBroker | None = None,
        database: Database | None = None,
        drain: bool = True,
        fallback: bool = False,
    ) -> None:
        self.new, self.old = MemoryBroker(MemoryServer()), old or Unordered(MemoryServer())
        self.sink = MemorySink()
        self.registry = CollectorRegistry()
        self.reporter = CountingReporter(database, "a:1")
        self.away = False
        current = self.supervisor(self.new)
        self.fleet = Fleet(
            Watched(current, "kafka://new"),
            old=[OldBroker(url="amqp://old", open=self.open_old, fallback=fallback)] if drain else [],
            make_old=lambda broker: self.supervisor(broker, beside=current),
            reporter=self.reporter,
            controls=ControlRoom(database, current.flows, current.quarantine, name="a:1"),
            housekeeper=Housekeeper(None, None),
        )
        self.stop = asyncio.Event()

    def supervisor(self, broker: Broker, beside: Supervisor | None = None) -> Supervisor:
        return Supervisor(
            broker, ConsumerSettings(shutdown_timeout=2.0), database=None, make_sink=self.make_sink,
            registry=self.registry, beside=beside,
        )  # fmt: skip

    def make_sink(self, queue: str, settings: QueueSettings) -> Sink:
        return self.sink

    @asynccontextmanager
    async def open_old(self) -> AsyncIterator[Broker]:
        if self.away:
            raise BrokerUnavailable("connection refused")
        yield self.old

    async def publish(self, broker: Broker, queue: str, count: int) -> list[Message]:
        await broker.declare(queue)
        sent = messages(count)
        await broker.publish(queue, sent, timeout=1.0)
        return sent

    async def looks(self, count: int) -> None:
        """Wait until the brokers have been looked at so often from now on."""
        enough = self.reporter.looks + count
        await until(lambda: self.reporter.looks >= enough)

    def state(self, queue: str, *, draining: bool) -> str | None:
        found = [s.state for s in self.fleet.snapshot() if (s.queue, s.draining) == (queue, draining)]
        return found[0] if found else None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.fleet.run(self.stop))
        try:
            yield
        finally:
            self.stop.set()
            await asyncio.wait_for(task, 10)


def logged(logs: list[MutableMapping[str, Any]], part: str) -> list[MutableMapping[str, Any]]:
    return [line for line in logs if part in str(line["event"])]


async def test_both_brokers_are_consumed_and_the_log_says_once_when_the_old_one_is_empty() -> None:
    process = Process()
    process.fleet.add("orders", QUICK)
    await process.publish(process.new, "orders", 5)
    await process.publish(process.old, "orders", 5)

    with capture_logs() as logs:
        async with process.running():
            await until(lambda: len(process.sink.stored) == 10)
            await until(lambda: bool(logged(logs, "the old broker is empty:")))
            await process.looks(5)

    (line,) = logged(logs, "the old broker is empty:")
    assert line["url"] == "amqp://old"


async def test_what_a_late_gateway_writes_to_an_old_broker_is_consumed_too() -> None:
    process = Process()
    await process.old.declare("orders")
    process.fleet.add("orders", QUICK)
    with capture_logs() as logs:
        async with process.running():
            await process.publish(process.new, "orders", 1)
            await until(lambda: bool(logged(logs, "the old broker is empty:")))

            await process.publish(process.old, "orders", 1)

            await until(lambda: len(process.sink.stored) == 2)


async def test_an_old_broker_that_is_away_keeps_nobody_from_the_new_one() -> None:
    process = Process()
    process.away = True
    process.fleet.add("orders", QUICK)
    sent = await process.publish(process.new, "orders", 1)
    await process.publish(process.old, "orders", 1)

    with capture_logs() as logs:
        async with process.running():
            await until(lambda: list(process.sink.stored) == [sent[0].id])
            assert logged(logs, "the old broker cannot be drained")
            process.away = False
            await until(lambda: len(process.sink.stored) == 2)


async def test_the_order_waits_for_the_old_broker() -> None:
    """What waits there is older."""
    process = Process()
    process.fleet.add("orders", ORDERED)
    late = await process.publish(process.new, "orders", 3)
    early = await process.publish(process.old, "orders", 3)
    process.sink.gate.clear()

    async with process.running():
        await until(process.sink.called.is_set)
        assert process.state("orders", draining=False) == "waiting"
        assert process.sink.stored == {}
        process.sink.gate.set()
        await until(lambda: len(process.sink.stored) == 6)

    assert list(process.sink.stored) == [m.id for m in early + late]


async def test_the_order_does_not_begin_while_a_retry_waits_on_the_old_broker() -> None:
    process = Process()
    process.fleet.add("orders", ORDERED.model_copy(update={"retry": RetrySettings(base=3600.0)}))
    await process.publish(process.new, "orders", 1)
    await process.publish(process.old, "orders", 1)
    process.sink.errors = lambda _: ValueError("not today")

    async with process.running():
        await until(lambda: len(process.sink.calls) == 1)
        await process.looks(5)
        assert process.state("orders", draining=False) == "waiting"


async def test_the_order_does_not_begin_while_the_old_broker_cannot_tell(database: Database) -> None:
    """Without the database nobody knows what other consumers hold."""
    process = Process(Silent(MemoryServer()))
    process.fleet.add("orders", ORDERED)
    await process.publish(process.new, "orders", 1)
    await process.old.declare("orders")

    async with process.running():
        await until(lambda: process.state("orders", draining=True) == "running")
        await process.looks(5)
        assert process.sink.stored == {}

    told = Process(Silent(process.old._server), database)
    told.fleet.add("orders", ORDERED)
    await told.publish(told.new, "orders", 1)
    async with told.running():
        await until(lambda: len(told.sink.stored) == 1)


async def test_a_queue_that_the_old_broker_never_had_is_not_made_there() -> None:
    process = Process()
    await process.old.declare("clicks")
    process.fleet.add("clicks", QUICK)
    process.fleet.add("orders", ORDERED)
    await process.publish(process.new, "orders", 1)

    async with process.running():
        await until(lambda: len(process.sink.stored) == 1)

    assert await process.old.declared_queues() == ["clicks"]


async def test_an_old_broker_with_none_of_the_queues_is_not_called_empty() -> None:
    """Rather the virtual host, the prefix or a right is wrong, and messages wait elsewhere."""
    process = Process()
    process.fleet.add("orders", QUICK)

    with capture_logs() as logs:
        async with process.running():
            await until(lambda: bool(logged(logs, "has none of these queues")))
            await process.publish(process.old, "orders", 1)
            await until(lambda: len(process.sink.stored) == 1)
            await until(lambda: bool(logged(logs, "the old broker is empty:")))


async def test_the_broker_in_use_under_another_url_is_not_drained() -> None:
    process = Process()
    process.old = process.new
    process.fleet.add("orders", ORDERED)
    await process.publish(process.new, "orders", 1)

    with capture_logs() as logs:
        async with process.running():
            await until(lambda: len(process.sink.stored) == 1)

    assert logged(logs, "names the broker in use by another URL")


async def test_a_fallback_is_consumed_for_good_and_its_queues_are_made() -> None:
    process = Process(fallback=True)
    process.fleet.add("orders", QUICK)
    process.fleet.add("clicks", ORDERED)
    await process.publish(process.new, "clicks", 1)

    with capture_logs() as logs:
        async with process.running():
            # What keeps its order waits for no fallback: nothing of it is ever there.
            await until(lambda: len(process.sink.stored) == 1)
            await process.looks(5)
            assert await process.old.declared_queues() == ["orders"]
            await process.publish(process.old, "orders", 2)
            await until(lambda: len(process.sink.stored) == 3)

    assert not logged(logs, "the old broker is empty")


async def test_a_fallback_is_consumed_at_once_whatever_the_looks_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(fallback=True)
    process.fleet.add("orders", QUICK)
    await process.publish(process.old, "orders", 1)

    async def never_answers(_watched: Sequence[Watched]) -> dict[Place, Figures]:
        return await asyncio.Future[dict[Place, Figures]]()

    monkeypatch.setattr(process.reporter, "look", never_answers)

    async with process.running():
        await until(lambda: len(process.sink.stored) == 1)


async def test_a_fallback_that_is_away_is_tried_again() -> None:
    process = Process(fallback=True)
    process.away = True
    process.fleet.add("orders", QUICK)
    await process.publish(process.old, "orders", 1)

    with capture_logs() as logs:
        async with process.running():
            await until(lambda: bool(logged(logs, "the fallback cannot be consumed")))
            process.away = False
            await until(lambda: len(process.sink.stored) == 1)


async def test_a_destination_that_is_down_pauses_both() -> None:
    """One breaker: it is probed once."""
    process = Process()
    process.fleet.add("orders", QUICK)
    await process.publish(process.new, "orders", 1)
    await process.publish(process.old, "orders", 1)
    process.sink.down = SinkUnavailable("down")

    async with process.running():
        await until(
            lambda: (
                process.state("orders", draining=False) == process.state("orders", draining=True) == "paused"
            )
        )
        process.sink.down = None
        await until(lambda: len(process.sink.stored) == 2)

    paused = process.registry.get_sample_value(
        "forebay_consumer_paused", {"destination": "memory", "reason": "unavailable"}
    )
    assert paused == 0


# ---- reports


async def test_consumers_report_what_they_hold_and_take_it_back_when_they_stop(database: Database) -> None:
    process = Process(database=database, drain=False)
    process.fleet.add("orders", QUICK)
    await process.publish(process.new, "orders", 3)
    process.sink.gate.clear()
    place = (process.new.identity, "orders")

    def reported() -> int:
        found = read_reports(database, [process.new.identity]).get(place)
        return found.share.in_hand if found else 0

    async with process.running():
        await until(lambda: reported() == 3)
        process.sink.gate.set()

    assert read_reports(database, [process.new.identity]) == {}


async def test_started_on_another_broker_without_drain_it_names_what_was_left(database: Database) -> None:
    before = Process(database=database, drain=False)
    before.fleet.add("orders", QUICK)
    before.sink.down = SinkUnavailable("down")
    await before.publish(before.new, "orders", 7)
    async with before.running():
        await until(lambda: before.state("orders", draining=False) == "paused")
    after = Process(database=database, drain=False)
    after.fleet.add("orders", QUICK)

    with capture_logs() as logs:
        async with after.running():
            await until(lambda: bool(logged(logs, "held 7 messages (orders)")))
            await after.looks(5)

    (line,) = logged(logs, "held 7 messages")
    assert line["setting"] == 'broker.drain = ["kafka://new"]'
    assert before.new.identity in str(line["event"])


async def test_a_drained_broker_is_no_longer_warned_of(database: Database) -> None:
    process = Process(database=database)
    process.fleet.add("orders", QUICK)
    await process.publish(process.old, "orders", 3)

    async with process.running():
        await until(lambda: len(process.sink.stored) == 3)

    assert left_behind(database, known=[process.new.identity], urls=[]) == []


async def test_a_database_that_is_away_disturbs_no_consumer(tmp_path: Path) -> None:
    process = Process(database=Database(f"sqlite:///{tmp_path}/nowhere.db"))
    process.fleet.add("orders", QUICK)
    await process.publish(process.new, "orders", 3)

    with capture_logs() as logs:
        async with process.running():
            await until(lambda: len(process.sink.stored) == 3)
            await until(lambda: bool(logged(logs, "did not take the consumers' report")))
            await process.looks(5)

    assert len(logged(logs, "did not take the consumers' report")) == 1


async def test_the_last_report_is_made_when_the_figures_stand_still(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may count what was handed back some looks later only."""
    process = Process(database=database, drain=False)
    process.sink.down = SinkUnavailable("away")
    broker = process.new
    truly, untrue = broker.depth, 0

    async def depth(queue: str) -> Depth:
        nonlocal untrue
        told = await truly(queue)
        if queue != "orders" or not untrue:
            return told
        untrue -= 1
        return replace(told, waiting=0, in_hand=0)

    monkeypatch.setattr(broker, "depth", depth)
    process.fleet.add("orders", QUICK)
    running = asyncio.create_task(process.fleet.run(process.stop))
    await broker.declare("orders")
    await broker.publish("orders", messages(7), timeout=1)
    await until(lambda: process.reporter.looks > 2)
    untrue = 2

    process.stop.set()
    await asyncio.wait_for(running, 10)

    with database.read() as connection:
        [held] = connection.execute(
            sa.text("select held from broker_depths where queue = 'orders'")
        ).scalars()
    assert held == 7
