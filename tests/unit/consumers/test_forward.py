"""The broker sink: what it publishes, whose fault it is, and where loops end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from consumers.settings import ConsumerSettings, QueueSettings
from consumers.sinks.factory import make_sink
from consumers.sinks.forward import HOPS, Brokers
from consumers.sinks.settings import ForwardSettings
from consumers.supervisor import Supervisor
from forebay.brokers.api import Broker, Delivery, PublishResult
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.errors import (
    BrokerUnavailable,
    MessageRejected,
    MessageTooLarge,
    PublishError,
    PublishUnconfirmed,
    QueueFull,
    SettingsError,
    SinkMisconfigured,
    SinkUnavailable,
)
from forebay.message import Message
from forebay.settings import Settings, load
from forebay.sinks import Sink
from forebay.testing.sink_contract import deliveries, delivery, outcomes
from forebay.wiring import forwarding, shared
from tests.waiting import until


class ScriptedBroker(MemoryBroker):
    """Answers publishes with `errors`, one per message, while there are any."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        super().__init__(server)
        self.errors: list[PublishError | None] = []
        self.down: BrokerUnavailable | None = None
        self.opened = 0

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Broker]:
        self.opened += 1
        if self.down is not None:
            raise self.down
        yield self

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        if not self.errors:
            return await super().publish(queue, messages, timeout=timeout)
        errors, self.errors = self.errors, []
        return [PublishResult(message_id=m.id, error=e) for m, e in zip(messages, errors, strict=True)]

    async def ping(self) -> None:
        if self.down is not None:
            raise self.down


def settings(**forward: object) -> QueueSettings:
    return QueueSettings(sink="broker", forward=ForwardSettings.model_validate({"queue": "there", **forward}))


@asynccontextmanager
async def sink_to(broker: ScriptedBroker, **forward: object) -> AsyncIterator[Sink]:
    brokers = Brokers(url="here:", current=broker.lent, other=lambda _: broker.lent, source=broker)
    sink = make_sink("orders", settings(**forward), None, brokers)
    try:
        yield sink
    finally:
        await sink.close()


async def received(broker: Broker, queue: str = "there") -> list[Delivery]:
    async with broker.subscribe(queue, prefetch=100) as subscription:
        return await subscription.receive(100, 0.05)


async def test_a_message_is_forwarded_as_it_came() -> None:
    broker = ScriptedBroker()
    d = delivery(b"\xff", key="k", headers={"source": "shop"}, content_type="a/b")
    async with sink_to(broker) as sink:
        assert outcomes([d], await sink.write([d])) == ["new"]
    [found] = await received(broker)

    assert (found.message.id, found.message.body) == (d.message.id, b"\xff")
    assert (found.message.key, found.message.content_type) == ("k", "a/b")
    assert found.message.accepted_at == d.message.accepted_at
    assert found.message.headers == {"source": "shop", HOPS: "1"}
    assert found.attempt == 1


async def test_its_delay_is_over_and_its_expiry_stays() -> None:
    broker = ScriptedBroker()
    due, end = datetime.now(UTC) + timedelta(seconds=60), datetime.now(UTC) + timedelta(hours=1)
    async with sink_to(broker) as sink:
        await sink.write([delivery(not_before=due, expires_at=end)])
    [found] = await received(broker)

    assert (found.message.not_before, found.message.expires_at) == (None, end)


async def test_a_message_that_goes_in_circles_ends_as_a_rejection_and_harms_no_neighbour() -> None:
    batch = [delivery(), delivery(headers={HOPS: "3"}), delivery(headers={HOPS: "rubbish"})]
    async with sink_to(ScriptedBroker(), max_hops=3) as sink:
        results = await sink.write(batch)

    assert outcomes(batch, results) == ["new", "MessageRejected", "new"]
    error = results[1].error
    assert isinstance(error, MessageRejected)
    assert error.error_class == "forwarding-loop"
    assert "forwarded 3 times" in str(error)


async def test_two_queues_that_forward_to_each_other_end_with_dead_letters() -> None:
    broker = MemoryBroker(MemoryServer())
    supervisor = Supervisor(
        broker,
        ConsumerSettings(),
        database=None,
        make_sink=lambda queue, of: make_sink(
            queue, of, None, forwarding(Settings(), shared(broker), source=broker)
        ),
    )
    supervisor.add("ping", settings(queue="pong"))
    supervisor.add("pong", settings(queue="ping"))
    stop = asyncio.Event()
    running = asyncio.create_task(supervisor.run(stop))
    await broker.declare("ping")
    sent = [d.message for d in deliveries(3)]
    await broker.publish("ping", sent, timeout=1.0)
    await until(lambda: len(broker._server.queues["ping.dead"].entries) == 3)
    stop.set()
    await running
    dead = await received(broker, "ping.dead")

    assert {d.message.id for d in dead} == {m.id for m in sent}
    assert {d.death.failure.error_class for d in dead if d.death} == {"forwarding-loop"}


