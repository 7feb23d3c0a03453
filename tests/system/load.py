"""A steady load on one or more gateways, with a record of what was answered 202 and when."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import re
import secrets
import threading
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import orjson
import uvloop

from forebay.ledger import Recorder

CONNECTIONS = 200
"""Messages that may wait for their answer at once."""

ANSWER = 15.0
"""Seconds without an answer after which a client hangs up; a gateway promises one long before."""

PATIENCE = 90.0
"""Seconds for which one message is tried."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Load:
    """
    Sends `rate` messages a second from a thread of its own; each until it is accepted, under one key.

    What was not sent in time is made up for only if that was less than `catch_up` seconds ago: after a
    stall the load is as high as before it. A message that one gateway cannot take is taken to the next
    one. With `keys` each client has an ordering key of its own, and so sends the messages of a key one
    after the other.

    With `once` it sends each message once, without an idempotency key, as a client does that knows
    nothing of them: what is not answered 202 is in `refused`.
    """

    def __init__(
        self,
        ports: Sequence[int],
        queue: str,
        record: Path,
        *,
        rate: float,
        keys: bool = False,
        catch_up: float = 0.05,
        once: bool = False,
        api_key: str = "",
        connections: int = CONNECTIONS,
    ) -> None:
        self.rate = rate
        self._clients = connections
        self._api_key = api_key
        self._once = once
        self._catch_up = catch_up
        self.others: list[tuple[float, int]] = []
        """Answers that were not 202: when, by the monotonic clock, and the status; 0 where none came."""
        self.durabilities: Counter[str] = Counter()
        """What the 202s promised."""
        self._keys = keys
        self.ids: list[str] = []
        """Of what was accepted, in this order."""
        self.retries = 0
        self.slowest = 0.0
        """Seconds that the slowest answer took, whatever it was."""
        self.refused: list[str] = []
        """What was answered that is neither 202 nor 503, and messages that were given up."""
        self._ports = ports
        self._queue = queue
        self._recorder = Recorder(record)
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count()
        self._due = 0.0
        self._at = array("d")
        """When each 202 came, by the monotonic clock."""
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    @property
    def accepted(self) -> int:
        return len(self.ids)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send nothing new, and return when everything that was sent is accepted."""
        self._stopping = True
        self._thread.join(PATIENCE + 30)
        assert not self._thread.is_alive(), "a message found no end"
        self._recorder.close()
        self.check()

    def check(self) -> None:
        """Fail if something happened that no fault excuses."""
        if self._failure is not None:
            raise self._failure
        assert not self.refused, f"{len(self.refused)} requests went wrong; the first: {self.refused[0]}"

    def longest_gap(self, since: float, until: float) -> float:
        """The longest time without a 202 between two moments of the monotonic clock, in seconds."""
        first, last = bisect_left(self._at, since), bisect_left(self._at, until)
        moments = [since, *self._at[first:last], until]
        return max(b - a for a, b in itertools.pairwise(moments))

    # ---- the thread

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._send_all())
        except BaseException as error:  # told to whoever asks next
            self._failure = error

    async def _send_all(self) -> None:
        self._due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        key = f"client-{number}" if self._keys else None
        connections = [_Connection(port, self._queue, key, self._api_key) for port in self._ports]
        try:
            while await self._turn():
                await self._send(connections, number)
        finally:
            for connection in connections:
                connection.close()

    async def _turn(self) -> bool:
        """Wait for the moment to send the next message; False if there is none."""
        now = time.monotonic()
        self._due = max(self._due + 1 / self.rate, now - self._catch_up)
        await asyncio.sleep(self._due - now)
        return not self._stopping

    async def _send(self, connections: Sequence[_Connection], home: int) -> None:
        """At the gateway that is this client's first; at the others while that one cannot."""
        number = next(self._numbers)
        body = orjson.dumps({"number": number, "text": f"{self._prefix} {number} " * 12})
        key = b"" if self._once else b"Idempotency-Key: %s/%d\r\n" % (self._prefix.encode(), number)
        give_up = time.monotonic() + PATIENCE
        for turn in itertools.count(home):
            began = time.monotonic()
            try:
                async with asyncio.timeout(ANSWER):
                    status, answer = await connections[turn % len(connections)].post(key, body)
                self.slowest = max(self.slowest, time.monotonic() - began)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                connections[turn % len(connections)].close()
                if isinstance(error, TimeoutError):
                    self.slowest = max(self.slowest, ANSWER)
                status, answer = 0, repr(error).encode()
            if status == 202:
                self._at.append(time.monotonic())
                promised = orjson.loads(answer)
                id = promised["id"]
                self.durabilities[promised["durability"]] += 1
                self._recorder.add(id, hashlib.sha256(body).hexdigest(), self._queue)
                self.ids.append(id)
                return
            if self._once or status not in (0, 503) or time.monotonic() > give_up:
                self.refused.append(f"{status} {answer[:300].decode(errors='replace')}")
                return
            self.retries += 1
            self.others.append((time.monotonic(), status))
            await asyncio.sleep(random.uniform(0.1, 0.4))


class _Connection:
    """Keep-alive HTTP to one gateway, no more than this load needs."""

    def __init__(self, port: int, queue: str, key: str | None, api_key: str = "") -> None:
        self._port = port
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        ordering = "" if key is None else f"Forebay-Ordering-Key: {key}\r\n"
        self._head = (
            f"POST /v1/queues/{queue}/messages HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"{authorization}{ordering}Content-Type: application/json\r\n"
        ).encode()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, key: bytes, body: bytes) -> tuple[int, bytes]:
        """
        Send one message; `key` is a whole header line, or nothing.

        Raises:
            OSError, asyncio.IncompleteReadError: there was no answer.
        """
        if self._reader is not None and self._reader.at_eof():
            self.close()  # the server ended it while it was idle
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(b"%s%sContent-Length: %d\r\n\r\n%s" % (self._head, key, len(body), body))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        assert length is not None, head
        answer = await self._reader.readexactly(int(length[1]))
        if b"\r\nconnection: close" in head.lower():
            self.close()
        return int(head[9:12]), answer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None
