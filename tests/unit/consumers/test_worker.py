from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
import structlog
import structlog.testing

from consumers import worker as worker_module
from consumers.breaker import BreakerState, CircuitBreaker
from consumers.processor import Processor
from consumers.quarantine import Quarantine
from consumers.recorder import Recorder
from consumers.retry import ExponentialBackoff
from consumers.settings import BreakerSettings, BudgetSettings, QueueSettings
from consumers.worker import IN_HAND, Worker
from forebay.brokers.api import Delivery, Settlement, Subscription
from forebay.errors import Reject, RetryLater, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.controls import Control
from forebay.storage.suspects import Suspect
from tests.unit.consumers.fakes import FlakyBroker, MemorySink, line, messages
from tests.waiting import until


class Bench:
    """One worker with everything around it."""

    def __init__(
        self,
        *,
        batch_size: int = 10,
        max_attempts: int = 3,
        shutdown_timeout: float = 5.0,
        settings: QueueSettings | None = None,
        quarantine: Quarantine | None = None,
        ordered: bool = False,
    ) -> None:
        self.broker = FlakyBroker()
        self.sink = MemorySink()
        self.breaker = CircuitBreaker(
            BreakerSettings(failure_threshold=1, recovery_time=0.05, max_recovery_time=0.1),
            rng=random.Random(0),
        )
        retry = ExponentialBackoff(max_attempts=max_attempts, base=0.01, cap=0.02)
        self.line = line(
            self.sink, self.breaker, retry=retry, batch_size=batch_size, settings=settings,
            quarantine=quarantine, ordered=ordered,
        )  # fmt: skip
        self.tally, self.flow = self.line.tally, self.line.flow
        self.worker = Worker(self.broker, self.line, max_wait=0.0, shutdown_timeout=shutdown_timeout)
        self.stop = asyncio.Event()

    async def publish(self, count: int) -> list[str]:
        sent = messages(count)
        await self.broker.declare("orders")
        await self.broker.publish("orders", sent, timeout=1.0)
        return [m.id for m in sent]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.worker.run(self.stop))
        try:
            yield
        finally:
            self.stop.set()
            await asyncio.wait_for(task, 10)

    def depth(self, queue: str = "orders") -> int:
        return len(self.broker.server.queues[queue].entries)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "MAX_RESTART_DELAY", 0.02)
    monkeypatch.setattr(worker_module, "IDLE_WAIT", 0.05)


async def test_everything_that_is_sent_arrives_and_leaves_the_queue() -> None:
    bench = Bench()
    ids = await bench.publish(95)
    async with bench.running():
        await until(lambda: bench.tally.stored == 95)

    assert set(bench.sink.stored) == set(ids)
    assert bench.depth() == 0


async def test_a_message_published_to_an_idle_queue_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "IDLE_WAIT", 5.0)
    bench = Bench()
    await bench.broker.declare("orders")
    async with bench.running():
        await until(lambda: bench.broker.receives > 0)
        started_at = time.monotonic()
        await bench.publish(1)
        await bench.sink.called.wait()

    assert time.monotonic() - started_at < 2.0


async def test_the_next_batches_are_received_while_one_is_written_but_not_without_bound() -> None:
    bench = Bench(batch_size=10)
    await bench.publish(100)
    bench.sink.gate.clear()
    async with bench.running():
        await bench.sink.called.wait()
        await until(lambda: bench.broker.lent == IN_HAND * 10)
        await asyncio.sleep(0.05)  # Time in which a mistaken worker would take more.
        assert bench.broker.lent == IN_HAND * 10
        bench.sink.gate.set()


async def test_an_outage_in_the_middle_of_a_batch_stops_the_taking_too() -> None:
    bench = Bench(batch_size=10)
    first_id = (await bench.publish(10))[0]
    bench.sink.errors = lambda d: None if d.message.id == first_id else SinkUnavailable("down")
    async with bench.running():
        await until(lambda: bench.breaker.state is BreakerState.OPEN)
        assert bench.depth() == 9
        bench.sink.errors = lambda _: None
        await until(lambda: bench.depth() == 0)

    assert {d.attempt for d in bench.sink.stored.values()} == {1}


