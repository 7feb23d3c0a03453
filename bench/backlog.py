"""
What a message costs while many wait: publish and take 20,000 with 10,000 waiting, and with 1,000,000.

Messages are published 64 at a time, as a busy gateway does, and taken and
acknowledged 500 at a time, as a consumer does, so that the number waiting stays what
it is. Both queues exist from the start and are measured in turns.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import broker_settings, fill, messages
from bench.report import Series, Target, ratio, record, versions
from forebay.brokers.api import Ack, Broker
from forebay.brokers.factory import open_broker

ROUNDS = int(os.environ.get("ROUNDS", "5"))
FEW = int(os.environ.get("FEW", "10000"))
MANY = int(os.environ.get("MANY", "1000000"))
MESSAGES = 20_000
QUEUE = "bench"


@dataclass
class Backlog:
    waiting: int
    broker: Broker
    publish: Series = field(default_factory=Series)
    take: Series = field(default_factory=Series)
    cpu: Series = field(default_factory=Series)
    wall: Series = field(default_factory=Series)

    async def round(self, *, measured: bool = True) -> None:
        batches = [list(messages(64)) for _ in range(MESSAGES // 64)]
        count = sum(len(batch) for batch in batches)
        began, cpu_began = time.perf_counter(), time.process_time()
        for batch in batches:
            results = await self.broker.publish(QUEUE, batch, timeout=60)
            assert all(r.ok for r in results)
        cpu_published = time.process_time()
        left = count
        async with self.broker.subscribe(QUEUE, prefetch=1_000) as subscription:
            while left:
                deliveries = await subscription.receive(min(500, left), 1.0)
                assert not await subscription.settle([Ack(d) for d in deliveries])
                left -= len(deliveries)
        ended, cpu_ended = time.perf_counter(), time.process_time()
        if measured:
            self.publish.add((cpu_published - cpu_began) / count * 1e6)
            self.take.add((cpu_ended - cpu_published) / count * 1e6)
            self.cpu.add((cpu_ended - cpu_began) / count * 1e6)
            self.wall.add((ended - began) / count * 1e6)

    def figures(self) -> dict[str, object]:
        return {
            "cpu_us_per_message": round(self.cpu.median, 2),
            "spread": self.cpu.spread,
            "of_it_publish": round(self.publish.median, 2),
            "of_it_take_and_ack": round(self.take.median, 2),
            "wall_us_per_message": round(self.wall.median, 2),
        }


async def main() -> int:
    async with AsyncExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True)
            )
        )

        async def backlog(name: str, waiting: int) -> Backlog:
            broker = await stack.enter_async_context(open_broker(broker_settings(folder / f"{name}.db")))
            await broker.declare(QUEUE)
            await fill(broker, QUEUE, waiting)
            print(f"{waiting} are waiting in {name}.db", file=sys.stderr)
            return Backlog(waiting, broker)

        few, many = await backlog("few", FEW), await backlog("many", MANY)
        await few.round(measured=False)
        await many.round(measured=False)
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
            await few.round()
            await many.round()
        for side in (few, many):
            depth = await side.broker.depth(QUEUE)
            assert depth.waiting == side.waiting, depth

    return record(
        "backlog",
        {
            "method": f"publish by 64, take and ack by 500, {MESSAGES} a round, {ROUNDS} interleaved rounds",
            f"{few.waiting} waiting": few.figures(),
            f"{many.waiting} waiting": many.figures(),
        },
        [
            Target("CPU per message, many / few waiting", ratio(many.cpu, few.cpu), 1.2, True),
            Target("wall time per message, many / few waiting", ratio(many.wall, few.wall), 1.2, True),
        ],
        versions("apsw"),
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
