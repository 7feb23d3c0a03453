"""
Draining: 100,000 messages from the embedded queue, by a real `forebay consume`, into PostgreSQL.

Compared with a bare loop that inserts as many messages from memory with the same
array insert, in batches of the same size, each into a fresh database of the same
server, in turns. The drain is timed from the first transaction to the last by the
database's own clock, so that starting Python is not in it; the server has fsync on.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from bench.bare import bare_loop
from bench.load import broker_settings, fill
from bench.report import Series, Target, interleave, ratio, record, versions
from consumers.settings import QueueSettings
from forebay.brokers.factory import open_broker
from tests.servers.postgres import Postgres
from tests.system.harness import Site, cpu_seconds

ROUNDS = int(os.environ.get("ROUNDS", "3"))
MESSAGES = int(os.environ.get("MESSAGES", "100000"))
BATCH = QueueSettings().batch_size
QUEUE = "bench"


async def prepare(queue_file: Path) -> None:
    async with open_broker(broker_settings(queue_file)) as broker:
        await broker.declare(QUEUE)
        await fill(broker, QUEUE, MESSAGES)


def main() -> int:
    drain, bare, cpu = Series(), Series(), Series()
    with (
        tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
    ):

        def site(name: str) -> Site:
            made = Site(Path(folder), postgres.create_database(), queues=QUEUE)
            made.settings["BROKER__URL"] = f"sqlite:///{Path(folder) / name}.db"
            made.migrate()
            return made

        def run_drain() -> None:
            name = f"queue-{len(drain.values)}"
            asyncio.run(prepare(Path(folder) / f"{name}.db"))
            one = site(name)
            consumer = one.consumer(QUEUE)
            try:
                consumer.until(lambda: one.stored() == MESSAGES, within=300, what="all rows", every=0.25)
                used = cpu_seconds(consumer.pid)
                assert consumer.stop() == 0
            finally:
                one.close()
            ((seconds, first),) = one.sql(
                "select extract(epoch from max(stored_at) - min(stored_at)),"
                " (select count(*) from messages where stored_at = (select min(stored_at) from messages))"
                " from messages"
            )
            # `stored_at` is when a transaction began: one batch is not in the time, and not in the count.
            drain.add((MESSAGES - int(first)) / float(seconds))
            cpu.add(used / MESSAGES * 1e6)

        def run_bare() -> None:
            bare.add(bare_loop(site(f"unused-{len(bare.values)}").database_url, MESSAGES, batch=BATCH))

        interleave(ROUNDS, run_drain, run_bare)
        server = postgres.version

    return record(
        "drain",
        {
            "method": f"{MESSAGES} messages of 500 bytes, batches of {BATCH}, {ROUNDS} interleaved rounds",
            "server": server,
            "drained_per_second": round(drain.median),
            "drained_spread": drain.spread,
            "consumer_cpu_us_per_message_with_its_start": round(cpu.median, 1),
            "bare_loop_per_second": round(bare.median),
            "bare_loop_spread": bare.spread,
        },
        [Target("drain / bare loop", ratio(drain, bare), 0.4, at_most=False)],
        versions("apsw", "psycopg", "sqlalchemy"),
    )


if __name__ == "__main__":
    sys.exit(main())
