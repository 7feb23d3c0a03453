"""Requests that arrive together share one publish."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import structlog

from forebay.brokers.api import Publisher, PublishResult
from forebay.errors import BrokerError, PublishUnconfirmed
from forebay.message import Message, together

log = structlog.get_logger()

GRACE = 1.0
"""Seconds past its timeout that a publish may take to report, before it is given up as unconfirmed."""


REPORT = 0.02
"""
Share of the timeout kept for the publisher's report.

A publisher may know at its deadline that nothing was stored. Given all of the time,
it would say so when the requests have just been answered that nobody knows.
"""


PART = 0.25
MAX_PAUSE = 0.002
"""
Part of the last publish's time, and seconds, that the next one waits for those who had their answers from it.

A publish costs the same for one message as for fifty. Without a pause, clients that wait for
their answers fall into two halves that take turns, and all publishes have half the size.
"""


class Entry(Protocol):
    """What waits for an outcome."""

    message: Message
    deadline: float
    """On the loop's clock; set when the entry is handed in."""
    answered: bool
    """Set by the owner. An answered entry no longer expires."""


E = TypeVar("E", bound=Entry)


@dataclass(slots=True)
class _Lane(Generic[E]):
    """Entries of one queue and publisher: those that wait for a publish, and those in a running one."""

    queue: str
    publisher: Publisher
    waiting: deque[E] = field(default_factory=deque)
    running: list[list[E]] = field(default_factory=list)
    scheduled: bool = False
    pause: asyncio.TimerHandle | None = None
    """Set while what waits is waiting for more."""


