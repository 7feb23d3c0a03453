"""
What a message costs the gateway while many wait: 10,000 and some millions, with and without idempotency keys.

Two gateways for each broker, one with a queue that holds few and one with a queue that holds many,
loaded in turns like `ingest`. Their memory is the proportional set size at the end.
FEW, MANY (embedded, Kafka) and MANY_RABBITMQ say how many.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from pydantic import SecretStr

from bench.ingest import CONNECTIONS, Server, warm_up
from bench.load import fill
from bench.report import Target, interleave, ratio, record, versions
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from tests.servers.kafka import Kafka
from tests.servers.postgres import free_port
from tests.servers.rabbitmq import RabbitMQ
from tests.system.harness import Site, descendants

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SECONDS = int(os.environ.get("SECONDS_PER_RUN", "4"))
FEW = int(os.environ.get("FEW", "10000"))
MANY = int(os.environ.get("MANY", "10000000"))
MANY_RABBITMQ = int(os.environ.get("MANY_RABBITMQ", "3000000"))
ONLY = os.environ.get("BROKERS", "embedded,RabbitMQ,Kafka").split(",")
MOST = 1.2


async def prepare(url: str, queue: str, count: int) -> None:
    async with open_broker(BrokerSettings(url=SecretStr(url))) as broker:
        await broker.declare(queue)
        await fill(broker, queue, count)
    print(f"{count} are waiting in {queue}", file=sys.stderr)


def memory(server: Server) -> float:
    """MiB of the gateway's processes."""
    total = 0
    for pid in (server.process.pid, *descendants(server.process.pid)):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def main() -> int:
    figures: dict[str, object] = {
        "method": f"wrk -t1 -c{CONNECTIONS} -d{SECONDS}s, 500-byte JSON, {ROUNDS} interleaved rounds"
    }
    targets = []
    for broker in ONLY:
        with ExitStack() as stack:
            folder = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True)
                )
            )
            url = ""
            if broker == "RabbitMQ":
                url = stack.enter_context(RabbitMQ()).url
            elif broker == "Kafka":
                url = stack.enter_context(Kafka()).url
            servers: dict[str, Server] = {}
            many = MANY_RABBITMQ if broker == "RabbitMQ" else MANY
            for queue, waiting in (("few", FEW), ("many", many)):
                place = folder / queue
                place.mkdir()
                own = url or f"sqlite:///{place / 'queue.db'}"
                asyncio.run(prepare(own, queue, waiting))
                site = Site(place, database_url="sqlite:///unused.db", queues=queue)
                stack.callback(site.close)
                port = free_port()
                process = site.gateway(port=port, FOREBAY_BROKER__URL=own)
                servers[queue] = Server(
                    f"{broker}, {waiting} waiting",
                    process,
                    f"http://127.0.0.1:{port}/v1/queues/{queue}/messages",
                )
            warm_up(servers.values())

            def run(keyed: bool, servers: dict[str, Server] = servers) -> None:
                for server in servers.values():
                    server.load(keyed=keyed, seconds=SECONDS)

            interleave(ROUNDS, lambda run=run: run(False), lambda run=run: run(True))  # type: ignore[misc]
            held = {name: memory(server) for name, server in servers.items()}
        for name, server in servers.items():
            figures[server.name] = {
                "cpu_us_per_message": round(server.cpu[False].median, 2),
                "with_idempotency_keys": round(server.cpu[True].median, 2),
                "spread": server.cpu[False].spread,
                "per_second": round(server.rate[False].median),
                "memory_mib": round(held[name]),
            }
        few, lots = servers["few"], servers["many"]
        for keyed, said in ((False, "without"), (True, "with")):
            against = ratio(lots.cpu[keyed], few.cpu[keyed])
            name = f"{broker}: CPU with many / few waiting, {said} idempotency keys"
            targets.append(Target(name, against, MOST, True))
        grown = held["many"] / held["few"]
        targets.append(Target(f"{broker}: the gateway's memory, many / few waiting", grown, MOST, True))
    return record("gateway_backlog", figures, targets, versions("uvicorn", "apsw", "pika", "aiokafka"))


if __name__ == "__main__":
    sys.exit(main())
