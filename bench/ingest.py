"""
What accepting one message costs: CPU time of the gateway per durable 202, against routes that store nothing.

All servers run the whole time, one is loaded at a time, in turns. wrk keeps 64
connections busy with 500-byte JSON bodies; with idempotency keys every request has
another one. CPU time is the server's process tree's, divided by the 202s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import Series, Target, interleave, ratio, record, versions
from tests.servers.postgres import free_port
from tests.system.harness import Process, Site, cpu_seconds, http

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = int(os.environ.get("SECONDS_PER_RUN", "5"))
CONNECTIONS = 64
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
    ) -> None:
        """With `lines` above one, requests are batches of so many messages."""
        self.runs += 1
        before = cpu_seconds(self.process.pid)
        done = subprocess.run(
            [
                "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s",
                "-s", str(SCRIPT), self.url,
            ],
            env={**os.environ, "KEYS": "1" if keyed else "0", "RUN": f"{self.runs}", "LINES": f"{lines}"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        used = cpu_seconds(self.process.pid) - before
        line = next(part for part in done.stdout.splitlines() if part.startswith("RESULT "))
        result = json.loads(line.removeprefix("RESULT "))
        if result["refused"] or result["broken"]:
            raise SystemExit(f"{self.name} did not take everything: {result}\n{self.process.tail()}")
        messages = result["requests"] * lines
        self.accepted += messages
        if measured:
            self.cpu[keyed].add(used / messages * 1e6)
            self.rate[keyed].add(messages / result["seconds"])
            self.p99_ms[keyed].add(result["p99_ms"])


def uvicorn(
    name: str, app: str, site: Site, *, queue: str = "bench", env: Mapping[str, str] | None = None
) -> Server:
    port = free_port()
    process = Process(
        [
            UVICORN, app, "--port", str(port), "--loop", "uvloop", "--http", "httptools",
            "--no-access-log", "--log-level", "warning",
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


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), database_url="sqlite:///unused.db", queues="bench")
        try:
            gateway = Server("forebay gateway", site.gateway(), f"{site.url}/v1/queues/bench/messages")
            fastapi = uvicorn("FastAPI route", "bench.baseline:app", site)
            bare = uvicorn("bare ASGI", "bench.baseline:bare", site)
            servers = (gateway, fastapi, bare)
            for server in servers:
                server.load(keyed=False, seconds=2, measured=False)

            def run(keyed: bool) -> None:
                for server in servers:
                    server.load(keyed=keyed)

            interleave(ROUNDS, lambda: run(False), lambda: run(True))
            answer = http("GET", f"{site.url}/v1/queues/bench").json
            waiting = answer["waiting"]
            if waiting < gateway.accepted:
                raise SystemExit(f"{gateway.accepted} were answered 202 and {waiting} are in the queue")
        finally:
            site.close()

    figures: dict[str, object] = {
        "method": f"wrk -t1 -c{CONNECTIONS} -d{SECONDS}s, 500-byte JSON, {ROUNDS} interleaved rounds",
        "durable_messages": waiting,
    }
    for server in servers:
        for keyed in (False, True):
            label = f"{server.name}, {'with' if keyed else 'without'} idempotency keys"
            figures[label] = {
                "cpu_us_per_message": round(server.cpu[keyed].median, 2),
                "spread": server.cpu[keyed].spread,
                "per_second": round(server.rate[keyed].median),
                "p99_ms": round(server.p99_ms[keyed].median, 2),
            }
    targets = [
        Target("CPU / FastAPI route, without keys", ratio(gateway.cpu[False], fastapi.cpu[False]), 1.3, True),
        Target("CPU / FastAPI route, with keys", ratio(gateway.cpu[True], fastapi.cpu[True]), 1.3, True),
    ]
    packages = versions("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "apsw")
    return record("ingest", figures, targets, packages)


if __name__ == "__main__":
    sys.exit(main())
