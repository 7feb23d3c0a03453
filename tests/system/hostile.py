"""
Sends what nobody should send, with good requests in between, and judges the answers.

Whole requests that stand before a broken one may be answered 202. All else must be a 4xx problem
document or the end of the connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import uvloop

from tests.system.harness import Site
from tests.system.hostile_cases import GOOD, Case, cases

SENTINEL = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

AT_ONCE = 40
"""Connections with a broken request on them."""

ANSWER = 30.0
"""Seconds after which a connection without answer or end counts as hung. The longest wait of ours is 10."""


@dataclass
class Outcome:
    """What became of all cases."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """ "kind: status", or "kind: closed" """
    accepted: int = 0
    """202s: of the good ones in between, and of whole requests before a broken one."""
    controls: int = 0
    wrong: list[str] = field(default_factory=list)


class Attack:
    """Sends cases and, all the while, good requests that must be answered 202."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.outcome = Outcome()
        self._over = True

    def run(self, cases: Iterator[Case]) -> Outcome:
        """In this thread, until all cases are through; once more adds to the same outcome."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self.run_here(cases))
        return self.outcome

    async def run_here(self, cases: Iterator[Case]) -> None:
        self._over = False
        async with asyncio.TaskGroup() as group:
            control = group.create_task(self._controls())
            async with asyncio.TaskGroup() as senders:
                for _ in range(AT_ONCE):
                    senders.create_task(self._sender(cases))
            self._over = True
            await control

    async def _sender(self, cases: Iterator[Case]) -> None:
        for case in cases:
            self.outcome.sent += 1
            try:
                async with asyncio.timeout(ANSWER):
                    received = await self._send(case)
            except TimeoutError:
                self._wrong(case, "neither an answer nor the end of the connection")
                continue
            self._judge(case, received)

    async def _send(self, case: Case) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        try:
            try:
                for piece in case.pieces:
                    writer.write(piece)
                    await writer.drain()
                    # Each piece is to be a read of its own over there, at least mostly.
                    await asyncio.sleep(case.pause)
                    if reader.at_eof():
                        break
                if case.end == "sentinel":
                    writer.write(SENTINEL)
                elif case.end == "hang up":
                    writer.write_eof()
            except OSError:
                pass  # it was closed before all was sent
            return await _everything(reader)
        finally:
            writer.close()

    async def _controls(self) -> None:
        while not self._over:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                for _ in range(20):
                    writer.write(GOOD)
                    async with asyncio.timeout(ANSWER):
                        answer = await reader.readuntil(b"}")
                    self.outcome.controls += 1
                    if answer.startswith(b"HTTP/1.1 202 "):
                        self.outcome.accepted += 1
                    else:
                        self.outcome.wrong.append(f"a good request: {answer[:300]!r}")
                        return
                    await asyncio.sleep(0.02)
            except (OSError, EOFError, TimeoutError) as error:
                self.outcome.wrong.append(f"a good request: {error!r}")
                return
            finally:
                writer.close()

    def _judge(self, case: Case, received: bytes) -> None:
        found: list[str] = []
        rest = received
        try:
            while rest:
                status, body, rest = _parse(rest)
                found.append(str(status))
                if status == 202 and len(found) <= case.good:
                    self.outcome.accepted += 1
                elif status == 200 and not rest and case.end == "sentinel" and body == b'{"status":"ok"}':
                    found.pop()  # the sentinel's
                elif not 400 <= status < 500:
                    self._wrong(case, f"answered {status}: {body[:200]!r}")
                elif orjson.loads(body)["status"] != status:
                    self._wrong(case, f"answered {status} with {body[:200]!r}")
        except (ValueError, KeyError, IndexError):
            self._wrong(case, f"answered what is no HTTP: {received[:300]!r}")
        if len(found) > case.good + 1:
            self._wrong(case, f"answered {len(found)} times: {received[:600]!r}")
        self.outcome.statuses[f"{case.kind}: {' '.join(found[case.good :]) or 'closed'}"] += 1

    def _wrong(self, case: Case, what: str) -> None:
        sent = b"".join(case.pieces)
        self.outcome.wrong.append(f"{case.kind}: {what}; sent {len(sent)} bytes: {sent[:300]!r}")


async def _everything(reader: asyncio.StreamReader) -> bytes:
    received = b""
    try:
        while piece := await reader.read(65536):
            received += piece
    except OSError:
        pass  # reset: what came before it counts
    return received


def _parse(data: bytes) -> tuple[int, bytes, bytes]:
    top, separator, rest = data.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    version, status, _ = lines[0].split(" ", 2)
    if not separator or version != "HTTP/1.1":
        raise ValueError
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    if not 200 <= int(status) < 300 and not fields["content-type"].startswith("application/problem+json"):
        raise ValueError
    length = int(fields["content-length"])
    if len(rest) < length:
        raise ValueError
    return int(status), rest[:length], rest[length:]


def attack_a_server_that_accepts_everything(*, count: int, seed: int) -> Outcome:
    """What the judge says of a server that takes whatever comes."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(2**16)
        writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    async def run() -> Outcome:
        async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
            attack = Attack(server.sockets[0].getsockname()[1])
            await attack.run_here(cases(count, seed, slow_ones=0))
            return attack.outcome

    return asyncio.run(run())


# ---- a whole run

FLAT = 24 * 2**20
"""
Bytes by which the gateway's memory may grow over a run, however long, after its first tenth.

What is in work at once differs from moment to moment by a few bodies of the largest size.
"""


@dataclass
class Result:
    outcome: Outcome
    grown: int
    """Bytes by which the gateway's memory grew, after the first tenth."""
    stored: int


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")


def run(site: Site, *, count: int, seed: int, slow_ones: int) -> Result:
    """
    `count` broken requests at a gateway of its own, and what became of it.

    Memory is compared with that after the first tenth, when everything has been used once.
    """
    site.queues = "orders"
    gateway = site.gateway()
    attack = Attack(site.port)
    attack.run(cases(count // 10, seed, slow_ones=0))
    before = resident(gateway.pid)
    outcome = attack.run(cases(count - count // 10, seed + 1, slow_ones=slow_ones))
    grown = resident(gateway.pid) - before
    stored: int = site.queue("orders")["waiting"]
    assert gateway.stop() == 0
    return Result(outcome, grown, stored)
