"""What the database says of the queues, for the consumers of one process; and what they have to tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from consumers.flow import Flow
from consumers.quarantine import Quarantine
from consumers.recorder import Left
from consumers.sinks.threads import SinkThreads
from forebay.storage import controls, suspects
from forebay.storage.controls import Control
from forebay.storage.database import Database
from forebay.storage.suspects import Place, Suspect

log = structlog.get_logger()

EVERY = 1.0
"""Seconds between two looks: what an operator says is obeyed within two."""
TIMEOUT = 5.0
FIRST_TIMEOUT = 3.0
LAST_TIMEOUT = 2.0


@dataclass(slots=True, kw_only=True)
class _Exchange:
    """What goes to the database in one look, and what comes back."""

    queues: list[str]
    trips: dict[str, tuple[str, int]]
    """Reasons of those that paused themselves, with the number of resumes that they had seen."""
    lefts: list[Left]
    acquitted: set[Place]
    controls: dict[str, Control] = field(default_factory=dict)
    suspects: dict[Place, Suspect] = field(default_factory=dict)


class ControlRoom:
    """
    Reads each second what operators want, and writes what they should know.

    While the database is away everything stays as it was last: a queue that was paused stays
    paused, and what is to be told is told later.
    """

    def __init__(
        self, database: Database | None, flows: Mapping[str, Flow], quarantine: Quarantine, *, name: str
    ) -> None:
        self._database = database
        self._flows = flows
        self._quarantine = quarantine
        self._name = name
        self._threads = SinkThreads("forebay-controls")
        self._begun: set[str] = set()
        self._away = False

    async def first_look(self) -> None:
        """To be awaited before anything is taken from a queue. Without an answer in time it goes on."""
        self._quarantine.search()
        await self._look(FIRST_TIMEOUT)

    async def run(self) -> None:
        """Look for ever; to be cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                self._quarantine.search()
                await self._look(TIMEOUT)
            except Exception as error:
                log.error("looking for what operators want failed", exc_info=error)

    async def close(self) -> None:
        """Nothing is in hand any more; tell the database what it has not been told."""
        if self._quarantine.has_news:
            await self._look(LAST_TIMEOUT)
        self._quarantine.close()
        self._threads.close()

    async def _look(self, timeout: float) -> None:
        if self._database is None:
            return
        exchange = _Exchange(
            queues=[name for flow in self._flows.values() for name in (flow.queue, f"{flow.queue}.dead")],
            trips={
                flow.queue: (flow.tripped, flow.control.resumes)
                for flow in self._flows.values()
                if flow.tripped
            },
            lefts=self._quarantine.take_unpublished(),
            acquitted=self._quarantine.take_acquitted(),
        )
        try:
            async with asyncio.timeout(timeout):
                await self._threads.run(self._exchange, self._database, exchange)
        except BaseException as error:
            # Told again, if it was told: to accuse twice costs a message a lonely moment, no more.
            self._quarantine.put_back(exchange.lefts, exchange.acquitted)
            if not isinstance(error, Exception):
                raise
            if not self._away:
                self._away = True
                log.warning(
                    "the database cannot be asked what operators want: all stays as it is",
                    reason=str(error) or "no answer in time",
                )
            return
        self._away = False
        self._quarantine.learn(exchange.suspects)
        self._obey(list(self._flows.values()), exchange.controls)

    def _obey(self, flows: Sequence[Flow], found: Mapping[str, Control]) -> None:
        for flow in flows:
            control = found.get(flow.queue, Control(queue=flow.queue))
            if flow.queue not in self._begun:
                self._begun.add(flow.queue)
                flow.begin(control)
                if flow.reason is not None:
                    log.warning("queue is held back", queue=flow.queue, reason=flow.reason)
                continue
            before = flow.control
            flow.obey(control)
            if before == control:
                continue
            if control.paused and not before.paused:
                log.warning("queue paused", queue=flow.queue, reason=flow.reason)
            elif before.paused and not control.paused:
                log.info("queue resumed", queue=flow.queue, by=control.changed_by)
            if before.rate != control.rate:
                log.info("rate changed", queue=flow.queue, rate=control.rate, by=control.changed_by)

    # ---- in the thread

    def _exchange(self, database: Database, exchange: _Exchange) -> None:
        for queue, (reason, resumes) in exchange.trips.items():
            controls.trip(database, queue, reason=reason, by=self._name, resumes=resumes)
        if exchange.acquitted:
            suspects.acquit(database, exchange.acquitted)
        while exchange.lefts:
            left = exchange.lefts[0]
            suspects.accuse(database, [(left.queue, id) for id in left.ids], alone=left.alone)
            exchange.lefts.pop(0)
        exchange.controls = controls.read(database)
        exchange.suspects = suspects.read(database, exchange.queues)
