"""
What publishing to the embedded queue costs: CPU time per message, in batches as a busy gateway makes them.

500-byte bodies, up to four publishes at a time, uvloop. All batch sizes share one open queue and are
measured in turns; the CPU time is that of the whole process, so the writer's thread, the hand-over and
the system's part of every fsync are in it. The messages are made beforehand.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from bench.costs import Cost
from bench.load import broker_settings, messages
from bench.report import Series, record, versions
from forebay.brokers.api import Broker
from forebay.brokers.factory import open_broker
from forebay.message import Message

ROUNDS = int(os.environ.get("ROUNDS", "5"))
MESSAGES = int(os.environ.get("MESSAGES", "20000"))
SIZES = tuple(int(size) for size in os.environ.get("SIZES", "8,16,32,64,500").split(","))
IN_FLIGHT = int(os.environ.get("IN_FLIGHT", "4"))
QUEUE = "bench"


async def publish_all(broker: Broker, batches: Sequence[Sequence[Message]]) -> None:
    left = iter(batches)

    async def one_after_another() -> None:
        for batch in left:
            for result in await broker.publish(QUEUE, batch, timeout=60):
                assert result.error is None

    await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))


async def main() -> int:
    cpu = {size: Series() for size in SIZES}
    rate = {size: Series() for size in SIZES}
    with tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True) as folder:
        async with open_broker(broker_settings(Path(folder) / "queue.db")) as broker:
            await broker.declare(QUEUE)
            for number in range(ROUNDS + 1):
                for size in SIZES:
                    made = list(messages(MESSAGES))
                    batches = [made[at : at + size] for at in range(0, len(made), size)]
                    cost = Cost()
                    cost.begin()
                    await publish_all(broker, batches)
                    cost.end(MESSAGES)
                    if number:
                        cpu[size].add(cost.cpu_us)
                        rate[size].add(cost.per_second)
            assert (await broker.depth(QUEUE)).waiting == (ROUNDS + 1) * len(SIZES) * MESSAGES

    figures: dict[str, object] = {
        "method": f"{MESSAGES} messages, {IN_FLIGHT} publishes at a time, {ROUNDS} interleaved rounds"
    }
    for size in SIZES:
        figures[f"batches of {size}"] = {
            "cpu_us_per_message": round(cpu[size].median, 2),
            "spread": cpu[size].spread,
            "per_second": round(rate[size].median),
        }
    return record("embedded_publish", figures, [], versions("apsw", "uvloop"))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main()))
