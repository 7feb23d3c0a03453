"""What becomes of one batch: written, decided, and what must not be written kept away from the sink."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter

import structlog

from consumers.line import Line
from consumers.waves import Waves
from forebay.brokers.api import DeadLetter, Delivery, Release, Settlement
from forebay.errors import SinkMisconfigured, SinkUnavailable

log = structlog.get_logger()

_accepted_at = attrgetter("message.accepted_at")


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True, kw_only=True)
class Decided:
    settlements: list[Settlement]
    duplicates: int = 0


class Busy:
    """Which steps are under way, and since when."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    @contextmanager
    def doing(self, step: str) -> Iterator[None]:
        self._since[step] = self._clock()
        try:
            yield
        finally:
            self._since.pop(step, None)

    def longest(self) -> float:
        """Seconds that the slowest of them has taken so far; 0.0 with none."""
        return max((self._clock() - since for since in self._since.values()), default=0.0)

    @property
    def steps(self) -> list[str]:
        return [*self._since]

    def clear(self) -> None:
        self._since.clear()


class Writer:
    """
    Has the sink write batches of one worker, one at a time, and decides what becomes of each delivery.

    What has expired is not shown to the sink; what may have killed a consumer before is shown to it
    with nothing else in this process.
    """

    def __init__(
        self,
        line: Line,
        busy: Busy,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._line = line
        self._busy = busy
        self._slot = line.quarantine.slot()
        self._clock = clock
        self._now = now
        self._log = log.bind(queue=line.queue)

    def may_write(self, ticket: int) -> bool:
        """Whether what was received under this ticket of the breaker may still be written."""
        return self._line.breaker.holds(ticket) and self._line.flow.writes()

    async def write(self, deliveries: list[Delivery], ticket: int) -> Decided:
        """Settlements for all of them, in any order. The breaker hears how it went."""
        decided = Decided(settlements=self._line.processor.expired(deliveries, self._now()))
        live = _without(deliveries, decided.settlements)
        beyond, suspects = self._line.quarantine.divide(live)
        if beyond:
            async with self._line.quarantine.beside_others():
                await self._call(beyond, ticket, decided, alone=False)
        for delivery in suspects:
            await self._write_suspect(delivery, ticket, decided)
        return decided

    async def write_in_order(self, live: Sequence[Delivery], ticket: int, stop: asyncio.Event) -> Decided:
        """As `write`, in waves: no message is written while one before it of its key could still fail."""
        waves = Waves(live)
        outcome = Decided(settlements=[])
        while wave := waves.next():
            one = await self.write(wave, ticket)
            waves.decided(one.settlements)
            outcome.settlements += one.settlements
            outcome.duplicates += one.duplicates
            away = all(isinstance(s, Release) for s in one.settlements)
            if away or stop.is_set() or not self.may_write(ticket):
                break
        outcome.settlements += waves.rest()
        return outcome

    async def _write_suspect(self, delivery: Delivery, ticket: int, decided: Decided) -> None:
        failure = self._line.quarantine.failure(delivery, self._line.processor.destination)
        if failure is not None and self._line.processor.gives_up:
            decided.settlements.append(DeadLetter(delivery, failure, history=delivery.history))
            self._line.quarantine.survived(delivery)
            return
        async with self._line.quarantine.alone():
            if not self.may_write(ticket):
                decided.settlements.append(Release(delivery))
                return
            await self._call([delivery], ticket, decided, alone=True)
        if not isinstance(decided.settlements[-1], Release):
            self._line.quarantine.survived(delivery)

    async def _call(self, batch: list[Delivery], ticket: int, decided: Decided, *, alone: bool) -> None:
        """Have the sink write `batch`, and add to `decided` what becomes of it."""
        started_at = self._clock()
        try:
            with (
                self._busy.doing("write"),
                self._slot.holding(self._line.queue, [d.message.id for d in batch], alone=alone),
            ):
                results = await self._line.sink.write(batch)
            seconds = self._clock() - started_at
            settlements = self._line.processor.settle(batch, results, self._now(), seconds)
            decided.duplicates += len([r for r in results if r.duplicate and r.error is None])
            if (outage := self._line.processor.outage(results)) is None:
                self._line.breaker.succeeded(ticket, self._line.batch_size)
            else:
                self._line.breaker.failed(ticket, outage)
        except Exception as error:
            if not isinstance(error, (SinkUnavailable, SinkMisconfigured)):
                self._log.error("sink failed in an unforeseen way", exc_info=error)
            self._line.breaker.failed(ticket, error)
            seconds = self._clock() - started_at
            settlements = self._line.processor.settle_failed_call(batch, error, self._now(), seconds)
        decided.settlements += self._line.flow.spend(settlements)
        oldest = min(map(_accepted_at, batch))
        self._line.tally.wrote(
            size=len(batch),
            seconds=seconds,
            latency=(self._now() - oldest).total_seconds(),
        )


def _without(deliveries: list[Delivery], settled: Sequence[Settlement]) -> list[Delivery]:
    if not settled:
        return deliveries
    gone = {id(s.delivery) for s in settled}
    return [d for d in deliveries if id(d) not in gone]
