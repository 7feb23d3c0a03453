"""Receive, write, settle: one worker's way through a queue."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime

import structlog

from consumers.breaker import BreakerState
from consumers.line import Line
from consumers.waves import Holds
from consumers.writing import Busy, Decided, Writer, utc_now
from forebay.brokers.api import (
    Broker,
    DeadLetter,
    Delivery,
    Release,
    Retry,
    Settlement,
    Share,
    Subscription,
    all_done,
)
from forebay.brokers.naming import origin_queue
from forebay.errors import BrokerUnavailable, QueueNotFound

log = structlog.get_logger()

IN_HAND = 3
"""Batches on loan at once: one arriving, one being written, one being settled."""
IDLE_WAIT = 1.0
"""How long one call of receive waits on an empty queue, in seconds."""
CALL_TIMEOUT = 60.0
"""A broker call that takes longer is cut off, and the worker begins again with a new subscription."""
LAST_SETTLE_TIMEOUT = 5.0
"""What settling may still take after the deadline of a stop."""
SLOW_WRITE = 60.0
"""A sink that is busy with one batch for longer is mentioned in the log, again and again."""
MAX_RESTART_DELAY = 30.0
IDS_IN_LOG = 10


@dataclass(slots=True, kw_only=True)
class Loan:
    """One batch on its way, with the breaker's ticket to write it; None: not to be written, only released."""

    deliveries: list[Delivery]
    ticket: int | None
    calls: list[int]
    """Which call of `receive` brought each of them, as `Holds` counts them."""


