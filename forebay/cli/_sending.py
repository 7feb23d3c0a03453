"""The engine of `forebay send --ndjson`: many lines, many connections, one account of what became of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from forebay.cli._feed import Feed, Line
from forebay.client import Accepted, Client, ClientError, GaveUp, QueueUnknown, Unauthorized
from forebay.ledger import Recorder

_KEPT_FAILURES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What all messages of one run have in common."""

    queue: str
    content_type: str
    ordering_key: str | None = None
    delay: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """What became of the lines so far."""

    accepted: int = 0
    duplicates: int = 0
    """Of the accepted: the gateway remembered them from an earlier try or run."""
    durability: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Line number and reason of the first that were refused for themselves."""
    stopped_by: ClientError | None = None
    """What made going on pointless: the gateway is away, or refuses every message of this queue alike."""
    interrupted: bool = False
    open: set[int] = field(default_factory=set)
    """Lines in flight."""
    first_failed: int | None = None
    last_taken: int = 0

    @property
    def go_on_at(self) -> int:
        """The line from which sending on leaves nothing out."""
        pending = [*self.open, self.last_taken + 1]
        if self.first_failed is not None:
            pending.append(self.first_failed)
        return min(pending)


class Pace:
    """Spreads starts evenly: at most `rate` per second, catching up on at most 50 ms."""

    def __init__(self, rate: float | None) -> None:
        self._step = 1 / rate if rate else 0.0
        self._slot = 0.0

    async def wait(self) -> None:
        if not self._step:
            return
        now = asyncio.get_running_loop().time()
        self._slot = max(self._slot + self._step, now - 0.05)
        if self._slot > now:
            await asyncio.sleep(self._slot - now)


class Sender:
    """
    Sends every line of a feed as one message, over `concurrency` connections.

    The line with number n goes out under the idempotency key "<prefix>/n": sending the
    same file again with the same prefix, in whole or in part, has the same effect.
    """

    def __init__(
        self,
        client: Client,
        feed: Feed,
        envelope: Envelope,
        *,
        prefix: str,
        concurrency: int,
        rate: float | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._client = client
        self._feed = feed
        self._envelope = envelope
        self._prefix = prefix
        self._concurrency = concurrency
        self._pace = Pace(rate)
        self._recorder = recorder
        self.tally = Tally()

    async def run(self) -> None:
        """
        Until the feed ends, `stop` is called, or going on is pointless; then finish what is in flight.

        Raises:
            OSError: the feed cannot be read, or the record not be written.
        """
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._concurrency):
                    workers.create_task(self._work())
        except ExceptionGroup as group:
            # They all fail for the same reason; once is enough.
            raise group.exceptions[0] from group

    def stop(self) -> None:
        """Take no more lines."""
        self.tally.interrupted = True
        self._feed.stop()

    async def _work(self) -> None:
        tally = self.tally
        while (line := await self._feed.next()) is not None:
            tally.last_taken = line.number
            tally.open.add(line.number)
            await self._pace.wait()
            try:
                accepted = await self._send(line)
            except ClientError as error:
                self._failed(line, error)
            else:
                if self._recorder is not None:
                    self._recorder.add(accepted.id, hashlib.sha256(line.body).hexdigest(), accepted.queue)
                tally.accepted += 1
                tally.duplicates += accepted.duplicate
                tally.durability[accepted.durability] += 1
            tally.open.discard(line.number)

    async def _send(self, line: Line) -> Accepted:
        to = self._envelope
        return await self._client.send(
            to.queue,
            line.body,
            content_type=to.content_type,
            idempotency_key=f"{self._prefix}/{line.number}",
            ordering_key=to.ordering_key,
            delay=to.delay,
            headers=to.headers,
        )

    def _failed(self, line: Line, error: ClientError) -> None:
        tally = self.tally
        tally.failed += 1
        tally.first_failed = min(line.number, tally.first_failed or line.number)
        if isinstance(error, GaveUp | Unauthorized | QueueUnknown):
            tally.stopped_by = tally.stopped_by or error
            self._feed.stop()
        elif len(tally.failures) < _KEPT_FAILURES:
            tally.failures.append((line.number, str(error)))
