"""
Draining: a real `forebay consume` empties a queue into PostgreSQL's default table, from each broker in turn.

What a row costs the consumer is compared with what a request costs a bare ASGI application on
uvicorn that reads the body and stores nothing. How fast it goes is compared with a bare loop that
inserts as many messages from memory with one array insert per batch. All in turns, on the same two
cores, the broker beside them; each run has a queue and a process of its own. CPU time and rate are taken
between a fifth and nine tenths of the rows, so that neither start nor end is in them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from bench.bare import bare_loop
from bench.ingest import uvicorn
from bench.load import SIZE, fill
from bench.report import Series, Target, interleave, ratio, record, versions
from consumers.settings import QueueSettings
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from tests.servers.kafka import Kafka
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import RabbitMQ
from tests.system.harness import Site, cpu_seconds

ROUNDS = int(os.environ.get("ROUNDS", "3"))
MESSAGES = int(os.environ.get("MESSAGES", "60000"))
SECONDS = int(os.environ.get("SECONDS_PER_RUN", "4"))
BROKERS = os.environ.get("BROKERS", "embedded kafka rabbitmq").split()
BATCH = QueueSettings().batch_size

CPU = {"embedded": 0.55, "kafka": 0.65, "rabbitmq": 1.0}
"""Of a bare ASGI request, at most."""
RATE = {"embedded": 0.6, "kafka": 0.5, "rabbitmq": 0.3}
"""Of the bare loop, at least."""


@dataclass
class Drain:
    """One broker's queues, drained one after the other."""

    site: Site
    broker: str
    cpu: Series = field(default_factory=Series)
    """µs per row."""
    rate: Series = field(default_factory=Series)
    count: int = 0

    def run(self) -> None:
        self.count += 1
        queue = f"bench-{self.count}"
        asyncio.run(self._fill(queue))
        self.site.sql("truncate messages")
        consumer = self.site.start("consume", queue, log=f"{queue}", env={"FOREBAY_QUEUE_NAMES": queue})

        def reached(share: float) -> tuple[int, float, float]:
            stored = 0

            def enough() -> bool:
                nonlocal stored
                stored = self.site.stored()
                return stored >= share * MESSAGES

            consumer.until(enough, within=300, what=f"{share:.0%} of the rows", every=0.1)
            return stored, cpu_seconds(consumer.pid), time.monotonic()

        first, cpu, at = reached(0.2)
        last, cpu_then, then = reached(0.9)
        reached(1.0)
        assert consumer.stop() == 0, consumer.tail()
        self.cpu.add((cpu_then - cpu) / (last - first) * 1e6)
        self.rate.add((last - first) / (then - at))

    async def _fill(self, queue: str) -> None:
        async with open_broker(BrokerSettings(url=SecretStr(self.broker))) as broker:
            await broker.declare(queue)
            await fill(broker, queue, MESSAGES)


def main() -> int:
    bare = Series()
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True)
            )
        )
        postgres = stack.enter_context(Postgres())
        urls = {"embedded": f"sqlite:///{folder / 'queue.db'}"}
        if "kafka" in BROKERS:
            urls["kafka"] = stack.enter_context(Kafka()).url
        if "rabbitmq" in BROKERS:
            urls["rabbitmq"] = stack.enter_context(RabbitMQ()).url

        def site(name: str) -> Site:
            (folder / name).mkdir()
            made = Site(folder / name, postgres.create_database(), queues="bench")
            stack.callback(made.close)
            made.migrate()
            return made

        drains = {name: Drain(site(name), urls[name]) for name in BROKERS}
        for name, drain in drains.items():
            drain.site.settings["BROKER__URL"] = urls[name]
        bare_site = site("bare")
        asgi = uvicorn("bare ASGI", "bench.baseline:bare", bare_site)
        asgi.load(keyed=False, seconds=1, measured=False)

        def run_bare() -> None:
            bare_site.sql("truncate messages")
            bare.add(bare_loop(bare_site.database_url, MESSAGES, batch=BATCH))

        interleave(
            ROUNDS,
            lambda: asgi.load(keyed=False, seconds=SECONDS),
            run_bare,
            *[drain.run for drain in drains.values()],
        )
        server = postgres.version

    figures: dict[str, object] = {
        "method": f"{MESSAGES} messages of {SIZE} bytes, batches of {BATCH}, {ROUNDS} interleaved rounds",
        "server": server,
        "bare ASGI, cpu_us_per_request": round(asgi.cpu[False].median, 1),
        "bare loop, per second": round(bare.median),
        "bare loop, spread": bare.spread,
    }
    targets: list[Target] = []
    for name, drain in drains.items():
        figures[name] = {
            "cpu_us_per_row": round(drain.cpu.median, 1),
            "cpu_spread": drain.cpu.spread,
            "per_second": round(drain.rate.median),
            "spread": drain.rate.spread,
        }
        cost, held = ratio(drain.cpu, asgi.cpu[False]), ratio(drain.rate, bare)
        targets.append(Target(f"{name}: CPU per row / bare ASGI request", cost, CPU[name], at_most=True))
        targets.append(Target(f"{name}: rate / bare loop", held, RATE[name], at_most=False))
    if os.environ.get("DRY_RUN"):
        print(*figures.items(), *targets, sep="\n")
        return 0
    return record(
        "drain", figures, targets, versions("apsw", "aiokafka", "pika", "psycopg", "uvicorn", "uvloop")
    )


if __name__ == "__main__":
    sys.exit(main())
