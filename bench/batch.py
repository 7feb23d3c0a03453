"""
What a message costs in a batch: CPU time of the gateway per durable message, NDJSON of 1,000 per request.

Against a bare ASGI application that is sent one message per request and does nothing (bench/baseline.py),
in turns, as in `ingest`. With idempotency keys every batch has one, and each of its messages thereby its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.ingest import CONNECTIONS, ROUNDS, Server, uvicorn
from bench.ingest_brokers import held
from bench.report import Target, interleave, ratio, record, versions
from tests.servers.kafka import Kafka
from tests.servers.postgres import free_port
from tests.servers.rabbitmq import RabbitMQ
from tests.system.harness import Site

LINES = 1_000
SENDERS = 4
SECONDS = int(os.environ.get("SECONDS_PER_RUN", "4"))
BOUNDS = {"embedded": 0.23, "RabbitMQ": 0.64, "Kafka": 0.23}


def main() -> int:
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True)
            )
        )
        urls = {
            "embedded": f"sqlite:///{folder / 'queue.db'}",
            "RabbitMQ": stack.enter_context(RabbitMQ()).url,
            "Kafka": stack.enter_context(Kafka()).url,
        }
        site = Site(folder, database_url="sqlite:///unused.db", queues="bench")
        stack.callback(site.close)
        servers: dict[str, Server] = {}
        for name, url in urls.items():
            port = free_port()
            process = site.gateway(port=port, FOREBAY_BROKER__URL=url)
            servers[name] = Server(
                f"forebay gateway, {name}", process, f"http://127.0.0.1:{port}/v1/queues/bench/batch"
            )
        bare = uvicorn("bare ASGI", "bench.baseline:bare", site)

        def batches(server: Server, *, keyed: bool, measured: bool = True) -> None:
            server.load(keyed=keyed, seconds=SECONDS, measured=measured, lines=LINES, connections=SENDERS)

        def one_by_one(measured: bool = True) -> None:
            bare.load(keyed=False, seconds=SECONDS, measured=measured)

        one_by_one(measured=False)
        for server in servers.values():
            batches(server, keyed=False, measured=False)
        interleave(
            ROUNDS,
            one_by_one,
            *(
                lambda server=server, keyed=keyed: batches(server, keyed=keyed)
                for server in servers.values()
                for keyed in (False, True)
            ),
        )
        stored = {}
        for name, url in urls.items():
            stored[name] = waiting = asyncio.run(held(url, "bench"))
            if waiting < servers[name].accepted:
                raise SystemExit(
                    f"{name}: {servers[name].accepted} were accepted, {waiting} are in the queue"
                )

    figures: dict[str, object] = {
        "method": f"wrk -t1 -c{SENDERS} -d{SECONDS}s, {LINES} lines of 500-byte JSON; bare ASGI:"
        f" -c{CONNECTIONS}, one of them per request; {ROUNDS} interleaved rounds",
        "messages_in_the_queues": stored,
    }
    targets: list[Target] = []
    figures[bare.name] = {
        "cpu_us_per_message": round(bare.cpu[False].median, 2),
        "spread": bare.cpu[False].spread,
        "per_second": round(bare.rate[False].median),
    }
    for name, server in servers.items():
        for keyed in (False, True):
            against = ratio(server.cpu[keyed], bare.cpu[False])
            figures[f"{server.name}, {'with' if keyed else 'without'} idempotency keys"] = {
                "cpu_us_per_message": round(server.cpu[keyed].median, 2),
                "spread": server.cpu[keyed].spread,
                "per_second": round(server.rate[keyed].median),
                "p99_ms": round(server.p99_ms[keyed].median, 2),
                "against_bare_asgi": round(against, 3),
            }
        against = ratio(server.cpu[False], bare.cpu[False])
        targets.append(Target(f"{name}: CPU per message / bare ASGI", against, BOUNDS[name], True))
    packages = versions("uvicorn", "uvloop", "httptools", "apsw", "pika", "aiokafka")
    return record("batch", figures, targets, packages)


if __name__ == "__main__":
    sys.exit(main())