async def test_an_outage_stops_the_taking_and_burns_no_attempt() -> None:
    bench = Bench()
    await bench.publish(50)
    bench.sink.down = SinkUnavailable("connection refused")
    async with bench.running():
        await until(lambda: len(bench.sink.calls) >= 6)
        assert bench.breaker.state is not BreakerState.CLOSED
        bench.sink.down = None
        await until(lambda: bench.tally.stored == 50)

    assert {d.attempt for d in bench.sink.stored.values()} == {1}
    assert bench.tally.retried == bench.tally.dead == 0


async def test_probes_are_single_messages_and_batches_grow_again() -> None:
    bench = Bench(batch_size=10)
    await bench.publish(50)
    bench.sink.down = SinkUnavailable("connection refused")
    async with bench.running():
        await until(lambda: len(bench.sink.calls) >= 4)
        bench.sink.down = None
        await until(lambda: bench.tally.stored == 50)

    sizes = [len(c) for c in bench.sink.calls]
    after_outage = sizes[max(i for i, s in enumerate(sizes) if s == 1) :]
    assert sizes[0] == 10
    assert sizes[1:4] == [1, 1, 1]
    assert after_outage[:2] == [1, 2]
    assert all(size <= 2**n for n, size in enumerate(after_outage))


async def test_nothing_is_borrowed_while_the_breaker_is_open() -> None:
    bench = Bench()
    await bench.publish(50)
    bench.breaker.failed(0, SinkUnavailable("busy", retry_after=60.0))
    async with bench.running():
        await until(lambda: bench.worker.connected)
        await asyncio.sleep(0.05)
        assert bench.broker.receives == 0


async def test_a_paused_queue_that_nobody_sends_to_recovers_by_itself() -> None:
    bench = Bench()
    await bench.broker.declare("orders")
    bench.breaker.failed(0, SinkUnavailable("connection refused"))
    async with bench.running():
        await until(lambda: bench.breaker.reason is None)

    assert bench.sink.calls == []


async def test_a_bad_message_dies_and_its_neighbours_are_stored() -> None:
    bench = Bench()
    ids = await bench.publish(30)
    bench.sink.errors = lambda d: Reject("no such customer") if d.message.id == ids[7] else None
    async with bench.running():
        await until(lambda: bench.tally.stored + bench.tally.dead == 30)

    assert set(bench.sink.stored) == set(ids) - {ids[7]}
    assert bench.depth("orders.dead") == 1


async def test_a_failing_message_is_tried_as_often_as_allowed_and_then_dies() -> None:
    bench = Bench(max_attempts=3)
    await bench.publish(1)
    bench.sink.errors = lambda _: RuntimeError("always")
    async with bench.running():
        await until(lambda: bench.tally.dead == 1)

    assert [c[0].attempt for c in bench.sink.calls] == [1, 2, 3]
    assert bench.tally.last_error is not None
    assert bench.tally.last_error.startswith("RuntimeError")


async def test_a_message_handled_later_keeps_its_own_delay() -> None:
    bench = Bench()
    await bench.publish(1)
    bench.sink.errors = lambda d: RetryLater(0.2) if d.attempt == 1 else None
    async with bench.running():
        started_at = time.monotonic()
        await until(lambda: bench.tally.stored == 1)

    assert time.monotonic() - started_at >= 0.2


async def test_an_expired_message_is_not_shown_to_the_sink() -> None:
    bench = Bench()
    await bench.broker.declare("orders")
    late, fresh = messages(2)
    late.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    await bench.broker.publish("orders", [late, fresh], timeout=1.0)
    async with bench.running():
        await until(lambda: bench.tally.stored + bench.tally.dead == 2)

    assert set(bench.sink.stored) == {fresh.id}
    assert bench.depth("orders.dead") == 1


async def test_a_stop_finishes_the_batch_in_hand_and_hands_back_the_rest() -> None:
    bench = Bench(batch_size=10)
    await bench.publish(100)
    bench.sink.gate.clear()
    async with bench.running():
        await bench.sink.called.wait()
        bench.stop.set()
        await asyncio.sleep(0.01)
        bench.sink.gate.set()

    assert len(bench.sink.stored) == bench.tally.stored == 10
    depth = await bench.broker.depth("orders")
    assert (depth.waiting, depth.in_hand) == (90, 0)


