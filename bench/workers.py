"""
What workers cost each other: CPU time per accepted message with one, two and four, on each broker.

One gateway for each number of workers and each broker, loaded in turns with 64 connections for each
worker, as each of several replicas would be. Then one worker and two, each held to 0.3 of a core: how
much more two of them take. Where no such quota can be set the reason stands in the row.

Beside them stands what the machine itself takes for that: the same of a bare ASGI application that stores
nothing, on uvicorn's own workers. They share nothing but the cores, with each other and with the generator.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.ingest import CONNECTIONS, Server, uvicorn, warm_up
from bench.quota import NoQuota, held
from bench.report import Series, Target, interleave, ratio, record, versions
from tests.servers.kafka import Kafka
from tests.servers.postgres import free_port
from tests.servers.rabbitmq import RabbitMQ
from tests.system.harness import Site, descendants, until

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SECONDS = int(os.environ.get("SECONDS_PER_RUN", "4"))
WORKERS = (1, 2, 4)
BARE = "bare ASGI"
BOUND = 1.1
"""CPU per message, in multiples of that with one worker."""
SHARE = 0.3
"""Of a core, for each worker."""
CARRY = 1.8
"""So much more must two of them take than one."""


def workers_of(server: Server, count: int) -> list[int]:
    """The processes that serve: of several, the children that were spawned; of one, the gateway itself."""
    if count == 1:
        return [server.process.pid]
    serving = [pid for pid in descendants(server.process.pid) if b"spawn_main" in _command(pid)]
    assert len(serving) == count, serving
    return serving


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def main() -> int:
    cpu: dict[tuple[str, int], Series] = {}
    rate: dict[tuple[str, int], Series] = {}
    quota: dict[tuple[str, int], Series] = {}
    skipped = ""
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True)
            )
        )
        urls = {
            "embedded": "",
            "RabbitMQ": stack.enter_context(RabbitMQ()).url,
            "Kafka": stack.enter_context(Kafka()).url,
        }
        servers: dict[tuple[str, int], Server] = {}
        for broker, url in urls.items():
            for count in WORKERS:
                place = folder / f"{broker}-{count}"
                place.mkdir()
                site = Site(place, database_url="sqlite:///unused.db", queues="bench")
                stack.callback(site.close)
                port = free_port()
                env = {"FOREBAY_BROKER__URL": url or f"sqlite:///{place / 'queue.db'}"}
                process = site.gateway("--workers", f"{count}", port=port, **env)
                target = f"http://127.0.0.1:{port}/v1/queues/bench/messages"
                server = Server(f"{broker}, {count} workers", process, target)
                # The first that is ready answers for all.
                until(lambda s=server, n=count: workers_of(s, n), what="the workers to be there")  # type: ignore[misc]
                servers[broker, count] = server

        site = Site(folder, database_url="sqlite:///unused.db", queues="bench")
        stack.callback(site.close)
        for count in WORKERS:
            server = uvicorn(f"{BARE}, {count} workers", "bench.baseline:bare", site, workers=count)
            stack.callback(server.process.stop)  # killed, it would leave its workers behind
            until(lambda s=server, n=count: workers_of(s, n), what="the workers to be there")  # type: ignore[misc]
            servers[BARE, count] = server

        def load(broker: str, count: int) -> None:
            servers[broker, count].load(keyed=False, seconds=SECONDS, connections=count * CONNECTIONS)

        warm_up(servers.values())
        interleave(ROUNDS, *(lambda key=key: load(*key) for key in servers))  # type: ignore[misc]
        for key, server in servers.items():
            cpu[key], rate[key] = server.cpu[False], server.rate[False]
            server.cpu[False], server.rate[False] = Series(), Series()
        try:
            with ExitStack() as holding:
                for (_, count), server in servers.items():
                    if count <= 2:
                        holding.enter_context(held(workers_of(server, count), SHARE))
                held_ones = [key for key in servers if key[1] <= 2]
                interleave(ROUNDS, *(lambda key=key: load(*key) for key in held_ones))  # type: ignore[misc]
                quota = {key: servers[key].rate[False] for key in held_ones}
        except NoQuota as error:
            skipped = str(error)

    figures: dict[str, object] = {
        "method": f"wrk -t1 -c{CONNECTIONS} for each worker, -d{SECONDS}s, {ROUNDS} interleaved rounds",
        "held": skipped or f"each worker to {SHARE:g} of a core",
    }
    targets = []
    for (broker, count), series in cpu.items():
        figures[f"{broker}, {count} workers"] = {
            "cpu_us_per_message": round(series.median, 2),
            "spread": series.spread,
            "per_second": round(rate[broker, count].median),
            **({"per_second_held": round(q.median)} if (q := quota.get((broker, count))) else {}),
        }
        if count > 1:
            against, name = ratio(series, cpu[broker, 1]), f"{broker}: CPU with {count} workers / with one"
            if broker == BARE:
                figures[name] = round(against, 3)
            else:
                targets.append(Target(name, against, BOUND, True))
    for broker in (*urls, BARE) if quota else ():
        carried, name = (
            ratio(quota[broker, 2], quota[broker, 1]),
            f"{broker}: rate of two workers, held / of one",
        )
        if broker == BARE:
            figures[name] = round(carried, 3)
        else:
            targets.append(Target(name, carried, CARRY, False))
    return record("workers", figures, targets, versions("uvicorn", "uvloop", "apsw", "pika", "aiokafka"))


if __name__ == "__main__":
    sys.exit(main())
