"""
What taking one message costs: CPU time of a consumer per row, from RabbitMQ into PostgreSQL's default table.

Compared with what one request costs a server that does nothing: a bare ASGI application on
uvicorn, kept busy by wrk. Beside it the same consumer as one would write it with Celery and
with FastStream, a row per commit. In turns; each run has a process and a full queue of its own,
and its CPU time is taken between a fifth and nine tenths of the rows, so that neither start nor end is in it.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from bench.ingest import UVICORN
from bench.load import SIZE, fill, messages
from bench.report import Series, Target, interleave, ratio, record, versions
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from tests.servers.postgres import Postgres, free_port
from tests.servers.rabbitmq import RabbitMQ
from tests.system.harness import Process, Site, cpu_seconds, http

ROUNDS = int(os.environ.get("ROUNDS", "5"))
MESSAGES = int(os.environ.get("MESSAGES", "60000"))
RIVALS = int(os.environ.get("RIVAL_MESSAGES", "4000"))
"""They are slow; more would only take longer."""
SECONDS = int(os.environ.get("SECONDS_PER_RUN", "5"))
CONNECTIONS = 64
ROOT = Path(__file__).parent.parent


@dataclass
class Cost:
    cpu: Series = field(default_factory=Series)
    """µs per row, or per request."""
    rate: Series = field(default_factory=Series)


class Bench:
    def __init__(self, folder: Path, postgres: Postgres, rabbit: RabbitMQ) -> None:
        self.folder, self.rabbit = folder, rabbit
        self.site = Site(folder, postgres.create_database(), queues="bench")
        self.site.settings["BROKER__URL"] = rabbit.url
        self.site.migrate()
        self.costs = {name: Cost() for name in ("forebay consume", "bare ASGI", "Celery", "FastStream")}
        self._number = 0

    def start(self, *command: str, **env: str) -> Process:
        self._number += 1
        process = Process(
            command, env={**self.site.env, **env}, cwd=ROOT, log=self.folder / f"process-{self._number}.log"
        )
        self.site.processes.append(process)
        return process

    # ---- the variants

    def forebay(self) -> None:
        queue = self._fill(MESSAGES)
        forebay = str(Path(sys.executable).with_name("forebay"))
        self._consumer("forebay consume", MESSAGES, forebay, "consume", queue, FOREBAY_QUEUE_NAMES=queue)

    def faststream(self) -> None:
        queue = self._fill(RIVALS)
        self._consumer(
            "FastStream", RIVALS,
            sys.executable, "-m", "faststream", "run", "bench.rival.faststream_app:app",
            BENCH_QUEUE=queue,
        )  # fmt: skip

    def celery(self) -> None:
        os.environ["BENCH_BROKER_URL"] = self.rabbit.url
        from bench.rival.celery_app import app, store

        with app.producer_pool.acquire(block=True) as producer:
            for message in messages(RIVALS):
                store.apply_async((message.id, message.body.decode()), producer=producer)
        self._consumer(
            "Celery", RIVALS,
            sys.executable, "-m", "celery", "-A", "bench.rival.celery_app", "worker", "--pool", "solo",
            "--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat",
        )  # fmt: skip

    def asgi(self) -> None:
        port = free_port()
        process = self.start(
            UVICORN, "bench.baseline:noop", "--port", str(port), "--loop", "uvloop", "--http", "httptools",
            "--no-access-log", "--log-level", "warning",
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}/"

        def ready() -> bool:
            try:
                return http("GET", url).status == 200
            except OSError:
                return False

        process.until(ready, what="uvicorn to answer")
        self._wrk(url, 1)
        before = cpu_seconds(process.pid)
        requests = self._wrk(url, SECONDS)
        self.costs["bare ASGI"].cpu.add((cpu_seconds(process.pid) - before) / requests * 1e6)
        self.costs["bare ASGI"].rate.add(requests / SECONDS)
        process.stop()

    # ---- their parts

    def _wrk(self, url: str, seconds: int) -> int:
        done = subprocess.run(
            ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", url],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Non-2xx" not in done.stdout, done.stdout
        found = re.search(r"(\d+) requests in", done.stdout)
        assert found is not None, done.stdout
        return int(found[1])

    def _fill(self, count: int) -> str:
        self._number += 1
        queue = f"bench-{self._number}"

        async def publish() -> None:
            async with open_broker(BrokerSettings(url=SecretStr(self.rabbit.url))) as broker:
                await broker.declare(queue)
                await fill(broker, queue, count)

        asyncio.run(publish())
        return queue

    def _consumer(self, name: str, count: int, *command: str, **env: str) -> None:
        """From a fifth of the rows to nine tenths."""
        self.site.sql("truncate messages")
        process = self.start(
            *command, BENCH_BROKER_URL=self.rabbit.url, BENCH_DATABASE_URL=self.site.database_url, **env
        )

        def reached(share: float) -> tuple[int, float, float]:
            stored = 0

            def enough() -> bool:
                nonlocal stored
                stored = self.site.stored()
                return stored >= share * count

            process.until(enough, within=300, what=f"{share:.0%} of the rows", every=0.1)
            return stored, cpu_seconds(process.pid), time.monotonic()

        first, cpu, at = reached(0.2)
        last, cpu_then, then = reached(0.9)
        reached(1.0)
        cost = self.costs[name]
        cost.cpu.add((cpu_then - cpu) / (last - first) * 1e6)
        cost.rate.add((last - first) / (then - at))
        process.stop()


def main() -> int:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
        RabbitMQ() as rabbit,
    ):
        bench = Bench(Path(folder), postgres, rabbit)
        only = os.environ.get("VARIANTS", "asgi forebay celery faststream").split()
        variants: list[Callable[[], None]] = [getattr(bench, name) for name in only]
        try:
            interleave(ROUNDS, *variants)
        finally:
            bench.site.close()
        server = postgres.version

    ours, asgi = bench.costs["forebay consume"].cpu, bench.costs["bare ASGI"].cpu
    figures: dict[str, object] = {
        "method": f"{MESSAGES} messages ({RIVALS} for the rivals) of {SIZE} bytes in a quorum queue"
        f" (Celery: its own durable queue); wrk -t1 -c{CONNECTIONS} -d{SECONDS}s; {ROUNDS} rounds in turns",
        "server": server,
    }
    for name, cost in bench.costs.items():
        if cost.cpu.values:
            unit = "request" if name == "bare ASGI" else "row"
            figures[name] = {
                f"cpu_us_per_{unit}": round(cost.cpu.median, 1),
                "spread": cost.cpu.spread,
                "per_second": round(cost.rate.median),
            }
    for name in ("Celery", "FastStream"):
        if bench.costs[name].cpu.values:
            figures[f"{name} / bare ASGI"] = round(ratio(bench.costs[name].cpu, asgi), 1)
            figures[f"{name} / forebay consume"] = round(ratio(bench.costs[name].cpu, ours), 1)
    targets = [Target("CPU per row / bare ASGI request", ratio(ours, asgi), 1.4, at_most=True)]
    packages = versions("pika", "psycopg", "uvicorn", "uvloop", "httptools", "celery", "faststream")
    if os.environ.get("DRY_RUN"):
        print(figures, *targets, sep="\n")
        return 0
    return record("consume", figures, targets, packages)


if __name__ == "__main__":
    sys.exit(main())