async def test_a_message_too_large_for_the_target_is_rejected_and_a_full_queue_is_an_outage() -> None:
    broker = ScriptedBroker()
    batch = deliveries(3)
    async with sink_to(broker) as sink:
        broker.errors = [MessageTooLarge(9, 8), QueueFull("10 of 10"), None]
        results = await sink.write(batch)

        assert outcomes(batch, results) == ["MessageRejected", "SinkUnavailable", "new"]
        broker.errors = [QueueFull("10 of 10")] * 3
        with pytest.raises(SinkUnavailable, match="queue 'there' is full"):
            await sink.write(batch)


async def test_without_a_confirmation_it_is_a_failed_attempt_if_the_broker_lives_and_else_an_outage() -> None:
    broker = ScriptedBroker()
    batch = deliveries(2)
    async with sink_to(broker) as sink:
        broker.errors = [PublishUnconfirmed("no answer")] * 2
        assert outcomes(batch, await sink.write(batch)) == ["PublishUnconfirmed"] * 2

        broker.errors = [PublishUnconfirmed("no answer")] * 2
        broker.down = BrokerUnavailable("no connection")
        with pytest.raises(SinkUnavailable, match="no connection"):
            await sink.write(batch)
        with pytest.raises(SinkUnavailable, match="no connection"):
            await sink.probe()


async def test_a_broker_that_cannot_be_opened_is_an_outage_and_tried_again() -> None:
    broker = ScriptedBroker()
    broker.down = BrokerUnavailable("refused")
    batch = deliveries(1)
    async with sink_to(broker) as sink:
        with pytest.raises(SinkUnavailable, match="queue 'there' cannot be published to: refused"):
            await sink.write(batch)
        broker.down = None
        assert outcomes(batch, await sink.write(batch)) == ["new"]
        await sink.write(deliveries(1))

    assert broker.opened == 2


async def test_a_broker_that_does_not_open_in_time_is_an_outage() -> None:
    never = asyncio.Event()

    @asynccontextmanager
    async def opening() -> AsyncIterator[Broker]:
        await never.wait()
        yield MemoryBroker()

    brokers = Brokers(url="here:", current=opening, other=lambda _: opening)
    sink = make_sink("orders", settings(timeout=0.05), None, brokers)
    with pytest.raises(SinkUnavailable, match="no answer in time"):
        await sink.write(deliveries(1))
    await sink.close()


async def test_a_queue_that_was_deleted_is_made_again() -> None:
    broker = ScriptedBroker()
    batch = deliveries(1)
    async with sink_to(broker) as sink:
        await sink.write(deliveries(1))
        del broker._server.queues["there"]
        with pytest.raises(SinkUnavailable):
            await sink.write(batch)
        assert outcomes(batch, await sink.write(batch)) == ["new"]


async def test_the_same_queue_by_another_url_of_the_same_broker_pauses_instead_of_spinning() -> None:
    broker = ScriptedBroker()
    async with sink_to(broker, queue="orders", broker_url="memory://other") as sink:
        with pytest.raises(SinkMisconfigured, match="'orders' is forwarded to itself"):
            await sink.write(deliveries(1))


def lent() -> AbstractAsyncContextManager[Broker]:
    return ScriptedBroker().lent()


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        ({"queue": None}, r"set queues\.orders\.forward\.queue"),
        ({"queue": "orders"}, "forwarded to itself"),
        ({"queue": "orders", "broker_url": "memory://here"}, "forwarded to itself"),
        ({"queue": "orders.dead"}, "not allowed"),
        ({"broker_url": "ampq://u:sesame@h"}, r"forward\.broker_url: .*no driver reads"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(forward: dict[str, object], says: str) -> None:
    here = Settings.model_validate({"broker": {"url": "memory://here"}})
    with pytest.raises(SettingsError, match=says) as told:
        make_sink("orders", settings(**forward), None, forwarding(here, lent))

    assert "sesame" not in str(told.value)


def test_an_old_broker_that_is_drained_may_forward_a_queue_to_its_namesake_on_the_new_one() -> None:
    here = Settings.model_validate({"broker": {"url": "memory://here"}})
    make_sink("orders", settings(queue="orders"), None, forwarding(here, lent, drains=True))


async def test_what_is_only_looked_at_is_not_made(tmp_path: Path) -> None:
    here = Settings.model_validate({"broker": {"url": f"sqlite:///{tmp_path}/here.db"}})
    url = f"sqlite:///{tmp_path}/there.db"
    for forward in ({}, {"broker_url": url}):
        sink = make_sink("orders", settings(**forward), None, forwarding(here))
        with pytest.raises(SinkUnavailable):
            await sink.probe()
        await sink.close()

    assert await asyncio.to_thread(os.listdir, tmp_path) == []


def test_a_relative_file_of_another_broker_is_beside_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "forebay.toml"
    file.write_text('[queues.orders.forward]\nqueue = "there"\nbroker_url = "sqlite:///there.db"\n')
    queue = load(file, environ={}).settings.queue("orders")

    assert queue.sink == "broker"
    assert queue.forward.broker_url is not None
    assert queue.forward.broker_url.get_secret_value() == f"sqlite:///{tmp_path}/there.db"
