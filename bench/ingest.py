"""
What accepting one message costs: CPU time of the gateway per durable 202, against routes that store nothing.

All servers run the whole time, one is loaded at a time, in turns. wrk keeps 64
connections busy with 500-byte JSON bodies; with idempotency keys every request has
another one. CPU time is the server's process tree's, divided by the 202s. What others
are held against is a bare ASGI application that reads the body and answers 202 on the
same uvicorn (bench/baseline.py); beside it stands a FastAPI route that does as much.

Latency is taken at half of the rate that the gateway reached: of the gateway, of the bare
application at the same rate, and of the client library alone (bench/pace.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.pace import p99
from bench.report import Series, Target, interleave, ratio, record, versions
from tests.servers.postgres import free_port
from tests.system.harness import Process, Site, cpu_seconds, http

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = int(os.environ.get("SECONDS_PER_RUN", "5"))
IDLE = 0.1
"""Of a core, that a server may use while nobody asks it anything."""
PACED = int(os.environ.get("PACED_ROUNDS", "3"))
CONNECTIONS = 64
BOUND = 1.0
"""CPU of an accepted durable message, in multiples of the bare no-op's request."""
CLIENT = 1.5
"""How many times the client library's p99 may come on top of the no-op's."""
SCRIPT = Path(__file__).with_name("post.lua")
UVICORN = str(Path(sys.executable).with_name("uvicorn"))