async def test_a_stop_does_not_wait_for_ever_for_the_batch_in_hand() -> None:
    bench = Bench(batch_size=10, shutdown_timeout=0.05)
    await bench.publish(100)
    bench.sink.gate.clear()
    async with bench.running():
        await bench.sink.called.wait()
        started_at = time.monotonic()

    assert time.monotonic() - started_at < 1.0
    depth = await bench.broker.depth("orders")
    assert (depth.waiting, depth.in_hand) == (100, 0)


@pytest.mark.parametrize("verb", ["subscribe", "receive", "settle"])
async def test_a_broker_that_goes_away_and_comes_back_loses_nothing(verb: str) -> None:
    bench = Bench()
    ids = await bench.publish(50)
    bench.broker.failing = verb
    async with bench.running():
        await until(lambda: bench.broker.failures >= 3)
        bench.broker.failing = None
        await until(lambda: len(bench.sink.stored) == 50)
        await until(lambda: bench.depth() == 0)

    assert set(bench.sink.stored) == set(ids)
    assert bench.tally.restarts >= 3


async def test_a_bug_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks inside the worker, it starts again and the messages come again, uncounted."""
    bench = Bench()
    ids = await bench.publish(20)
    expired = Processor.expired
    calls = 0

    def broken_twice(self: Processor, batch: list[Delivery], now: datetime) -> list[Settlement]:
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise KeyError("bug")
        return expired(self, batch, now)

    monkeypatch.setattr(Processor, "expired", broken_twice)
    async with bench.running():
        await until(lambda: bench.tally.stored == 20)

    assert bench.tally.restarts == 2
    assert set(bench.sink.stored) == set(ids)
    assert {d.attempt for d in bench.sink.stored.values()} == {1}


async def test_a_bug_during_a_probe_does_not_leave_the_queue_paused_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    await bench.publish(20)
    bench.breaker.failed(0, SinkUnavailable("connection refused"))
    expired = Processor.expired
    calls = 0

    def broken_once(self: Processor, batch: list[Delivery], now: datetime) -> list[Settlement]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("bug")
        return expired(self, batch, now)

    monkeypatch.setattr(Processor, "expired", broken_once)
    async with bench.running():
        await until(lambda: bench.tally.stored == 20)

    assert bench.tally.restarts == 1


async def test_a_batch_that_takes_long_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "SLOW_WRITE", 0.05)
    bench = Bench()
    await bench.publish(1)
    bench.sink.gate.clear()
    with structlog.testing.capture_logs() as logs:
        async with bench.running():
            await until(lambda: any(entry["event"] == "busy with one batch for long" for entry in logs))
            assert bench.worker.busy_for() >= 0.05
            bench.sink.gate.set()


async def test_a_sink_that_answers_nonsense_gets_its_messages_again_and_then_gives_them_up() -> None:
    bench = Bench(max_attempts=2)
    await bench.publish(1)

    async def nothing(batch: Sequence[Delivery]) -> list[WriteResult]:
        return []

    bench.sink.write = nothing  # type: ignore[method-assign]  # the bug
    async with bench.running():
        await until(lambda: bench.tally.dead == 1)


async def test_several_workers_share_a_queue_and_nothing_is_stored_twice() -> None:
    bench = Bench(batch_size=5)
    ids = await bench.publish(200)
    other = Bench(batch_size=5)
    second = Worker(
        bench.broker, line(bench.sink, bench.breaker, tally=other.tally, batch_size=5),
        max_wait=0.0, shutdown_timeout=5.0,
    )  # fmt: skip
    task = asyncio.create_task(second.run(bench.stop))
    async with bench.running():
        await until(lambda: bench.tally.stored + other.tally.stored == 200)
    await task

    written = [d.message.id for call in bench.sink.calls for d in call]
    assert sorted(written) == sorted(ids)
    assert bench.tally.stored > 0
    assert other.tally.stored > 0


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_goes_wrong_every_message_ends_stored_or_dead(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(batch_size=7, max_attempts=4)
    ids = await bench.publish(150)
    rejected = set(rng.sample(ids, 10))

    def errors(d: Delivery) -> Exception | None:
        if d.message.id in rejected:
            return Reject("never")
        return ValueError("now and then") if rng.random() < 0.2 and d.attempt < 4 else None

    bench.sink.errors = errors
    write = bench.sink.write

    async def sometimes_down(batch: Sequence[Delivery]) -> list[WriteResult]:
        if rng.random() < 0.2:
            raise SinkUnavailable("connection refused")
        if rng.random() < 0.1:
            bench.broker.failing = rng.choice(["receive", "settle", None])
        return await write(batch)

    def heal() -> bool:
        if rng.random() < 0.5:
            bench.broker.failing = None
        return bench.depth() == 0

    bench.sink.write = sometimes_down  # type: ignore[method-assign]  # wrapped for this test
    async with bench.running():
        await until(heal, timeout=20)

    assert set(bench.sink.stored) == set(ids) - rejected
    assert bench.depth("orders.dead") == 10


async def test_a_failed_step_leaves_no_cancellation_behind_for_the_unsubscribing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Python 3.11.2 a deadline that passed there would end the worker for good."""
    bench = Bench()
    await bench.publish(5)
    leftovers: list[int] = []
    subscribe = bench.broker.subscribe

    @asynccontextmanager
    async def observed(queue: str, *, prefetch: int, ordered: bool = False) -> AsyncIterator[Subscription]:
        async with subscribe(queue, prefetch=prefetch, ordered=ordered) as subscription:
            try:
                yield subscription
            finally:
                task = asyncio.current_task()
                assert task is not None
                leftovers.append(task.cancelling())

    monkeypatch.setattr(bench.broker, "subscribe", observed)
    bench.broker.failing = "settle"
    async with bench.running():
        await until(lambda: bench.broker.failures > 0)
        bench.broker.failing = None
        await until(lambda: bench.depth() == 0)

    assert leftovers[0] == 0


