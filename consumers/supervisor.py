"""All consumers of one process: the workers of each queue, the archivers, and what they share."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from consumers import archiver
from consumers.archiver import ArchiveSink
from consumers.breaker import BreakerState, CircuitBreaker
from consumers.emptiness import Returns
from consumers.flow import Flow
from consumers.line import Line
from consumers.lookout import Lookout, is_cheap
from consumers.metrics import ConsumerMetrics, Tally
from consumers.processor import Processor
from consumers.quarantine import Quarantine
from consumers.recorder import Recorder, folder_for
from consumers.retry import ExponentialBackoff, Forever
from consumers.settings import BreakerSettings, ConsumerSettings, QueueSettings
from consumers.status import QueueStatus, WorkerState
from consumers.worker import LAST_SETTLE_TIMEOUT, Worker
from consumers.writing import utc_now
from forebay.brokers.api import Broker, Share
from forebay.brokers.naming import dead_letter_queue, is_dead_letter_queue
from forebay.errors import SettingsError
from forebay.figures import add_up
from forebay.sinks import Sink
from forebay.storage.database import Database

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class _Line:
    """One queue with its workers."""

    shared: Line
    workers: list[Worker]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    held: bool = False
    """Not to be consumed yet."""


class Supervisor:
    """
    Runs the consumers of one process until told to stop.

    Each queue gets `concurrency` workers, and an archiver for its dead letters where
    there is a database. Queues with the same destination and breaker settings share
    one breaker: when the database is down it is probed once, not once per queue.

    With `beside` it drains an old broker for that supervisor's process, and shares its
    breakers and figures. An old broker need not keep the order of keys: what it could
    not keep, it never promised.

    Belongs to one event loop; `add` and `snapshot` are called in it.
    """

    def __init__(
        self,
        broker: Broker,
        settings: ConsumerSettings,
        *,
        database: Database | None,
        make_sink: Callable[[str, QueueSettings], Sink],
        registry: CollectorRegistry | None = None,
        beside: Supervisor | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
    ) -> None:
        self.broker = broker
        self._draining = beside is not None
        self._settings = settings
        self._database = database
        self._make_sink = make_sink
        self._clock = clock
        self._now = now
        self._rng = rng or random.Random()
        self._metrics: ConsumerMetrics = (
            beside._metrics if beside else ConsumerMetrics(registry or _own_registry())
        )
        self._breakers: dict[tuple[str, BreakerSettings], CircuitBreaker] = beside._breakers if beside else {}
        self._lookouts: dict[CircuitBreaker, Lookout] = beside._lookouts if beside else {}
        self.flows: dict[str, Flow] = beside.flows if beside else {}
        """What holds each queue back, for whoever knows what operators want. Dead-letter queues have none."""
        self.quarantine: Quarantine = (
            beside.quarantine
            if beside
            else Quarantine(
                Recorder(folder_for(settings.state_dir, broker.identity)), limit=settings.crash_limit
            )
        )
        self.returns: Returns = beside.returns if beside else Returns(clock=clock)
        self._own_lookouts: list[Lookout] = []
        self._watching: list[asyncio.Task[None]] = []
        self._lines: dict[str, _Line] = {}
        self._group: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()

    def add(self, queue: str, settings: QueueSettings, *, hold: bool = False) -> None:
        """
        Consume `queue` too, from now or from `run` on. A queue that is there already stays as it is.

        With `hold` only its dead letters, and the queue itself from `release` on.

        Raises:
            SettingsError: its sink cannot be made, or the broker cannot keep the order it asks for.
        """
        if queue in self._lines:
            return
        kept = self.broker.capabilities.ordering
        if settings.order == "key" and kept != "by_key" and not self._draining:
            raise SettingsError(
                f'queues.{queue}.order is "key", which this broker cannot keep (its ordering is {kept!r});'
                ' write order = "none", or use a broker that orders by key (see docs/drivers.md)'
            )
        sink = self._make_sink(queue, settings)
        retry = ExponentialBackoff.of(settings.retry)
        worker = worker_name()
        processor = Processor(retry=retry, destination=sink.destination, worker=worker)
        self._start(queue, sink, processor, settings, hold=hold)
        if self._database is not None:
            self._start(
                dead_letter_queue(queue),
                ArchiveSink(self._database),
                Processor(
                    retry=Forever(), destination=ArchiveSink.destination, gives_up=False, worker=worker
                ),
                QueueSettings(batch_size=archiver.BATCH_SIZE, max_wait=archiver.MAX_WAIT),
            )

    def release(self, queue: str) -> None:
        """Consume a queue that was added with `hold`."""
        line = self._lines[queue]
        line.held = False
        if self._group is not None:
            self._launch(line)

    async def run(self, stop: asyncio.Event) -> None:
        """
        Consume until `stop` is set and what is in hand is settled.

        Returns within `shutdown_timeout` and a few seconds more, whatever the
        destination and the broker do.
        """
        self._stop = stop
        try:
            await self._consume(stop)
        finally:
            for line in self._lines.values():
                await line.shared.sink.close()

    async def _consume(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for line in self._lines.values():
                    self._launch(line)
                self._watching = [group.create_task(lookout.run()) for lookout in self._own_lookouts]
                await stop.wait()
                log.info("consumers are stopping", broker=self.broker.identity, queues=self.queues)
                for task in self._watching:
                    task.cancel()
                await self._end()
            finally:
                self._group = None

    def snapshot(self) -> list[QueueStatus]:
        """How each queue is doing now, in the order in which they were added."""
        # A copy: /metrics of `forebay dev` asks from another thread.
        return [self._status(line) for line in list(self._lines.values())]

    @property
    def queues(self) -> list[str]:
        """Those that were added; each has its dead-letter queue besides."""
        return [q for q in self._lines if not is_dead_letter_queue(q)]

    def share(self, queue: str) -> Share:
        """What all workers of a queue, or of a dead-letter queue, know of it together."""
        line = self._lines.get(queue)
        return add_up(w.share() for w in line.workers) if line else Share(in_hand=0)

    # ---- making and ending

    def _start(
        self, queue: str, sink: Sink, processor: Processor, settings: QueueSettings, *, hold: bool = False
    ) -> None:
        batch_size = settings.batch_size
        if "batch_size" not in settings.model_fields_set:
            batch_size = getattr(sink, "batch_size", None) or batch_size
        shared = Line(
            queue=queue,
            sink=sink,
            processor=processor,
            breaker=self._breaker(sink.destination, settings.breaker),
            flow=self._flow(queue, settings),
            tally=Tally(metrics=self._metrics, queue=queue, returns=self.returns),
            quarantine=self.quarantine,
            batch_size=batch_size,
            # Not on a broker that is drained and cannot keep it.
            ordered=settings.order == "key" and self.broker.capabilities.ordering == "by_key",
        )
        # Two batches of one ordering key must not be written side by side.
        concurrency = 1 if settings.order == "key" else settings.concurrency
        workers = [
            Worker(
                self.broker,
                shared,
                max_wait=settings.max_wait,
                shutdown_timeout=self._settings.shutdown_timeout,
                clock=self._clock,
                now=self._now,
            )
            for _ in range(concurrency)
        ]
        line = _Line(shared=shared, workers=workers, held=hold)
        self._lines[queue] = line
        if is_cheap(sink) and shared.breaker not in self._lookouts:
            lookout = self._lookouts[shared.breaker] = Lookout(shared.breaker, sink)
            self._own_lookouts.append(lookout)
            if self._group is not None:
                self._watching.append(self._group.create_task(lookout.run()))
        if self._group is not None:
            self._launch(line)

    def _launch(self, line: _Line) -> None:
        assert self._group is not None
        if line.held:
            return
        for worker in line.workers:
            task = self._group.create_task(worker.run(self._stop), name=f"consume {line.shared.queue}")
            line.tasks.append(task)

    async def _end(self) -> None:
        """The workers end by themselves; those that cannot are ended."""
        for line in self._lines.values():
            # A line that is held has no tasks.
            for worker, task in zip(line.workers, line.tasks, strict=False):
                if not worker.connected:
                    task.cancel()  # It is waiting for a broker that is not there, with nothing in hand.
        tasks = [t for line in self._lines.values() for t in line.tasks]
        if tasks:
            patience = self._settings.shutdown_timeout + 2 * LAST_SETTLE_TIMEOUT
            _, late = await asyncio.wait(tasks, timeout=patience)
            for task in late:
                log.error("a worker did not end in time and was cut off", task=task.get_name())
                task.cancel()

    def _breaker(self, destination: str, settings: BreakerSettings) -> CircuitBreaker:
        key = (destination, settings)
        if key not in self._breakers:
            breaker = CircuitBreaker(settings, clock=self._clock, rng=self._rng)
            breaker.on_change(lambda: self._tell(destination, breaker))
            self._breakers[key] = breaker
            self._metrics.show_breaker(destination, breaker)
        return self._breakers[key]

    def _flow(self, queue: str, settings: QueueSettings) -> Flow:
        """One for a queue, on whichever broker; an archiver is nobody's to hold back."""
        if is_dead_letter_queue(queue):
            return Flow(queue, settings, clock=self._clock, now=self._now)
        if queue not in self.flows:
            flow = Flow(queue, settings, clock=self._clock, now=self._now)
            flow.budget.on_change(lambda: self._tell_suspicion(queue, flow))
            self.flows[queue] = flow
        return self.flows[queue]

    def _tell_suspicion(self, queue: str, flow: Flow) -> None:
        if flow.budget.reason is not None:
            log.error(
                "too many messages are given up: queue paused until someone resumes it",
                queue=queue,
                reason=flow.reason,
            )

    def _tell(self, destination: str, breaker: CircuitBreaker) -> None:
        self._metrics.show_breaker(destination, breaker)
        match breaker.state:
            case BreakerState.CLOSED:
                log.info("destination works again", destination=destination)
            case BreakerState.OPEN if breaker.misconfigured:
                log.error(
                    "destination refuses us, paused until someone acts",
                    destination=destination,
                    reason=breaker.reason,
                    next_try_in=round(breaker.retry_after(), 1),
                )
            case BreakerState.OPEN:
                log.warning(
                    "destination unavailable, paused; nothing is lost and no attempt is counted",
                    destination=destination,
                    reason=breaker.reason,
                    next_try_in=round(breaker.retry_after(), 1),
                )
            case BreakerState.HALF_OPEN:
                pass

    def _status(self, line: _Line) -> QueueStatus:
        breaker, tally, flow = line.shared.breaker, line.shared.tally, line.shared.flow
        down = breaker.state is not BreakerState.CLOSED
        return QueueStatus(
            queue=line.shared.queue,
            broker=self.broker.identity,
            draining=self._draining,
            destination=line.shared.sink.destination,
            state=self._state(line, paused=down or flow.paused_by is not None),
            paused_by=flow.paused_by or ("destination" if down else None),
            pause_reason=flow.reason or breaker.reason,
            needs_someone=breaker.misconfigured or flow.paused_by in ("operator", "suspicious"),
            paused_for=flow.stopped_for if flow.paused_by else breaker.down_for,
            next_try_in=flow.opens_in if flow.paused_by else breaker.retry_after() if down else None,
            rate=flow.rate,
            busy_for=max(w.busy_for() for w in line.workers),
            stored=tally.stored,
            duplicates=tally.duplicates,
            retried=tally.retried,
            dead=tally.dead,
            released=tally.released,
            restarts=tally.restarts,
            last_error=tally.last_error,
        )

    def _state(self, line: _Line, *, paused: bool) -> WorkerState:
        if line.held:
            return "waiting"
        if line.tasks and all(t.done() for t in line.tasks):
            return "stopped"
        if not any(w.connected for w in line.workers):
            return "reconnecting" if line.shared.tally.restarts else "starting"
        return "paused" if paused else "running"


def worker_name() -> str:
    """This process, for the history of what fails here: "host:pid"."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _own_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
