"""From a queue through the http sink to a service that is down, slow, picky and restarted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from consumers.settings import BreakerSettings, ConsumerSettings, QueueSettings, RetrySettings
from consumers.sinks.factory import make_sink
from consumers.sinks.settings import HttpSettings
from consumers.supervisor import Supervisor
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.message import Message
from forebay.testing.sink_contract import deliveries, delivery
from tests.servers.receiver import Receiver
from tests.unit.gateway.support import ScriptedBroker, running
from tests.waiting import until


@asynccontextmanager
async def consuming(server: MemoryServer, url: str) -> AsyncIterator[Supervisor]:
    settings = QueueSettings(
        sink="http",
        http=HttpSettings.model_validate({"url": url}),
        batch_size=50,
        retry=RetrySettings(base=0.01, cap=0.05),
        breaker=BreakerSettings(recovery_time=0.05, max_recovery_time=0.1),
    )
    supervisor = Supervisor(
        MemoryBroker(server), ConsumerSettings(), database=None,
        make_sink=lambda queue, of_queue: make_sink(queue, of_queue, None),
    )  # fmt: skip
    supervisor.add("orders", settings)
    stop = asyncio.Event()
    task = asyncio.create_task(supervisor.run(stop))
    try:
        yield supervisor
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


async def publish(server: MemoryServer, messages: list[Message]) -> None:
    broker = MemoryBroker(server)
    await broker.declare("orders")
    results = await broker.publish("orders", messages, timeout=5.0)
    assert all(r.ok for r in results)


@pytest.mark.parametrize("seed", range(3))
async def test_every_message_has_its_effect_once_and_only_the_refused_are_dead(seed: int) -> None:
    rng = random.Random(seed)
    sent = [d.message for d in deliveries(300)]
    refused = {m.id for m in rng.sample(sent, 6)}
    attempts: list[int] = []

    async def moody(request: web.Request, body: bytes) -> web.StreamResponse | None:
        if request.method == "OPTIONS":
            return None
        if request.headers["Idempotency-Key"] in refused:
            return web.Response(status=422)
        attempts.append(int(request.headers["Forebay-Attempt"]))
        mood = rng.random()
        if mood < 0.03:
            return web.Response(status=503)
        return web.Response(status=500) if mood < 0.10 else None

    server = MemoryServer()
    await publish(server, sent)
    async with Receiver() as receiver:
        receiver.answer = moody
        async with consuming(server, receiver.url):
            await until(lambda: len(receiver.effects) > 50)
            async with receiver.away():
                await asyncio.sleep(0.3)  # The time of the outage.
            await until(lambda: len(receiver.effects) == 294, 20)
            await until(lambda: not server.queues["orders"].entries, 20)

    assert receiver.effects == {m.id: m.body for m in sent if m.id not in refused}
    dead = [e.message.id for e in server.queues["orders.dead"].entries.values()]
    assert sorted(dead) == sorted(refused)


async def test_an_outage_burns_no_attempt() -> None:
    sent = [d.message for d in deliveries(40)]
    server = MemoryServer()
    await publish(server, sent)
    async with Receiver() as receiver:
        await receiver.stop()
        async with consuming(server, receiver.url) as supervisor:
            await until(lambda: supervisor.snapshot()[0].state == "paused")
            await asyncio.sleep(0.5)  # The time of the outage: several looks at a service that is away.
            await receiver.start()
            await until(lambda: len(receiver.effects) == 40, 20)

    assert {request.headers["Forebay-Attempt"] for request, _ in receiver.requests} == {"1"}
    assert len(receiver.requests) == 40


async def test_another_forebay_takes_what_this_one_sends(tmp_path: Path) -> None:
    broker = ScriptedBroker()
    await broker.declare("orders")
    one = delivery(b'{"n": 1}', key="kunde 7", headers={"source": "shop"}).message
    server = MemoryServer()
    await publish(server, [one])
    async with running(broker) as gateway:
        url = f"http://127.0.0.1:{gateway.port}/v1/queues/orders/messages"
        async with consuming(server, url):
            await until(lambda: len(broker.messages) == 1)

    [taken] = broker.messages
    assert (taken.body, taken.key, taken.content_type) == (one.body, "kunde 7", "application/json")
    assert taken.headers == {"source": "shop"}
