"""The consumers of one process on every broker that it reads: the one in use, and old ones to be emptied."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import structlog

from consumers.controls import ControlRoom
from consumers.emptiness import Emptiness, UntilEmpty
from consumers.housekeeping import Housekeeper
from consumers.reporter import Reporter, Watched
from consumers.settings import QueueSettings
from consumers.status import QueueStatus
from consumers.supervisor import Supervisor
from consumers.worker import wait_for
from forebay.brokers.api import Broker
from forebay.brokers.naming import dead_letter_queue, origin_queue
from forebay.errors import BrokerError, ForebayError, QueueNotFound
from forebay.figures import Figures, Place, total

log = structlog.get_logger()

LOOK_AGAIN = 0.15
"""Seconds between two looks at figures that still move."""
STANDS_STILL = 3
"""Looks in a row that tell the same: then a server has counted what was handed back."""
LOOK_EVERY = 5.0
"""Seconds between two reports."""
DRAIN_EVERY = 1.0
"""The same while an old broker is drained: a queue that keeps its order waits for what is found."""
MAX_OPEN_DELAY = 15.0
LAST_LOOK_TIMEOUT = 3.0


@dataclass(slots=True, kw_only=True)
class OldBroker:
    """A broker to drain; or a fallback, which is consumed for good."""

    url: str
    """How it is reached, without credentials."""
    open: Callable[[], AbstractAsyncContextManager[Broker]]
    fallback: bool = False
    """Gateways publish to it while the broker in use is away. Its queues are made where they are missing."""
    supervisor: Supervisor | None = None
    """Set while it is open."""
    emptiness: Emptiness[str] = field(default_factory=Emptiness)
    """Of its queues and dead-letter queues."""
    told: bool = False
    """Whether the log says that it is empty."""
    in_use: bool = False
    """It turned out to be the broker in use: there is nothing to drain."""

    def empty(self, queue: str) -> bool:
        return self.in_use or queue in self.emptiness.certain


class Fleet:
    """
    Runs the consumers of one process and lets the database know how its queues are.

    An old broker is consumed for as long as the settings name it: it may be written to
    by a gateway that still runs with the settings of before. The log says when it is
    empty. It need not be there for the broker in use to be consumed.

    A queue with `order = "key"` is consumed from the broker in use only when it has been
    found empty on all old ones: what waits there is older. Once begun, it goes on. It is never
    published to a fallback.

    A fallback is consumed beside the broker in use, always; it need not be there either.
    """

    def __init__(
        self,
        current: Watched,
        *,
        old: Sequence[OldBroker] = (),
        make_old: Callable[[Broker], Supervisor],
        reporter: Reporter,
        controls: ControlRoom,
        housekeeper: Housekeeper,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._current = current
        self._old = old
        self._make_old = make_old
        self._reporter = reporter
        self._controls = controls
        self._housekeeper = housekeeper
        self._clock = clock
        self._rng = rng or random.Random()
        self._queues: dict[str, QueueSettings] = {}
        self._held_back: set[str] = set()
        self._warned: set[str] = set()
        self._on_look: Callable[[Mapping[Place, Figures]], None] | None = None
        self.emptied = False
        """Whether a run that was to end with that has found all queues empty."""
        self.figures: Mapping[Place, Figures] = {}
        """What the queues held at the last look."""
        self.dead_letters: Mapping[str, int] = {}
        """Those in the database that nobody has dealt with, by queue."""
        self._looked_at: float | None = None

    def add(self, queue: str, settings: QueueSettings) -> None:
        """
        Consume `queue` too, on all brokers. A queue that is there already stays as it is.

        Raises:
            SettingsError: its sink cannot be made, or the broker in use cannot keep the order it asks for.
        """
        if queue in self._queues:
            return
        hold = settings.order == "key" and any(not old.fallback for old in self._old)
        self._current.supervisor.add(queue, settings, hold=hold)
        self._queues[queue] = settings
        if hold:
            self._held_back.add(queue)
            log.info("waits until the old broker is empty of it, to keep the order", queue=queue)

    async def run(self, stop: asyncio.Event, *, until_empty: bool = False) -> None:
        """
        Consume until `stop` is set and what is in hand is settled.

        With `until_empty` it sets `stop` itself, once the queues are empty on all brokers.
        """
        current = self._current
        if until_empty:
            emptied = UntilEmpty(current.supervisor.returns, between=DRAIN_EVERY, clock=self._clock)

            def looked(figures: Mapping[Place, Figures]) -> None:
                if self._over(emptied, figures):
                    self.emptied = True
                    stop.set()

            self._on_look = looked
        await self._controls.first_look()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            beside = [
                watching,
                group.create_task(self._controls.run()),
                group.create_task(self._housekeeper.run()),
            ]
            draining = [group.create_task(self._drain(old, stop)) for old in self._old]
            await current.supervisor.run(stop)
            for task in beside:
                task.cancel()
            for old, task in zip(self._old, draining, strict=True):
                if old.supervisor is None:
                    task.cancel()  # It is not there, or not yet.
            await self._last_look(current)
        await self._controls.close()
        await self._reporter.close()

    def _over(self, emptied: UntilEmpty, figures: Mapping[Place, Figures]) -> bool:
        if self._held_back or self.unreached:
            return False  # There is a broker that was not asked, or a queue that was not begun.
        places = [
            (w.supervisor.broker.identity, name)
            for w in self._watched()
            for queue in w.supervisor.queues
            for name in (queue, dead_letter_queue(queue))
        ]
        return emptied.over(places, figures)

    @property
    def unreached(self) -> list[str]:
        """How the brokers are reached that are to be consumed beside the one in use, and are away."""
        return [old.url for old in self._old if old.supervisor is None and not old.in_use]

    @property
    def left_to_retry(self) -> bool:
        """Whether a message that failed in this process waits for another attempt."""
        return self._clock() < self._current.supervisor.returns.last

    @property
    def broker(self) -> str:
        """The identity of the one in use."""
        return self._current.supervisor.broker.identity

    def looked_ago(self) -> float | None:
        """Seconds since the queues were looked at; None: not yet."""
        return None if self._looked_at is None else self._clock() - self._looked_at

    def snapshot(self) -> list[QueueStatus]:
        """How each queue is doing now, on every broker that is reached."""
        return [status for w in self._watched() for status in w.supervisor.snapshot()]

    def _watched(self) -> list[Watched]:
        old = [Watched(o.supervisor, o.url) for o in self._old if o.supervisor is not None]
        return [self._current, *old]

    # ---- draining

    async def _drain(self, old: OldBroker, stop: asyncio.Event) -> None:
        delay = 0.5
        while not stop.is_set():
            try:
                async with old.open() as broker:
                    if broker.identity == self._current.supervisor.broker.identity:
                        setting = "broker.fallback" if old.fallback else "broker.drain"
                        log.warning(
                            f"{setting} names the broker in use by another URL: take it out", url=old.url
                        )
                        old.in_use = old.told = True
                        return
                    await self._drain_open(old, broker, stop)
                    return
            except ForebayError as error:
                what = (
                    "the fallback cannot be consumed" if old.fallback else "the old broker cannot be drained"
                )
                log.warning(
                    f"{what}, trying again",
                    url=old.url,
                    reason=str(error),
                    next_try_in=round(delay, 1),
                )
            await wait_for(stop, delay * self._rng.uniform(0.75, 1.0))
            delay = min(delay * 2, MAX_OPEN_DELAY)

    async def _drain_open(self, old: OldBroker, broker: Broker, stop: asyncio.Event) -> None:
        supervisor = self._make_old(broker)
        old.supervisor = supervisor
        doing = "consuming a fallback" if old.fallback else "draining an old broker"
        log.info(doing, broker=broker.identity, url=old.url)
        await self._take_on(old)  # At once: the next look at the queues may wait for a broker that is away.
        await supervisor.run(stop)
        await self._last_look(Watched(supervisor, old.url))

    # ---- looking

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except Exception as error:
                log.error("looking at the queues failed", exc_info=error)
            await asyncio.sleep(DRAIN_EVERY if self._on_look or self._draining() else LOOK_EVERY)

    def _draining(self) -> bool:
        return any(not old.told for old in self._old if not old.fallback)

    async def _look(self) -> None:
        missing = {id(old): await self._take_on(old) for old in self._old}
        figures = await self._reporter.look(self._watched())
        self.figures, self._looked_at = figures, self._clock()
        self.dead_letters = await self._reporter.dead_letters()
        for old in self._old:
            if old.supervisor is not None and not old.fallback:
                self._judge(old, figures, missing[id(old)])
        drained = [old for old in self._old if not old.fallback]
        for queue in [q for q in self._held_back if all(old.empty(q) for old in drained)]:
            log.info("the old broker is empty of it: now consumed from the one in use", queue=queue)
            self._held_back.remove(queue)
            self._current.supervisor.release(queue)
        if self._on_look is not None:
            self._on_look(figures)
        await self._warn()

    async def _take_on(self, old: OldBroker) -> set[str]:
        """
        Consume from the old broker what is there; return the queues that are not.

        They are not declared: an old broker gets no new queues, but a fallback does.
        """
        missing: set[str] = set()
        if old.supervisor is None:
            return missing
        for queue, settings in self._queues.items():
            if queue in old.supervisor.queues:
                continue
            if old.fallback and settings.order == "key":
                continue  # nothing of it is ever published there
            try:
                async with asyncio.timeout(LAST_LOOK_TIMEOUT):
                    if old.fallback:
                        await old.supervisor.broker.declare(queue)
                    else:
                        await old.supervisor.broker.depth(queue)
            except QueueNotFound:
                missing.add(queue)
            except (BrokerError, TimeoutError):
                pass  # Neither there nor missing: it is looked for again.
            else:
                old.supervisor.add(queue, settings)
        return missing

    def _judge(self, old: OldBroker, figures: Mapping[Place, Figures], missing: set[str]) -> None:
        assert old.supervisor is not None
        broker, now = old.supervisor.broker.identity, self._clock()
        if missing == self._queues.keys():
            # Rather a wrong virtual host, prefix or right than nothing left.
            if not old.told:
                log.warning(
                    "the old broker has none of these queues; are virtual host, prefix and rights the same?",
                    broker=broker, url=old.url, queues=list(self._queues),
                )  # fmt: skip
            old.told = True
            return
        names = [name for queue in self._queues for name in (queue, dead_letter_queue(queue))]
        for name in names:
            found = figures.get((broker, name))
            left = 0 if origin_queue(name) in missing else total(found.depth) if found else None
            age = found.age if found else 0.0
            old.emptiness.saw(name, left == 0, age=age, now=now, between=DRAIN_EVERY)
            if left:
                old.told = False
        if all(old.empty(name) for name in names):
            if not old.told:
                log.info(
                    "the old broker is empty: once no gateway publishes to it, take it out of broker.drain",
                    broker=broker,
                    url=old.url,
                    queues=list(self._queues),
                )
            old.told = True

    async def _warn(self) -> None:
        for left in await self._reporter.left_behind(self._watched(), [old.url for old in self._old]):
            if left.broker not in self._warned:
                self._warned.add(left.broker)
                log.warning(left.sentence, setting=left.setting)

    async def _last_look(self, watched: Watched) -> None:
        """
        What is left, when nobody of ours holds anything any more: for those who come after.

        A server may count what was handed back a moment later only (RabbitMQ was seen to
        tell 0), so it is asked until its figures stand still; what it told last is reported.
        """
        seen: list[dict[Place, tuple[int | None, ...]]] = []
        try:
            async with asyncio.timeout(LAST_LOOK_TIMEOUT):
                while True:
                    figures = await self._reporter.look([watched])
                    seen = [*seen, {place: _counts(f) for place, f in figures.items()}][-STANDS_STILL:]
                    if len(seen) == STANDS_STILL and all(one == seen[0] for one in seen):
                        return
                    await asyncio.sleep(LOOK_AGAIN)
        except TimeoutError:
            pass


def _counts(figures: Figures) -> tuple[int | None, ...]:
    depth = figures.depth
    return depth.waiting, depth.scheduled, depth.in_hand
