"""
What accepting one message costs on RabbitMQ and on Kafka, one message per request, confirmed.

CPU time of `forebay gateway` per 202, against the bare ASGI application that stores nothing, and
beside it a FastAPI route that stores nothing (bench/baseline.py) and the same endpoint with FastAPI
and FastStream (bench/rivals.py), in turns, like `ingest`. RabbitMQ: a quorum queue, persistent,
mandatory, confirmed. Kafka: acks=all, idempotent, with the topic that Forebay made.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.ingest import (
    BOUND,
    CONNECTIONS,
    PACED,
    ROUNDS,
    SECONDS,
    Server,
    figures_of,
    half_load,
    uvicorn,
    warm_up,
)
from bench.pace import p99
from bench.report import Series, Target, interleave, ratio, record, versions
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from tests.servers.kafka import Kafka
from tests.servers.postgres import free_port
from tests.servers.rabbitmq import RabbitMQ
from tests.system.harness import Site

BOUND_RIVAL = 1 / 3
QUEUES = ("bench", "rival", "alone")
"""Ours, the one that the rival publishes to, and that of the client library alone: made alike."""


async def held(url: str, queue: str) -> int:
    """How many messages a queue holds, by what the broker itself says."""
    async with open_broker(BrokerSettings.model_validate({"url": url})) as broker:
        depth = await broker.depth(queue)
    assert depth.waiting is not None, depth
    return depth.waiting


def main() -> int:
    if importlib.util.find_spec("faststream") is None:
        print("FastStream is not installed: .venv/bin/pip install --editable '.[bench]'", file=sys.stderr)
        return 2
    ours: dict[str, Server] = {}
    rivals: dict[str, Server] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True)
        )
        urls = {
            "RabbitMQ": stack.enter_context(RabbitMQ()).url,
            "Kafka": stack.enter_context(Kafka()).url,
        }
        site = Site(Path(folder), database_url="sqlite:///unused.db", queues=",".join(QUEUES))
        stack.callback(site.close)
        for name, url in urls.items():
            port = free_port()
            process = site.gateway(port=port, FOREBAY_BROKER__URL=url)
            ours[name] = Server(name, process, f"http://127.0.0.1:{port}/v1/queues/bench/messages")
            rivals[name] = uvicorn(
                f"FastAPI and FastStream on {name}",
                "bench.rivals:app",
                site,
                queue="rival",
                env={"BENCH_BROKER_URL": url},
            )
        route = uvicorn("FastAPI route that stores nothing", "bench.baseline:app", site)
        noop = uvicorn("bare ASGI no-op", "bench.baseline:bare", site)
        servers = [noop, route, *ours.values(), *rivals.values()]
        warm_up(servers)
        interleave(ROUNDS, *(lambda server=server: server.load(keyed=False) for server in servers))  # type: ignore[misc]
        stored = {}
        for name, url in urls.items():
            for server, queue in ((ours[name], "bench"), (rivals[name], "rival")):
                stored[server.name] = waiting = asyncio.run(held(url, queue))
                if waiting < server.accepted:
                    raise SystemExit(f"{server.name}: {server.accepted} answered 202, {waiting} in the queue")

        latencies = [
            half_load(
                ours[name],
                noop,
                lambda rate, url=url: p99(url, "alone", rate, SECONDS),
                PACED,  # type: ignore[misc]
            )
            for name, url in urls.items()
        ]

    def cpu(server: Server) -> Series:
        return server.cpu[False]

    figures: dict[str, object] = {
        "method": f"wrk -t1 -c{CONNECTIONS} -d{SECONDS}s, 500-byte JSON, {ROUNDS} interleaved rounds",
        "messages_in_the_queues": stored,
    }
    for server in servers:
        figures[server.name] = figures_of(server)
    targets = []
    for name in urls:
        against = ratio(cpu(ours[name]), cpu(noop))
        targets.append(Target(f"{name}: CPU / bare ASGI no-op", against, BOUND, True))
        against = ratio(cpu(ours[name]), cpu(rivals[name]))
        targets.append(Target(f"{name}: CPU / FastAPI and FastStream", against, BOUND_RIVAL, True))
        figures[f"{name}: CPU / FastAPI route"] = round(ratio(cpu(ours[name]), cpu(route)), 3)
    targets += latencies
    packages = versions("fastapi", "uvicorn", "uvloop", "pika", "aiokafka", "faststream", "aio-pika")
    return record("ingest_brokers", figures, targets, packages)


if __name__ == "__main__":
    sys.exit(main())
