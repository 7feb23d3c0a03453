"""
Clients that send one byte a second, a program of its own: `python -m tests.system.slow_clients PORT COUNT`.

A quarter of them never finish their headers, a quarter never a body of a known length, a quarter never
one in chunks, a quarter never a batch. Who is answered or closed comes back at once. Says "all there"
when all are connected; at the end of standard input it prints what happened, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import uvloop

HEAD = b"POST /v1/queues/orders/messages HTTP/1.1\r\nHost: x\r\n"
BEGINNINGS = (
    HEAD + b"X-Slow: ",
    HEAD + b"Content-Length: 800000\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nc3500\r\n",
    HEAD.replace(b"messages", b"batch")
    + b"Content-Type: application/x-ndjson\r\nContent-Length: 800000\r\n\r\n1\n2\n",
)


class _Slow(asyncio.Protocol):
    def __init__(self, number: int, crowd: _Crowd) -> None:
        self._number = number
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._crowd.open.add(self)
        self._transport.write(BEGINNINGS[self._number % len(BEGINNINGS)])

    def send(self) -> None:
        assert self._transport is not None
        self._transport.write(b"x")

    def data_received(self, data: bytes) -> None:
        self._answer += data[:200]
        if b"\r\n\r\n" in self._answer:
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.open.discard(self)
        self._crowd.ends[self._answer[9:12].decode() or "closed"] += 1
        self._crowd.connect(self._number)


class _Crowd:
    def __init__(self, port: int) -> None:
        self.open: set[_Slow] = set()
        self.ends: Counter[str] = Counter()
        self.most = 0
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self, number: int) -> None:
        task = self._loop.create_task(self._connect(number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, number: int) -> None:
        try:
            await self._loop.create_connection(lambda: _Slow(number, self), "127.0.0.1", self._port)
        except OSError:
            self.ends["refused"] += 1
            self._loop.call_later(1.0, self.connect, number)

    async def run(self, count: int, end: threading.Event) -> None:
        for number in range(count):
            await self._connect(number)
        print("all there", flush=True)
        while not end.is_set():
            self.most = max(self.most, len(self.open))
            slices = [list(self.open)[n::20] for n in range(20)]
            for part in slices:  # spread over the second
                for client in part:
                    if client in self.open:
                        client.send()
                await asyncio.sleep(1 / len(slices))
        print(json.dumps({"most_at_once": self.most, "ends": dict(self.ends)}), flush=True)
        os._exit(0)  # each of them would be closed in good order


class SlowClients:
    """The program, running; leaving the context ends it, and `report` is what it said."""

    def __init__(self, port: int, count: int) -> None:
        self.report: dict[str, Any] = {}
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.system.slow_clients", str(port), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )

    def __enter__(self) -> SlowClients:
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        assert line == b"all there\n", line
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        out, _ = self._program.communicate(timeout=30)
        if kind is None:
            self.report = json.loads(out)


async def _main(port: int, count: int) -> None:
    end = threading.Event()

    def wait() -> None:
        sys.stdin.buffer.read()
        end.set()

    threading.Thread(target=wait, daemon=True).start()
    await _Crowd(port).run(count, end)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(int(sys.argv[1]), int(sys.argv[2])))