@dataclass
class Server:
    name: str
    process: Process
    url: str
    cpu: dict[bool, Series] = field(default_factory=lambda: {False: Series(), True: Series()})
    rate: dict[bool, Series] = field(default_factory=lambda: {False: Series(), True: Series()})
    p99_ms: dict[bool, Series] = field(default_factory=lambda: {False: Series(), True: Series()})
    half_p99_ms: Series = field(default_factory=Series)
    """At half of the most that some gateway takes."""
    accepted: int = 0
    runs: int = 0

    def load(
        self,
        *,
        keyed: bool,
        seconds: int = SECONDS,
        measured: bool = True,
        lines: int = 1,
        connections: int = CONNECTIONS,
        rate: float | None = None,
    ) -> None:
        """With `lines` above one, requests are batches of so many messages; `rate` is requests a second."""
        self.runs += 1
        before = cpu_seconds(self.process.pid)
        done = subprocess.run(
            [
                "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
                "-s", str(SCRIPT), self.url,
            ],
            env={
                **os.environ,
                "KEYS": "1" if keyed else "0",
                "RUN": f"{self.runs}",
                "LINES": f"{lines}",
                "PAUSE": "0" if rate is None else f"{connections / rate * 1000:.3f}",
            },
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        used = cpu_seconds(self.process.pid) - before
        line = next(part for part in done.stdout.splitlines() if part.startswith("RESULT "))
        result = json.loads(line.removeprefix("RESULT "))
        if result["refused"] or result["broken"]:
            raise SystemExit(f"{self.name} did not take everything: {result}\n{self.process.tail()}")
        messages = result["requests"] * lines
        self.accepted += messages
        if rate is not None:
            self.half_p99_ms.add(result["p99_ms"])
        elif measured:
            self.cpu[keyed].add(used / messages * 1e6)
            self.rate[keyed].add(messages / result["seconds"])
            self.p99_ms[keyed].add(result["p99_ms"])


def warm_up(servers: Iterable[Server]) -> None:
    """A first load, and time for what a server does on the side when it has just started."""
    for server in servers:
        server.load(keyed=False, seconds=2, measured=False)
    for server in servers:
        before = -1.0
        while (now := cpu_seconds(server.process.pid)) > before + IDLE * 0.5:
            before = now
            time.sleep(0.5)


def uvicorn(
    name: str,
    app: str,
    site: Site,
    *,
    queue: str = "bench",
    env: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Server:
    port = free_port()
    process = Process(
        [
            UVICORN, app, "--port", str(port), "--loop", "uvloop", "--http", "httptools",
            "--no-access-log", "--log-level", "warning", "--workers", f"{workers}",
        ],
        env={**site.env, **(env or {})}, cwd=Path(__file__).parent.parent,
        log=site.folder / f"{name.replace(' ', '-')}.log",
    )  # fmt: skip
    site.processes.append(process)
    url = f"http://127.0.0.1:{port}/v1/queues/{queue}/messages"

    def ready() -> bool:
        try:
            return http("POST", url, b"{}", {"Content-Type": "application/json"}).status == 202
        except OSError:
            return False

    process.until(ready, what=f"{name} to answer")
    return Server(name, process, url)


def half_load(ours: Server, noop: Server, alone: Callable[[float], float], rounds: int) -> Target:
    """The p99 at half of what `ours` reached; `alone` tells that of the client library at a rate."""
    rate = ours.rate[False].median / 2
    client = Series()

    def both() -> None:
        for server in (ours, noop):
            server.load(keyed=False, rate=rate)
        client.add(alone(rate))

    noop.half_p99_ms = Series()
    interleave(rounds, both)
    bound = Series([n + CLIENT * c for n, c in zip(noop.half_p99_ms.values, client.values, strict=True)])
    print(
        f"{ours.name} at {rate:.0f}/s: p99 {ours.half_p99_ms.median:.2f} ms; the no-op's"
        f" {noop.half_p99_ms.median:.2f} ms, the client library's {client.median:.2f} ms"
    )
    return Target(
        f"{ours.name}: p99 at half load / (the no-op's + {CLIENT:g} x the client library's)",
        ratio(ours.half_p99_ms, bound),
        1.0,
        at_most=True,
    )


def figures_of(server: Server, *, keyed: bool = False) -> dict[str, object]:
    found: dict[str, object] = {
        "cpu_us_per_message": round(server.cpu[keyed].median, 2),
        "spread": server.cpu[keyed].spread,
        "per_second": round(server.rate[keyed].median),
        "p99_ms": round(server.p99_ms[keyed].median, 2),
    }
    if not keyed and server.half_p99_ms.values:
        found["p99_ms_at_half_load"] = round(server.half_p99_ms.median, 2)
    return found


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), database_url="sqlite:///unused.db", queues="bench")
        try:
            gateway = Server("embedded", site.gateway(), f"{site.url}/v1/queues/bench/messages")
            fastapi = uvicorn("FastAPI route", "bench.baseline:app", site)
            bare = uvicorn("bare ASGI", "bench.baseline:bare", site)
            servers = (gateway, fastapi, bare)
            warm_up(servers)

            def run(keyed: bool) -> None:
                for server in servers:
                    server.load(keyed=keyed)

            interleave(ROUNDS, lambda: run(False), lambda: run(True))
            answer = http("GET", f"{site.url}/v1/queues/bench").json
            waiting = answer["waiting"]
            accepted = gateway.accepted
            lone = f"sqlite:///{Path(folder, 'alone.db')}"
            latency = half_load(gateway, bare, lambda rate: p99(lone, "bench", rate, SECONDS), PACED)
            if waiting < accepted:
                raise SystemExit(f"{accepted} were answered 202 and {waiting} are in the queue")
        finally:
            site.close()

    figures: dict[str, object] = {
        "method": f"wrk -t1 -c{CONNECTIONS} -d{SECONDS}s, 500-byte JSON, {ROUNDS} interleaved rounds",
        "durable_messages": waiting,
    }
    for server in servers:
        for keyed in (False, True):
            label = f"{server.name}, {'with' if keyed else 'without'} idempotency keys"
            figures[label] = figures_of(server, keyed=keyed)
    figures["CPU / FastAPI route"] = round(ratio(gateway.cpu[False], fastapi.cpu[False]), 3)
    against = ratio(gateway.cpu[False], bare.cpu[False])
    targets = [Target("embedded: CPU / bare ASGI no-op", against, BOUND, at_most=True), latency]
    packages = versions("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "apsw")
    return record("ingest", figures, targets, packages)


if __name__ == "__main__":
    sys.exit(main())
