"""
The leanest loops that one would write with the client libraries: what our publishing is compared with.

Each publishes `count` messages with the same properties, key and headers as ours, all
confirmed, with as much in flight; no results, no deadline, no reconnect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pika
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2
from pika.adapters.asyncio_connection import AsyncioConnection

from bench.costs import Cost
from forebay.message import Message

WINDOW = 1_000
"""Messages in flight."""


def headers_of(m: Message) -> dict[str, str]:
    """The header names and values that our drivers write."""
    out = {"forebay-v": "1", "forebay-accepted-at": str(int(m.accepted_at.timestamp() * 1e6))}
    if m.key is not None:
        out["forebay-key"] = m.key
    for name, value in m.headers.items():
        out["forebay-meta-" + name] = value
    return out


async def rabbitmq(url: str, queue: str, messages: Sequence[Message], warm_up: int) -> Cost:
    """pika: publisher confirms, persistent, mandatory, never more than WINDOW unconfirmed."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Any] = loop.create_future()
    done: asyncio.Future[None] = loop.create_future()
    cost = Cost()
    sent = confirmed = 0

    def send() -> None:
        nonlocal sent
        while sent < len(messages) and sent - confirmed < WINDOW:
            m = messages[sent]
            properties = pika.BasicProperties(
                message_id=m.id,
                content_type=m.content_type,
                timestamp=int(m.accepted_at.timestamp()),
                delivery_mode=2,
                headers=headers_of(m),
            )
            channel.basic_publish("", queue, m.body, properties, mandatory=True)
            sent += 1

    def on_answer(frame: Any) -> None:
        nonlocal confirmed
        assert isinstance(frame.method, pika.spec.Basic.Ack), frame
        tag = frame.method.delivery_tag
        # In order enough for a count: a quorum queue confirms what it has, up to a tag.
        confirmed = max(confirmed, tag) if frame.method.multiple else confirmed + 1
        if confirmed >= warm_up and not cost.begun:
            cost.begin()
        if confirmed >= len(messages) and not done.done():
            cost.end(len(messages) - warm_up)
            done.set_result(None)
        elif sent - confirmed <= WINDOW - 100:
            send()

    def on_channel(opened: Any) -> None:
        opened.confirm_delivery(on_answer, lambda _: ready.set_result(opened))

    def on_open(connection: Any) -> None:
        connection.channel(on_open_callback=on_channel)

    def on_failure(_: Any, error: Exception) -> None:
        for future in (ready, done):
            if not future.done():
                future.set_exception(error)

    connection = AsyncioConnection(
        pika.URLParameters(url), on_open, on_failure, on_failure, custom_ioloop=loop
    )
    channel = await ready
    send()
    await done
    done = loop.create_future()
    connection.close()
    await asyncio.wait((done,), timeout=2)
    if done.done():
        done.exception()
    return cost


async def kafka(url: str, topic: str, messages: Sequence[Message], warm_up: int, *, at_once: int) -> Cost:
    """aiokafka: `send_batch` of `at_once` messages to the partitions of their keys; acks=all, idempotent."""
    cost = Cost()
    async with AIOKafkaProducer(
        bootstrap_servers=url.removeprefix("kafka://"),
        acks="all",
        enable_idempotence=True,
        max_batch_size=262_144,
        max_request_size=1_200_000,
    ) as producer:
        partitions = len(await producer.partitions_for(topic))
        in_flight: set[asyncio.Future[Any]] = set()

        async def batch(part: Sequence[Message]) -> None:
            builders: dict[int, Any] = {}
            for m in part:
                key = (m.key or "").encode()
                chosen = (murmur2(key) & 0x7FFFFFFF) % partitions
                if chosen not in builders:
                    builders[chosen] = producer.create_batch()
                headers = [(name, value.encode()) for name, value in headers_of(m).items()]
                headers += [("forebay-id", m.id.encode()), ("forebay-content-type", m.content_type.encode())]
                assert builders[chosen].append(timestamp=None, key=key, value=m.body, headers=headers)
            for partition, builder in builders.items():
                builder.close()
                await (await producer.send_batch(builder, topic, partition=partition))

        for start in range(0, len(messages), at_once):
            if start >= warm_up and not cost.begun:
                cost.begin()
            while len(in_flight) >= WINDOW // at_once:
                await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.ensure_future(batch(messages[start : start + at_once]))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        await asyncio.gather(*in_flight)
        cost.end(len(messages) - warm_up)
    return cost
