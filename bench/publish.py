"""
What publishing costs: CPU time per message through our drivers, and with the client library alone.

In batches of 100 with ten in flight, against a loop with as much in flight (bench/lean.py);
same server, same queue, same keys and headers, uvloop on both sides. Every run is a
process of its own, in turns, and counts its own CPU time after a warm-up.

Beside it stands what smaller batches cost, one in flight or a few: what a gateway publishes that takes
one message per request. A process that waits for each of them pays for being woken, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import uvloop
from pydantic import SecretStr

from bench import lean
from bench.costs import Cost
from bench.load import messages
from bench.report import Series, Target, interleave, ratio, record, versions
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from forebay.message import Message

ROUNDS = int(os.environ.get("ROUNDS", "5"))
MESSAGES = int(os.environ.get("MESSAGES", "20000"))
WARM_UP = 2_000
AT_ONCE = 100
SIZES = (500, 1_024)
SMALL = ((8, 1), (16, 1), (32, 1), (64, 1), (64, 4))
"""Messages in a batch, and batches in flight."""
KEYS = 48
"""Ordering keys, one for each batch in turn."""
BROKERS = {"RabbitMQ": 1.3, "Kafka": 1.8}
"""With the most that ours may cost, in multiples of the lean loop."""


def load(size: int) -> list[Message]:
    made = messages(MESSAGES + WARM_UP, size=size)
    return [replace(m, key=f"customer-{i // AT_ONCE % KEYS}") for i, m in enumerate(made)]


def batches(of: Sequence[Message], at_once: int) -> Iterator[Sequence[Message]]:
    for start in range(0, len(of), at_once):
        yield of[start : start + at_once]


async def ours(url: str, queue: str, load: list[Message], at_once: int, in_flight: int) -> Cost:
    cost = Cost()
    async with open_broker(BrokerSettings(url=SecretStr(url))) as broker:

        async def publish(batch: Sequence[Message]) -> None:
            for result in await broker.publish(queue, batch, timeout=30):
                if result.error is not None:
                    raise result.error

        running: set[asyncio.Task[None]] = set()
        for number, batch in enumerate(batches(load, at_once)):
            if number * at_once >= WARM_UP and not cost.begun:
                cost.begin()
            while len(running) >= in_flight:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            running.add(asyncio.create_task(publish(batch)))
        await asyncio.gather(*running)
        cost.end(len(load) - WARM_UP)
    return cost


async def one_run(variant: str, url: str, queue: str, size: int) -> Cost:
    made = load(size)
    if variant == "ours":
        return await ours(url, queue, made, AT_ONCE, lean.WINDOW // AT_ONCE)
    if variant != "lean":
        at_once, in_flight = variant.split("x")
        return await ours(url, queue, made, int(at_once), int(in_flight))
    if url.startswith("kafka"):
        return await lean.kafka(url, queue, made, WARM_UP, at_once=AT_ONCE)
    return await lean.rabbitmq(url, queue, made, WARM_UP)


def in_a_process(*arguments: str) -> Cost:
    done = subprocess.run(
        [sys.executable, "-m", "bench.publish", *arguments], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise SystemExit(f"{arguments} failed:\n{done.stderr[-3000:]}")
    cost = Cost()
    cost.cpu_us, cost.per_second = json.loads(done.stdout.splitlines()[-1])
    return cost


async def declare(url: str, queue: str) -> None:
    async with open_broker(BrokerSettings(url=SecretStr(url))) as broker:
        await broker.declare(queue)


def main() -> int:
    from tests.servers.kafka import Kafka
    from tests.servers.rabbitmq import RabbitMQ

    series: dict[tuple[str, str, int], tuple[Series, Series]] = {
        (broker, variant, size): (Series(), Series())
        for broker in BROKERS
        for variant in ("ours", "lean")
        for size in SIZES
    } | {
        (broker, f"{at_once}x{in_flight}", SIZES[0]): (Series(), Series())
        for broker in BROKERS
        for at_once, in_flight in SMALL
    }
    with ExitStack() as stack:
        urls = {
            "RabbitMQ": stack.enter_context(RabbitMQ()).url,
            "Kafka": stack.enter_context(Kafka()).url,
        }
        number = 0

        def run(broker: str, variant: str, size: int) -> None:
            nonlocal number
            number += 1
            queue = f"bench-{number}"  # what the runs before left behind is not in anybody's way
            asyncio.run(declare(urls[broker], queue))
            cost = in_a_process(variant, urls[broker], queue, str(size))
            cpu, rate = series[broker, variant, size]
            cpu.add(cost.cpu_us)
            rate.add(cost.per_second)

        interleave(ROUNDS, *(lambda key=key: run(*key) for key in series))  # type: ignore[misc]

    figures: dict[str, object] = {
        "method": f"{MESSAGES} messages in batches of {AT_ONCE}, {lean.WINDOW} in flight, {ROUNDS} rounds"
    }
    for (broker, variant, size), (cpu, rate) in series.items():
        if "x" in variant:
            at_once, in_flight = variant.split("x")
            variant = f"ours by {at_once}, {in_flight} in flight"
        figures[f"{broker}, {variant}, {size} bytes"] = {
            "cpu_us_per_message": round(cpu.median, 2),
            "spread": cpu.spread,
            "per_second": round(rate.median),
        }
    targets = [
        Target(
            f"{broker}, {size} bytes: CPU / the client library's leanest loop",
            ratio(series[broker, "ours", size][0], series[broker, "lean", size][0]),
            bound,
            at_most=True,
        )
        for broker, bound in BROKERS.items()
        for size in SIZES
    ]
    return record("publish", figures, targets, versions("pika", "aiokafka", "uvloop"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        variant, url, queue, size = sys.argv[1:]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            cost = runner.run(one_run(variant, url, queue, int(size)))
        print(json.dumps([cost.cpu_us, cost.per_second]))
    else:
        sys.exit(main())