class Worker:
    """
    Takes batches from one queue, has them written to one sink, settles them.

    The three steps run side by side: while one batch is written, the next is
    already received and the one before is being settled, so that the sink never
    waits for the broker. At most `IN_HAND` batches are on loan.

    While the breaker is open, or the flow is stopped, nothing is received. What was
    received when that began is handed back unwritten and uncounted.

    What may have killed a consumer before is written with nothing else in this process.

    It ends only when told to. A broker that goes away, and a bug in here or in the
    sink, end the subscription (which hands back what is on loan, uncounted) and are
    followed by a new one after a pause.
    """

    def __init__(
        self,
        broker: Broker,
        line: Line,
        *,
        max_wait: float,
        shutdown_timeout: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._broker = broker
        self._queue = line.queue
        self._sink = line.sink
        self._breaker = line.breaker
        self._flow = line.flow
        self._tally = line.tally
        self._batch_size = line.batch_size
        self._max_wait = max_wait
        self._shutdown_timeout = shutdown_timeout
        self._ordered = line.ordered
        self._holds = Holds()
        self._log = log.bind(queue=line.queue)
        self._changed = asyncio.Event()
        line.breaker.on_change(self._changed.set)
        line.flow.on_change(self._changed.set)
        self._clock = clock
        self._busy = Busy(clock)
        self._writer = Writer(line, self._busy, clock=clock, now=now)
        self._restart_delay = 0.0
        self._subscription: Subscription | None = None

    @property
    def connected(self) -> bool:
        """Whether it has a subscription now."""
        return self._subscription is not None

    def share(self) -> Share:
        """What its subscription knows of the queue; without one it holds nothing and knows nothing."""
        return Share(in_hand=0) if self._subscription is None else self._subscription.share()

    def busy_for(self) -> float:
        """How long the slowest step under way has been going on; 0.0 while it waits for work."""
        return self._busy.longest()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then finish the batch in hand, settle it, hand back the rest."""
        while not stop.is_set():
            try:
                await self._run_once(stop)
            except Exception as error:
                self._ended_by(_innermost(error))
            finally:
                self._subscription = None
                self._busy.clear()
            if not stop.is_set():
                await wait_for(stop, self._restart_delay)

    async def _run_once(self, stop: asyncio.Event) -> None:
        stack = AsyncExitStack()
        try:
            with self._busy.doing("subscribe"):
                async with asyncio.timeout(CALL_TIMEOUT):
                    await self._broker.declare(origin_queue(self._queue))
                    subscription = await stack.enter_async_context(
                        self._broker.subscribe(
                            self._queue, prefetch=IN_HAND * self._batch_size, ordered=self._ordered
                        )
                    )
            self._subscription = subscription
            self._holds = Holds()
            await self._pipeline(subscription, stop)
        finally:
            with self._busy.doing("unsubscribe"):
                async with asyncio.timeout(CALL_TIMEOUT):
                    await stack.aclose()

    def _ended_by(self, error: Exception) -> None:
        self._restart_delay = min(MAX_RESTART_DELAY, self._restart_delay * 2 or 0.5) * random.uniform(0.75, 1)
        wait = round(self._restart_delay, 1)
        match error:
            case BrokerUnavailable() | TimeoutError():
                self._tally.restarted("broker")
                reason = str(error) or "no answer in time"
                self._log.warning("broker unavailable, will connect again", reason=reason, next_try_in=wait)
            case QueueNotFound():
                self._tally.restarted("broker")
                self._log.error("queue does not exist, will look again", reason=str(error), next_try_in=wait)
            case _:
                self._tally.restarted("bug")
                self._log.error("worker failed, will start again", next_try_in=wait, exc_info=error)

    # ---- the three steps, and the one that stops them

    async def _pipeline(self, subscription: Subscription, stop: asyncio.Event) -> None:
        received: asyncio.Queue[Loan | None] = asyncio.Queue()
        decided: asyncio.Queue[Decided | None] = asyncio.Queue()
        slots = asyncio.Semaphore(IN_HAND)
        try:
            async with asyncio.TaskGroup() as group:
                receiver = group.create_task(self._receive(subscription, received, slots))
                writer = group.create_task(self._write(received, decided, stop))
                settler = group.create_task(self._settle(subscription, decided, slots))
                group.create_task(self._stop(stop, receiver, writer, settler))
        except ExceptionGroup:
            _forget_cancellations()
            raise
        finally:
            while not received.empty():
                self._give_back(received.get_nowait())

    async def _receive(
        self, subscription: Subscription, received: asyncio.Queue[Loan | None], slots: asyncio.Semaphore
    ) -> None:
        idle = False
        try:
            while True:
                await slots.acquire()
                await self._until_allowed()
                limit = self._flow.reserve(self._breaker.batch_limit(self._batch_size))
                deliveries: list[Delivery] = []
                calls: list[int] = []
                try:
                    with self._busy.doing("receive"):
                        async with asyncio.timeout(CALL_TIMEOUT):
                            if idle:
                                # One long wait for the first message rather than many short ones for a batch.
                                deliveries = await subscription.receive(1, IDLE_WAIT)
                                calls = [self._holds.returned()] * len(deliveries)
                                if deliveries and limit > 1:
                                    deliveries += await subscription.receive(limit - 1, self._max_wait)
                            else:
                                deliveries = await subscription.receive(limit, self._max_wait)
                            calls += [self._holds.returned()] * (len(deliveries) - len(calls))
                finally:
                    self._flow.refund(limit - len(deliveries))
                if idle and not deliveries:
                    self._flow.found_empty()
                idle = not deliveries
                if deliveries:
                    ticket = self._breaker.begin()
                    received.put_nowait(Loan(deliveries=deliveries, ticket=ticket, calls=calls))
                else:
                    self._restart_delay = 0.0
                    slots.release()
                    await self._probe_without_message()
        finally:
            received.put_nowait(None)

    async def _probe_without_message(self) -> None:
        """
        Close the breaker of a destination that is back when there is no message to find out with.

        Otherwise a queue that nobody sends to would be shown as paused, and alarm
        people, for as long. A misconfiguration waits for a real message: the
        destination may well answer and still refuse what we write.
        """
        if self._breaker.state is not BreakerState.HALF_OPEN or self._breaker.misconfigured:
            return
        if (ticket := self._breaker.begin()) is None:
            return
        try:
            with self._busy.doing("probe"):
                async with asyncio.timeout(CALL_TIMEOUT):
                    await self._sink.probe()
        except asyncio.CancelledError:
            self._breaker.abandoned(ticket)
            raise
        except Exception as error:
            self._breaker.failed(ticket, error)
        else:
            self._breaker.succeeded(ticket, self._batch_size)

    async def _until_allowed(self) -> None:
        """Return when the breaker lets a call begin, and nothing else holds the queue back."""
        while True:
            self._changed.clear()
            if (pause := max(self._breaker.retry_after(), self._flow.closed_for())) == 0.0:
                return
            await wait_for(self._changed, pause)

    async def _write(
        self,
        received: asyncio.Queue[Loan | None],
        decided: asyncio.Queue[Decided | None],
        stop: asyncio.Event,
    ) -> None:
        try:
            while (loan := await received.get()) is not None:
                try:
                    if loan.ticket is None or stop.is_set() or not self._writer.may_write(loan.ticket):
                        outcome = Decided(settlements=[Release(d) for d in loan.deliveries])
                    elif self._ordered:
                        live, back = self._holds.split(loan.deliveries, loan.calls)
                        outcome = await self._writer.write_in_order(live, loan.ticket, stop)
                        outcome.settlements += back
                    else:
                        outcome = await self._writer.write(loan.deliveries, loan.ticket)
                    if self._ordered:
                        self._holds.decided(outcome.settlements)
                    decided.put_nowait(outcome)
                finally:
                    self._give_back(loan)
        finally:
            decided.put_nowait(None)

    def _give_back(self, loan: Loan | None) -> None:
        """
        Return the ticket, if the breaker has not heard how the call went.

        A probe that was lost on its way, whatever went wrong, would keep the breaker half open for ever.
        """
        if loan is not None and loan.ticket is not None:
            self._breaker.abandoned(loan.ticket)

    async def _settle(
        self, subscription: Subscription, decided: asyncio.Queue[Decided | None], slots: asyncio.Semaphore
    ) -> None:
        while (batch := await decided.get()) is not None:
            try:
                if self._ordered:
                    self._holds.settling(batch.settlements)
                started_at = self._clock()
                with self._busy.doing("settle"):
                    async with asyncio.timeout(CALL_TIMEOUT):
                        stale = await subscription.settle(batch.settlements)
            except (BrokerUnavailable, TimeoutError):
                # Nothing to undo: what was written and comes again is found to be a duplicate.
                self._log.warning("could not settle; will be delivered again", count=len(batch.settlements))
                raise
            if stale:
                self._log.warning("deliveries were no longer ours; duplicates will come", count=len(stale))
            self._tally.settled(batch.settlements, batch.duplicates, seconds=self._clock() - started_at)
            self._tell(batch.settlements)
            self._restart_delay = 0.0
            slots.release()

    async def _stop(
        self,
        stop: asyncio.Event,
        receiver: asyncio.Task[None],
        writer: asyncio.Task[None],
        settler: asyncio.Task[None],
    ) -> None:
        """Wait for `stop`, then end the steps from the first to the last."""
        while not await wait_for(stop, SLOW_WRITE):
            if (busy := self.busy_for()) >= SLOW_WRITE:
                self._log.warning("busy with one batch for long", seconds=round(busy), step=self._busy.steps)
        receiver.cancel()
        _, late = await asyncio.wait({writer}, timeout=self._shutdown_timeout)
        if late:
            self._log.warning(
                "batch in hand not finished in time, handed back", timeout=self._shutdown_timeout
            )
            writer.cancel()
        _, late = await asyncio.wait({settler}, timeout=LAST_SETTLE_TIMEOUT)
        if late:
            self._log.warning("broker did not settle in time; will be delivered again")
            settler.cancel()

    # ---- small parts

    def _tell(self, settlements: Sequence[Settlement]) -> None:
        """One line per kind of failure in a batch, not one per message."""
        if all_done(settlements):
            return
        groups: dict[tuple[type[Settlement], str, str], list[str]] = defaultdict(list)
        for settlement in settlements:
            if isinstance(settlement, (Retry, DeadLetter)):
                failure = settlement.failure
                groups[type(settlement), failure.error_class, failure.reason].append(
                    settlement.delivery.message.id
                )
        for (kind, error_class, reason), ids in groups.items():
            fields = {
                "error_class": error_class,
                "reason": reason,
                "count": len(ids),
                "ids": ids[:IDS_IN_LOG],
            }
            if kind is DeadLetter:
                self._log.warning("messages went to the dead letters", **fields)
            else:
                self._log.info("messages will be tried again", **fields)


def _innermost(error: Exception) -> Exception:
    """What a group of failed steps is about: a bug if there is one among them, else the first."""
    if not isinstance(error, ExceptionGroup):
        return error
    found = [_innermost(e) for e in error.exceptions]
    bugs = [e for e in found if not isinstance(e, (BrokerUnavailable, TimeoutError))]
    return (bugs or found)[0]


def _forget_cancellations() -> None:
    """
    Call off what a failed TaskGroup asked of this task, and nobody else did.

    A group whose child fails while the group is being left cancels its parent and never takes it back.
    Until 3.11.3 `asyncio.timeout` lets such a leftover turn its own end into a
    CancelledError, and that would end the worker for good: already while it
    unsubscribes. A real cancellation does not get here: it is no Exception.
    """
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


async def wait_for(event: asyncio.Event, timeout: float) -> bool:
    """Wait until `event` is set, at most `timeout` seconds; whether it is set."""
    try:
        async with asyncio.timeout(None if timeout == float("inf") else timeout):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()
