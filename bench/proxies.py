"""
What a reverse proxy costs under 2,000 keep-alive connections: memory, and CPU time per request.

nginx and Apache httpd (event, prefork) with the configurations of deploy/, in front of the same
backend, which is another nginx that answers 202 to everything. All 2,000 clients have a connection and
send in turns, RATE requests a second together; each round measures one proxy after the other.
Memory is the sum of the proportional set sizes of all processes, when every connection has been used.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import uvloop

from bench.report import Series, Target, interleave, record, versions
from tests.servers.apache import Apache, in_front_of
from tests.servers.nginx import Nginx

CONNECTIONS = 2_000
RATE = 1_000.0
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SECONDS = float(os.environ.get("SECONDS_PER_RUN", "10"))
TOGETHER = 50
"""Clients that connect at once: prefork has to start a process for each."""

REQUEST = (
    b"POST /v1/queues/bench/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 500\r\n\r\n" + b"x" * 500
)
BACKEND = "server { include site/listen.conf; keepalive_requests 1000000; location / { return 202 '{}'; } }\n"


class Server(Protocol):
    @property
    def pid(self) -> int: ...
    @property
    def port(self) -> int: ...


class Client:
    """One connection; made anew when the proxy ends it, which is counted."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._turn = asyncio.Lock()
        self.ended = 0

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self) -> None:
        async with self._turn:
            try:
                head = await self._head()
            except (OSError, RuntimeError, asyncio.IncompleteReadError):
                self.ended += 1
                await self.connect()
                head = await self._head()
            assert head.startswith(b"HTTP/1.1 202 "), head
            await self._reader.readexactly(2)

    async def _head(self) -> bytes:
        self._writer.write(REQUEST)
        return await self._reader.readuntil(b"\r\n\r\n")

    def close(self) -> None:
        self._writer.close()


def pss_mib(pid: int) -> float:
    """Of a process and its children: shared pages are counted once among those who share them."""
    total = 0
    for process in [pid, *children(pid)]:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def httpd(backend: int, mpm: Literal["event", "prefork"]) -> Apache:
    apache = in_front_of([backend], mpm)
    with (apache.folder / "site/log.conf").open("a") as more:
        # Prefork takes a minute to start 2,000 processes; the first connections must still be there then.
        more.write("KeepAliveTimeout 600\n")
    return apache


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_seconds(pid: int) -> float:
    """
    Of a process and its children, while none of them ends.

    By the scheduler's count in nanoseconds: in clock ticks, one of 2,000 processes that has answered five
    requests has used none.
    """
    tasks = (task for process in [pid, *children(pid)] for task in Path(f"/proc/{process}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Variant:
    def __init__(self, name: str, start: Callable[[], AbstractContextManager[Server]]) -> None:
        self.name = name
        self._start = start
        self.idle, self.full, self.cpu = Series(), Series(), Series()
        self.rate, self.processes, self.ended = Series(), Series(), Series()

    def measure(self) -> None:
        with self._start() as server:
            uvloop.run(self._load(server))
        print(f"  {self.name}: {self.full.values[-1]:.1f} MiB, {self.cpu.values[-1]:.0f} µs", file=sys.stderr)

    async def _load(self, server: Server) -> None:
        self.idle.add(pss_mib(server.pid))
        clients = [Client(server.port) for _ in range(CONNECTIONS)]
        for at in range(0, CONNECTIONS, TOGETHER):
            new = clients[at : at + TOGETHER]
            await asyncio.gather(*(client.connect() for client in new))
            await asyncio.gather(*(client.ask() for client in new))
        self.full.add(await asyncio.to_thread(pss_mib, server.pid))
        self.processes.add(1 + len(children(server.pid)))

        before, began, asked = cpu_seconds(server.pid), time.monotonic(), 0
        work: set[asyncio.Task[None]] = set()
        while time.monotonic() - began < SECONDS:
            await asyncio.sleep(max(0.0, began + asked / RATE - time.monotonic()))
            if len(work) >= CONNECTIONS // 2:
                await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(clients[asked % CONNECTIONS].ask())
            work.add(task)
            task.add_done_callback(work.discard)
            asked += 1
        await asyncio.gather(*work)
        self.cpu.add((cpu_seconds(server.pid) - before) / asked * 1e6)
        self.rate.add(asked / (time.monotonic() - began))
        self.ended.add(sum(client.ended for client in clients))
        for client in clients:
            client.close()


def main() -> int:
    files = max(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4 * CONNECTIONS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with Nginx([1], files={"servers/gateways.conf": BACKEND}) as backend:
        variants = [
            Variant("nginx", lambda: Nginx([backend.port])),
            Variant("httpd event", partial(httpd, backend.port, "event")),
            Variant("httpd prefork", partial(httpd, backend.port, "prefork")),
        ]
        interleave(ROUNDS, *(variant.measure for variant in variants))
    figures: dict[str, Any] = {"connections": CONNECTIONS, "requests per second": RATE, "rounds": ROUNDS}
    for variant in variants:
        figures[variant.name] = {
            "MiB without connections": round(variant.idle.median, 1),
            "MiB": round(variant.full.median, 1),
            "MiB spread": variant.full.spread,
            "KiB per connection": round((variant.full.median - variant.idle.median) * 1024 / CONNECTIONS, 1),
            "processes": variant.processes.median,
            "connections that it ended": variant.ended.spread,
            "µs CPU per request": round(variant.cpu.median, 1),
            "µs spread": variant.cpu.spread,
            "requests per second": round(variant.rate.median, 1),
        }
    nginx, event, prefork = variants
    targets = [
        Target("memory of nginx / of httpd event", nginx.full.median / event.full.median, 1.0, at_most=True),
        Target(
            "memory of nginx / of httpd prefork", nginx.full.median / prefork.full.median, 0.1, at_most=True
        ),
        Target("CPU of nginx / of httpd event", nginx.cpu.median / event.cpu.median, 1.0, at_most=True),
    ]
    return record("proxies", figures, targets, versions("uvloop"))


if __name__ == "__main__":
    sys.exit(main())