class GroupCommit(Generic[E]):
    """
    Gathers messages per queue and publishes what has gathered; a message that is alone waits for nobody.

    On an idle queue a message goes out in the same turn of the event loop, together
    with whatever else arrived in it. While a publish runs, later ones gather; a moment
    after it ends, or as soon as enough for a worthwhile publish have gathered and fewer than
    `max_publishes` run, they go out as well.

    Entries for which `choose` names another publisher than `publisher` are gathered apart.

    Every entry has a deadline, `timeout` seconds after `add`. At it, `expired` is
    called: with sent=False the entry has been taken out and was never sent; with
    sent=True its publish still runs, and `settled` will tell the outcome later.
    `settled` is called exactly once for everything sent, whatever the publisher
    does, with one outcome per entry. Both are called on the event loop and must not
    raise.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        timeout: float,
        settled: Callable[[str, list[E], Sequence[PublishResult | BrokerError], float], None],
        expired: Callable[[E, bool], None],
        choose: Callable[[E], Publisher] | None = None,
        max_messages: int = 500,
        max_bytes: int = 4 * 2**20,
        max_publishes: int = 4,
        worthwhile: int = 64,
    ) -> None:
        self._publisher = publisher
        self._timeout = timeout
        self._settled = settled
        self._expired = expired
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_publishes = max_publishes
        self._worthwhile = worthwhile
        self._loop = asyncio.get_running_loop()
        self._choose = choose
        self._lanes: dict[tuple[str, Publisher], _Lane[E]] = {}
        self._watched: deque[E] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, queue: str, entry: E) -> None:
        """Publish the entry's message; the outcome comes through `settled` or `expired`."""
        publisher = self._publisher if self._choose is None else self._choose(entry)
        lane = self._lanes.get((queue, publisher))
        if lane is None:
            lane = self._lanes[queue, publisher] = _Lane(queue, publisher)
        self._time(entry)
        lane.waiting.append(entry)
        if not lane.scheduled:
            # Not at once: what else arrives in this turn of the loop comes along.
            lane.scheduled = True
            self._loop.call_soon(self._flush, lane)
        elif lane.pause is not None and len(lane.waiting) >= self._worthwhile:
            self._go_on(lane)

    def watch(self, entry: E) -> None:
        """Give the entry a deadline only: somebody else's publish is its outcome."""
        self._time(entry)
        self._watched.append(entry)

    async def close(self) -> None:
        """Wait for everything handed in; each entry's deadline bounds how long that takes."""
        while self._tasks or any(lane.waiting for lane in self._lanes.values()):
            for lane in self._lanes.values():
                if lane.pause is not None:
                    self._go_on(lane)
            if self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time(self, entry: E) -> None:
        entry.deadline = self._loop.time() + self._timeout
        if self._timer is None:
            self._timer = self._loop.call_at(entry.deadline, self._sweep)

    def _flush(self, lane: _Lane[E]) -> None:
        lane.scheduled = False
        lane.pause = None
        while lane.waiting and (
            not lane.running
            or (len(lane.running) < self._max_publishes and len(lane.waiting) >= self._worthwhile)
        ):
            batch = self._take(lane.waiting)
            lane.running.append(batch)
            task = self._loop.create_task(self._publish(lane, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self, waiting: deque[E]) -> list[E]:
        batch = [waiting.popleft()]
        size = len(batch[0].message.body)
        while waiting and len(batch) < self._max_messages:
            size += len(waiting[0].message.body)
            if size > self._max_bytes:
                break
            batch.append(waiting.popleft())
        return batch

    async def _publish(self, lane: _Lane[E], batch: list[E]) -> None:
        # The youngest entry's time: an older one is answered by the sweep, and must
        # not cut the publish short for the others.
        started = self._loop.time()
        deadline = batch[-1].deadline
        outcomes: Sequence[PublishResult | BrokerError]
        try:
            async with asyncio.timeout_at(deadline + GRACE):
                outcomes = await lane.publisher.publish(
                    lane.queue,
                    together([entry.message for entry in batch]),
                    timeout=max(deadline - started - REPORT * self._timeout, 0.001),
                )
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} results for {len(batch)} messages")
        except BrokerError as error:
            outcomes = [error] * len(batch)
        except TimeoutError:
            outcomes = [PublishUnconfirmed("the broker did not report in time")] * len(batch)
        except asyncio.CancelledError:
            self._finish(lane, batch, [PublishUnconfirmed("stopped while publishing")] * len(batch), started)
            raise
        except Exception:
            # A driver may only raise BrokerErrors; after anything else nothing is known.
            log.exception("publish failed unexpectedly", queue=lane.queue, messages=len(batch))
            outcomes = [PublishUnconfirmed("the driver failed unexpectedly")] * len(batch)
        self._finish(lane, batch, outcomes, started)

    def _finish(
        self, lane: _Lane[E], batch: list[E], outcomes: Sequence[PublishResult | BrokerError], started: float
    ) -> None:
        lane.running.remove(batch)
        took = self._loop.time() - started
        self._settled(lane.queue, batch, outcomes, took)
        if not lane.running and not lane.scheduled and 0 < len(lane.waiting) < self._worthwhile:
            # Whoever has just been answered may have the next message ready, to go with these.
            lane.scheduled = True
            lane.pause = self._loop.call_later(min(took * PART, MAX_PAUSE), self._flush, lane)
        else:
            self._flush(lane)

    def _go_on(self, lane: _Lane[E]) -> None:
        """End the pause."""
        assert lane.pause is not None
        lane.pause.cancel()
        lane.pause = None
        self._loop.call_soon(self._flush, lane)

    def _sweep(self) -> None:
        """
        Answer what has reached its deadline, and come back at the next one.

        All entries have the same timeout, so that each of the lists is in order of
        deadlines: one timer is enough for all of them, and none is made per entry.
        """
        self._timer = None
        now = self._loop.time()
        following: list[float] = []
        for lane in self._lanes.values():
            while lane.waiting and lane.waiting[0].deadline <= now:
                self._expired(lane.waiting.popleft(), False)
            if lane.waiting:
                following.append(lane.waiting[0].deadline)
            for batch in lane.running:
                following += self._expire_sent(batch, now)
        while self._watched and (self._watched[0].answered or self._watched[0].deadline <= now):
            entry = self._watched.popleft()
            if not entry.answered:
                self._expired(entry, True)
        if self._watched:
            following.append(self._watched[0].deadline)
        if following:
            self._timer = self._loop.call_at(min(following), self._sweep)

    def _expire_sent(self, batch: list[E], now: float) -> list[float]:
        """Expire what is due of a running publish; the deadline that comes next, if any."""
        for entry in batch:
            if entry.answered:
                continue
            if entry.deadline > now:
                return [entry.deadline]
            self._expired(entry, True)
        return []
