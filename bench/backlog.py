"""
What a message costs while many wait: publish and take 20,000 with 10,000 waiting, and with a million or more.

Messages are published 64 at a time, as a busy gateway does, and taken and
acknowledged 500 at a time, as a consumer does, so that the number waiting stays what
it is. Both queues exist from the start and are measured in turns; CPU time is this process's,
which does what gateway and consumer do with the broker, and its memory is noted at the end.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from bench.load import fill, messages
from bench.report import Series, Target, ratio, record, versions
from forebay import collector
from forebay.brokers.api import Ack, Broker
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from tests.servers.kafka import Kafka
from tests.servers.rabbitmq import RabbitMQ

ROUNDS = int(os.environ.get("ROUNDS", "5"))
FEW = int(os.environ.get("FEW", "10000"))
MANY = {"embedded": 10_000_000, "kafka": 10_000_000, "rabbitmq": 3_000_000}
BROKERS = os.environ.get("BROKERS", "embedded kafka rabbitmq").split()
MESSAGES = 20_000


@dataclass
class Backlog:
    waiting: int
    broker: Broker
    queue: str
    cpu: Series = field(default_factory=Series)
    wall: Series = field(default_factory=Series)

    async def round(self, *, measured: bool = True) -> None:
        batches = [list(messages(64)) for _ in range(MESSAGES // 64)]
        left = count = sum(len(batch) for batch in batches)
        # Joining a group takes Kafka seconds; once joined, a round is like the one before.
        async with self.broker.subscribe(self.queue, prefetch=1_000) as subscription:
            first = await subscription.receive(1, 60.0)
            assert not await subscription.settle([Ack(d) for d in first])
            left -= len(first)
            began, cpu_began = time.perf_counter(), time.process_time()
            for batch in batches:
                results = await self.broker.publish(self.queue, batch, timeout=60)
                assert all(r.ok for r in results)
            while left:
                deliveries = await subscription.receive(min(500, left), 1.0)
                assert not await subscription.settle([Ack(d) for d in deliveries])
                left -= len(deliveries)
            ended, cpu_ended = time.perf_counter(), time.process_time()
        if measured:
            self.cpu.add((cpu_ended - cpu_began) / count * 1e6)
            self.wall.add((ended - began) / count * 1e6)

    def figures(self) -> dict[str, object]:
        return {
            "cpu_us_per_message": round(self.cpu.median, 2),
            "spread": self.cpu.spread,
            "wall_us_per_message": round(self.wall.median, 2),
        }


def megabytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


async def measure(name: str, url: str, figures: dict[str, object]) -> list[Target]:
    many = int(os.environ.get("MANY", MANY[name]))
    async with AsyncExitStack() as stack:

        async def backlog(kind: str, waiting: int) -> Backlog:
            # A file for each on the embedded queue, a queue for each elsewhere.
            settings = BrokerSettings(url=SecretStr(url.format(kind)))
            broker = await stack.enter_async_context(open_broker(settings))
            await broker.declare(kind)
            await fill(broker, kind, waiting)
            print(f"{name}: {waiting} are waiting", file=sys.stderr)
            return Backlog(waiting, broker, kind)

        few, lots = await backlog("few", FEW), await backlog("many", many)
        memory: dict[str, int] = {}
        collector.spare()
        for side in (few, lots):
            await side.round(measured=False)
            memory[side.queue] = megabytes()
        for number in range(ROUNDS):
            print(f"{name}: round {number + 1} of {ROUNDS}", file=sys.stderr)
            await few.round()
            await lots.round()
    for side in (few, lots):
        figures[f"{name}, {side.waiting} waiting"] = {
            **side.figures(),
            "most_memory_mb": memory[side.queue],
        }
    cost = ratio(lots.cpu, few.cpu)
    targets = [
        Target(f"{name}: CPU per message, {many} / {FEW} waiting", cost, 1.2, at_most=True),
        Target(f"{name}: memory, {many} / {FEW} waiting", memory["many"] / memory["few"], 1.2, at_most=True),
    ]
    if name == "embedded":
        # Elsewhere it is mostly the server's.
        wall = ratio(lots.wall, few.wall)
        targets.append(
            Target(f"{name}: wall time per message, {many} / {FEW} waiting", wall, 1.2, at_most=True)
        )
    return targets


def main() -> int:
    figures: dict[str, object] = {
        "method": f"publish by 64, take and ack by 500, {MESSAGES} a round, {ROUNDS} interleaved rounds"
    }
    targets: list[Target] = []
    for name in BROKERS:
        with tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True) as folder:
            if name == "embedded":
                targets += asyncio.run(measure(name, f"sqlite:///{Path(folder)}/{{}}.db", figures))
                continue
            with Kafka() if name == "kafka" else RabbitMQ() as server:
                targets += asyncio.run(measure(name, server.url, figures))
    if os.environ.get("DRY_RUN"):
        print(*figures.items(), *targets, sep="\n")
        return 0
    return record("backlog", figures, targets, versions("apsw", "aiokafka", "pika"))


if __name__ == "__main__":
    sys.exit(main())
