"""Handles alone what may have killed a consumer, so that the one at fault is found and no other suffers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from consumers.recorder import Left, Recorder, Slot
from forebay.brokers.api import Delivery, Failure
from forebay.storage.suspects import Place, Suspect

log = structlog.get_logger()

CRASHED = "crashed"
"""The error class of a dead letter that killed its consumers."""


class Quarantine:
    """
    Who is suspected, and the right to work alone. One per process; belongs to its event loop.

    What a process had in hand when it died is suspect, and nothing else: what was only prefetched
    is not. A suspect is handled when nothing else is in this process. If it survives it is
    forgotten; if it kills `limit` processes in that way it is a dead letter, `crashed`.
    """

    def __init__(self, recorder: Recorder, *, limit: int) -> None:
        self._recorder = recorder
        self._limit = limit
        self._known: dict[Place, Suspect] = {}
        """As the database has them."""
        self._unpublished: list[Left] = []
        """What was found on this machine, and the database has not been told."""
        self._acquitted: set[Place] = set()
        """What the database is to forget."""
        self._working = 0
        self._alone = False
        self._waiting = 0
        self._freed = asyncio.Condition()

    # ---- for workers

    def slot(self) -> Slot:
        return self._recorder.slot()

    def divide(self, deliveries: Sequence[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """Those that are beyond suspicion, and the others; each in their order."""
        if not self._known and not self._unpublished:
            return list(deliveries), []
        beyond: list[Delivery] = []
        suspects: list[Delivery] = []
        for delivery in deliveries:
            (suspects if self.suspect(_place(delivery)) else beyond).append(delivery)
        return beyond, suspects

    def failure(self, delivery: Delivery, destination: str) -> Failure | None:
        """Why this suspect is to be given up, if it is."""
        suspect = self.suspect(_place(delivery))
        if suspect is None or suspect.alone < self._limit:
            return None
        return Failure(
            reason=f"killed {suspect.alone} consumers that handled nothing beside it",
            error_class=CRASHED,
            destination=destination,
            detail=f"{suspect.crashes} consumers died with it in hand",
        )

    def survived(self, delivery: Delivery) -> None:
        """The sink has answered, or it is a dead letter now: no longer suspect."""
        place = _place(delivery)
        self._known.pop(place, None)
        self._acquitted.add(place)
        self._unpublished = [
            replace(left, ids=tuple(i for i in left.ids if (left.queue, i) != place))
            for left in self._unpublished
        ]

    @asynccontextmanager
    async def beside_others(self) -> AsyncIterator[None]:
        """For ordinary work: not while someone works alone."""
        if self._alone or self._waiting:
            async with self._freed:
                await self._freed.wait_for(lambda: not (self._alone or self._waiting))
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            if self._waiting:
                async with self._freed:
                    self._freed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """For a suspect: nothing else is with a sink of this process."""
        async with self._freed:
            self._waiting += 1
            try:
                await self._freed.wait_for(lambda: not (self._alone or self._working))
                self._alone = True
            finally:
                self._waiting -= 1
                self._freed.notify_all()
        try:
            yield
        finally:
            self._alone = False
            async with self._freed:
                self._freed.notify_all()

    # ---- for whoever talks to the database

    def search(self) -> None:
        """Look for what dead processes of this machine left behind."""
        found = {left.path: left for left in self._unpublished}
        for left in self._recorder.left_by_the_dead():
            if left.path not in found:
                log.warning(
                    "a consumer died; what it had in hand is handled one by one",
                    queue=left.queue,
                    count=len(left.ids),
                    alone=left.alone,
                )
                self._unpublished.append(left)

    def take_unpublished(self) -> list[Left]:
        """
        What the database is to be told now, each by one process only; `put_back` what it did not take.

        Until it is told the suspicion is this process's alone.
        """
        mine = [left for left in self._unpublished if self._recorder.forget(left)]
        self._unpublished = []
        return mine

    def put_back(self, lefts: Sequence[Left], acquitted: Collection[Place]) -> None:
        self._unpublished += lefts
        self._acquitted |= set(acquitted)

    def take_acquitted(self) -> set[Place]:
        taken, self._acquitted = self._acquitted, set()
        return taken

    def learn(self, known: dict[Place, Suspect]) -> None:
        """What the database holds now. Those acquitted here since it was asked stay so."""
        self._known = {place: suspect for place, suspect in known.items() if place not in self._acquitted}

    @property
    def has_news(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._unpublished or self._acquitted)

    @property
    def suspects(self) -> list[Place]:
        return [*self._known, *((left.queue, id) for left in self._unpublished for id in left.ids)]

    def close(self) -> None:
        self._recorder.close()

    def suspect(self, place: Place) -> Suspect | None:
        found = self._known.get(place)
        for left in self._unpublished:
            if left.queue == place[0] and place[1] in left.ids:
                before = found or Suspect()
                found = Suspect(crashes=before.crashes + 1, alone=before.alone + left.alone)
        return found


def _place(delivery: Delivery) -> Place:
    return delivery.queue, delivery.message.id
