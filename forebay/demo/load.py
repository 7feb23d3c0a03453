"""
Orders at a constant rate over HTTP, each timed from the moment when it was due.

The rate does not yield to a slow server (open loop): a request that had to wait for its turn has waited
for the server, and its latency says so (Tene, "How NOT to Measure Latency": coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import resource
import secrets
import ssl
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from forebay.demo.connection import TIMED_OUT, Connection, Pool
from forebay.ledger import Recorder

TIMEOUT = 30.0
"""Seconds after which a sender gives up."""


def order(number: int, prefix: str) -> bytes:
    """The body of one order."""
    return orjson.dumps(
        {
            "id": f"{prefix}-{number}",
            "customer": f"customer {number % 997}",
            "total": f"{number % 400 + 5}.{number % 100:02d}",
        }
    )


@dataclass(slots=True)
class Outcomes:
    """What became of each request that has ended, side by side in arrays."""

    due: array[float] = field(default_factory=lambda: array("d"))
    """Seconds after the start when it was to be sent."""
    took: array[float] = field(default_factory=lambda: array("d"))
    """Seconds from then until its end."""
    status: array[int] = field(default_factory=lambda: array("H"))

    def __len__(self) -> int:
        return len(self.status)

    def add(self, due: float, took: float, status: int) -> None:
        self.due.append(due)
        self.took.append(took)
        self.status.append(status)

    def write(self, path: Path) -> None:
        with path.open("w") as file:
            for due, took, status in zip(self.due, self.took, self.status, strict=True):
                file.write(f"{due:.4f} {took:.6f} {status}\n")

    @classmethod
    def read(cls, path: Path) -> Outcomes:
        outcomes = cls()
        with path.open() as file:
            for line in file:
                due, took, status = line.split()
                outcomes.add(float(due), float(took), int(status))
        return outcomes


@dataclass(frozen=True, slots=True)
class Tick:
    """How a load stands; the latencies are those of the requests that ended well since the tick before."""

    at: float
    """Seconds since the start."""
    sent: int
    accepted: int
    failed: int
    oldest: float
    """How long the oldest request without an answer has been waiting, in seconds."""
    p50: float | None
    p99: float | None


def quantile(values: list[float], q: float) -> float | None:
    """The smallest value that at least the share `q` of them does not exceed; None if there are none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


class Load:
    """
    Sends `rate` orders a second to `url` for `seconds`, then waits for what is open.

    Nothing is sent again, and nobody waits for anybody: as many connections are opened as there are
    requests without an answer. With a `record`, what is answered 202 is written there for `forebay verify`.
    """

    def __init__(
        self,
        url: str,
        *,
        rate: float,
        seconds: float,
        timeout: float = TIMEOUT,
        record: tuple[str, Recorder] | None = None,
        api_key: str | None = None,
    ) -> None:
        self.outcomes = Outcomes()
        self.sent = self.accepted = self.failed = 0
        self._rate, self._total, self._timeout = rate, round(rate * seconds), timeout
        self._record = record
        self._prefix = secrets.token_hex(4)
        self._stopping = self._all_sent = False
        self._all_ended = asyncio.Event()
        self._unrecorded: OSError | None = None
        self._began = 0.0
        self._open: dict[int, tuple[float, Connection]] = {}
        self._ticked = 0
        parts = urlsplit(url)
        self._pool = Pool(
            parts.hostname or "127.0.0.1",
            parts.port or (443 if parts.scheme == "https" else 80),
            ssl.create_default_context() if parts.scheme == "https" else None,
        )
        login = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n{login}"
            "Content-Type: application/json\r\n"
        )

    def stop(self) -> None:
        """Send nothing new; what is open still gets its time."""
        self._stopping = True

    async def run(
        self, tell: Callable[[Tick], None] | None = None, *, every: float = 0.25, at: float | None = None
    ) -> Outcomes:
        """
        Send all, and return when everything has an end. `tell` hears how it goes.

        The first is due `at` that moment of the monotonic clock; None: now.

        Raises:
            OSError: the record could not be written; nothing was sent from then on.
        """
        many_files()
        self._began = time.monotonic() if at is None else at
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._watch(tell, every))
            await self._send_all()
            self._all_sent = True
            if self._open:
                await self._all_ended.wait()
            watch.cancel()
        if tell is not None:
            tell(self.tick())
        self._pool.close()
        await asyncio.sleep(0)  # in which the connections close
        if self._unrecorded is not None:
            raise self._unrecorded
        return self.outcomes

    def tick(self) -> Tick:
        now = time.monotonic() - self._began
        new = range(self._ticked, len(self.outcomes))
        self._ticked = len(self.outcomes)
        took = [self.outcomes.took[i] for i in new if 200 <= self.outcomes.status[i] < 300]
        oldest = now - next(iter(self._open.values()))[0] if self._open else 0.0
        return Tick(
            now,
            self.sent,
            self.accepted,
            self.failed,
            max(oldest, 0.0),
            quantile(took, 0.5),
            quantile(took, 0.99),
        )

    async def _send_all(self) -> None:
        for number in range(self._total):
            due = number / self._rate
            late = time.monotonic() - self._began - due
            if late < 0:
                await asyncio.sleep(-late)
            elif number % 50 == 0:
                await asyncio.sleep(0)  # behind: let answers in all the same
            if self._stopping:
                return
            self._send(number, due)

    def _send(self, number: int, due: float) -> None:
        body = order(number, self._prefix)
        head = f"{self._head}Idempotency-Key: {self._prefix}-{number}\r\nContent-Length: {len(body)}\r\n\r\n"

        def ended(status: int, answer: bytes) -> None:
            self._open.pop(number, None)
            self._end(due, status, answer, body)
            if self._all_sent and not self._open:
                self._all_ended.set()

        self.sent += 1
        connection = self._pool.get()
        self._open[number] = (due, connection)
        connection.send(head.encode() + body, ended)

    def _end(self, due: float, status: int, answer: bytes, body: bytes) -> None:
        self.outcomes.add(due, time.monotonic() - self._began - due, status)
        if not 200 <= status < 300:
            self.failed += 1
            return
        self.accepted += 1
        if self._record is not None and status == 202:
            queue, recorder = self._record
            try:
                recorder.add(orjson.loads(answer)["id"], hashlib.sha256(body).hexdigest(), queue)
            except OSError as error:
                # Nobody above us could be told: this is called by the connection.
                self._unrecorded = error
                self.stop()

    async def _watch(self, tell: Callable[[Tick], None] | None, every: float) -> None:
        """Ends what has waited too long, and tells how it stands."""
        next_tick = every
        while True:
            await asyncio.sleep(0.05)
            now = time.monotonic() - self._began
            # In the order in which they were due, so the first that is in time ends the search.
            late = []
            for due, connection in self._open.values():
                if now - due < self._timeout:
                    break
                late.append(connection)
            for connection in late:
                connection.give_up(TIMED_OUT)
            if tell is not None and now >= next_tick:
                next_tick = now + every
                tell(self.tick())


def many_files() -> None:
    """Allow this process as many sockets as the system lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems refuse a limit without end.
        for limit in (hard, 10_240):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                return
