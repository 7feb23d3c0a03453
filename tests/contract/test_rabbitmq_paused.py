"""A consumer that takes nothing for long, on a server that soon ends the channel of who holds on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from forebay.brokers.api import Ack, Broker, Delivery, Release, Retry
from forebay.brokers.rabbitmq.broker import RabbitMQBroker
from forebay.testing.broker_contract.harness import (
    FAILURE,
    collect,
    fresh_name,
    ids,
    messages,
    publish,
    until_depth,
)
from tests.contract.rabbitmq import SETTINGS
from tests.needs import missing_server
from tests.servers.rabbitmq import RabbitMQ, RabbitMQNotInstalled
from tests.waiting import until

TIMEOUT = 2.0
"""Seconds: the server's consumer_timeout, 30 minutes otherwise; it looks every half a second."""
HOLD = 0.4


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitMQ]:
    try:
        with RabbitMQ(
            settings={"consumer_timeout": str(int(TIMEOUT * 1000))},
            advanced="[{rabbit, [{channel_tick_interval, 500}]}]",
        ) as server:
            yield server
    except RabbitMQNotInstalled as missing:
        missing_server(str(missing))


@pytest.fixture
async def broker(server: RabbitMQ) -> AsyncIterator[Broker]:
    settings = SETTINGS.model_copy(update={"idle_hold": HOLD})
    async with RabbitMQBroker.open(server.url, settings) as broker:
        yield broker


@pytest.fixture
async def queue(broker: Broker) -> str:
    name = fresh_name()
    await broker.declare(name)
    return name


async def test_the_server_of_this_test_ends_the_channel_of_who_holds_on(server: RabbitMQ) -> None:
    """Or the other tests here would show nothing."""
    async with RabbitMQBroker.open(server.url, SETTINGS) as broker:
        queue = fresh_name()
        await broker.declare(queue)
        await publish(broker, queue, messages(3))
        with structlog.testing.capture_logs() as logs:
            async with broker.subscribe(queue, prefetch=10) as subscription:
                await subscription.receive(1, 5)
                lost = "subscription lost; it is made again"
                await until(lambda: lost in [line["event"] for line in logs], 4 * TIMEOUT)


async def test_what_nobody_takes_goes_back_once_and_the_channel_lives(broker: Broker, queue: str) -> None:
    sent = messages(20)
    with structlog.testing.capture_logs() as logs:
        async with broker.subscribe(queue, prefetch=10) as subscription:
            await publish(broker, queue, sent)
            first = await collect(subscription, 3, 5)
            await subscription.settle([Release(d) for d in first])
            await until_depth(broker, queue, 10 * HOLD, lambda d: d.waiting == 20)
            assert subscription.share().in_hand == 0
            await asyncio.sleep(2 * TIMEOUT)  # the server's patience is what is tested
            got = await collect(subscription, 20 - 10, 5)
            assert await subscription.settle([Ack(d) for d in got]) == []
            rest = await collect(subscription, 10, 5)
            assert await subscription.settle([Ack(d) for d in rest]) == []
    assert sorted(ids(got + rest)) == sorted(ids(sent))
    assert {d.attempt for d in got + rest} == {1}
    assert max(d.deferrals for d in got + rest) <= 2
    assert [line["event"] for line in logs if line["log_level"] != "info"] == []


async def test_while_an_outage_is_probed_only_the_probe_travels(broker: Broker, queue: str) -> None:
    """Each probe takes one message and hands it back; the others wait in the queue all the time."""
    sent = messages(30)
    await publish(broker, queue, sent)
    with structlog.testing.capture_logs() as logs:
        async with broker.subscribe(queue, prefetch=20) as subscription:
            await until_depth(broker, queue, 10 * HOLD, lambda d: d.waiting == 10)
            await until_depth(broker, queue, 10 * HOLD, lambda d: d.waiting == 30)
            for _ in range(int(2 * TIMEOUT / (HOLD / 2))):
                [probe] = await subscription.receive(1, 5)
                await asyncio.sleep(HOLD / 2)
                assert subscription.share().in_hand == 1
                assert await subscription.settle([Release(probe)]) == []
            [probe] = await subscription.receive(1, 5)
            assert await subscription.settle([Ack(probe)]) == []
            # One that works: all of the prefetch is back.
            await until_depth(broker, queue, 10 * HOLD, lambda d: d.waiting == 9)
            rest: list[Delivery] = []
            while len(rest) < 29:
                got = await subscription.receive(20, 1)
                assert await subscription.settle([Ack(d) for d in got]) == []
                rest += got
    assert sorted(ids([probe, *rest])) == sorted(ids(sent))
    # When nobody took it, at the beginning and perhaps while we looked; not with each of 20 probes.
    assert max(d.deferrals for d in rest) <= 5
    assert [line["event"] for line in logs if line["log_level"] != "info"] == []


async def test_what_is_held_stays_ours_while_the_rest_goes_back(broker: Broker, queue: str) -> None:
    await publish(broker, queue, messages(5))
    async with broker.subscribe(queue, prefetch=5) as subscription:
        held = await collect(subscription, 2, 5)
        await until_depth(broker, queue, 10 * HOLD, lambda d: d.waiting == 3)
        assert await subscription.settle([Ack(d) for d in held]) == []
        assert len(await collect(subscription, 3, 5)) == 3


async def test_how_often_it_was_handed_back_travels_with_a_retry(broker: Broker, queue: str) -> None:
    await publish(broker, queue, messages(1))
    async with broker.subscribe(queue, prefetch=5) as subscription:
        for expected in (0, 1, 2):
            [delivery] = await subscription.receive(1, 5)
            assert delivery.deferrals == expected
            await subscription.settle([Release(delivery)])
        [delivery] = await subscription.receive(1, 5)
        await subscription.settle([Retry(delivery, 0, FAILURE)])
        [delivery] = await subscription.receive(1, 5)
    assert (delivery.attempt, delivery.deferrals) == (2, 3)