async def test_a_paused_queue_is_left_alone_until_it_is_resumed() -> None:
    bench = Bench()
    bench.flow.obey(Control(queue="orders", paused=True, paused_by="operator", changed_by="ann@host"))
    async with bench.running():
        await bench.publish(20)
        await asyncio.sleep(0.1)  # Time in which a mistaken worker would take them.
        assert bench.sink.calls == []
        bench.flow.obey(Control(queue="orders", resumes=1))
        await until(lambda: bench.tally.stored == 20)


async def test_what_is_in_hand_when_a_queue_is_paused_is_handed_back_uncounted() -> None:
    bench = Bench(batch_size=5)
    await bench.publish(15)
    bench.sink.gate.clear()
    async with bench.running():
        await bench.sink.called.wait()
        await until(lambda: bench.broker.lent == 15)
        bench.flow.obey(Control(queue="orders", paused=True))
        bench.sink.gate.set()
        await until(lambda: bench.tally.released == 10)
        assert bench.tally.stored == 5
        bench.flow.obey(Control(queue="orders"))
        await until(lambda: bench.tally.stored == 15)

    assert {d.attempt for d in bench.sink.stored.values()} == {1}


async def test_a_queue_whose_messages_are_all_refused_pauses_and_loses_none() -> None:
    bench = Bench(settings=QueueSettings(dead_letter_budget=BudgetSettings(max_run=7)))
    await bench.publish(40)
    bench.sink.errors = lambda _: Reject("column 'price' does not exist any more")
    async with bench.running():
        await until(lambda: bench.flow.paused_by == "suspicious")
        await until(lambda: bench.broker.lent == 0)
        assert bench.tally.dead == 7
        assert bench.depth() == 33
        assert "7 messages in a row" in str(bench.flow.reason)

        bench.sink.errors = lambda _: None
        bench.flow.obey(Control(queue="orders", resumes=1))
        await until(lambda: bench.tally.stored == 33)

    assert {d.attempt for d in bench.sink.stored.values()} == {1}


async def test_a_rate_is_kept() -> None:
    bench = Bench(settings=QueueSettings(rate=100.0))
    await bench.publish(60)
    started_at = time.monotonic()
    async with bench.running():
        await until(lambda: bench.tally.stored == 60)

    # The first ten may go at once.
    assert time.monotonic() - started_at >= 0.5 - 0.02


async def test_a_suspect_is_written_alone_and_its_neighbours_together(tmp_path: Path) -> None:
    bench = Bench(batch_size=20, quarantine=Quarantine(Recorder(tmp_path), limit=2))
    ids = await bench.publish(20)
    bench.line.quarantine.learn(
        {("orders", ids[3]): Suspect(crashes=1), ("orders", ids[7]): Suspect(crashes=1)}
    )
    async with bench.running():
        await until(lambda: bench.tally.stored == 20)

    assert sorted(len(call) for call in bench.sink.calls) == [1, 1, 18]
    assert bench.line.quarantine.suspects == []
    assert bench.line.quarantine.take_acquitted() == {("orders", ids[3]), ("orders", ids[7])}


async def test_what_killed_two_consumers_alone_is_given_up_without_being_shown_to_the_sink(
    tmp_path: Path,
) -> None:
    bench = Bench(quarantine=Quarantine(Recorder(tmp_path), limit=2))
    (id,) = await bench.publish(1)
    bench.line.quarantine.learn({("orders", id): Suspect(crashes=3, alone=2)})
    async with bench.running():
        await until(lambda: bench.tally.dead == 1)

    assert bench.sink.calls == []
    assert bench.tally.last_error == "killed 2 consumers that handled nothing beside it"


async def test_what_the_sink_has_in_hand_is_on_record_and_nothing_else(tmp_path: Path) -> None:
    bench = Bench(batch_size=5, quarantine=Quarantine(Recorder(tmp_path), limit=2))
    ids = await bench.publish(15)
    bench.sink.gate.clear()
    async with bench.running():
        await bench.sink.called.wait()
        held = orjson.loads(_only_file(tmp_path)[8:])
        assert (held["queue"], held["alone"]) == ("orders", False)
        assert held["ids"] == ids[:5]
        bench.sink.gate.set()
        await until(lambda: bench.tally.stored == 15)
    assert _only_file(tmp_path)[:8] == bytes(8)


def _only_file(folder: Path) -> bytes:
    (file,) = folder.iterdir()
    return file.read_bytes()


async def test_in_order_no_call_of_the_sink_holds_a_key_twice_and_no_failure_turns_a_key_round() -> None:
    bench = Bench(ordered=True, max_attempts=50)
    rng = random.Random(1)
    sent = [replace(m, key=f"k{n % 7}" if n % 10 else None) for n, m in enumerate(messages(300))]
    bench.sink.errors = lambda d: (
        Reject("never") if d.message.id in rejected else RetryLater(0.005) if rng.random() < 0.2 else None
    )
    rejected = {m.id for m in rng.sample(sent, 10)}
    await bench.broker.declare("orders")
    await bench.broker.publish("orders", sent, timeout=1.0)

    async with bench.running():
        await until(lambda: bench.depth() == 0)

    for call in bench.sink.calls:
        keys = [d.message.key for d in call if d.message.key is not None]
        assert len(keys) == len({*keys})
    stored = list(bench.sink.stored)
    assert {*stored} == {m.id for m in sent} - rejected
    for key in {m.key for m in sent} - {None}:
        of_key = [m.id for m in sent if m.key == key and m.id not in rejected]
        assert [id_ for id_ in stored if id_ in of_key] == of_key


async def test_in_order_an_outage_hands_everything_back_and_the_order_stays() -> None:
    bench = Bench(ordered=True)
    bench.sink.down = SinkUnavailable("connection refused")
    sent = [replace(m, key=f"k{n % 3}") for n, m in enumerate(messages(100))]
    await bench.broker.declare("orders")
    await bench.broker.publish("orders", sent, timeout=1.0)

    async with bench.running():
        await until(lambda: len(bench.sink.calls) > 3)
        bench.sink.down = None
        await until(lambda: bench.depth() == 0)

    assert {d.attempt for d in bench.sink.stored.values()} == {1}
    for key in ("k0", "k1", "k2"):
        stored = [id_ for id_, d in bench.sink.stored.items() if d.message.key == key]
        assert stored == [m.id for m in sent if m.key == key]
