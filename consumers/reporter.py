"""What the consumers of one process tell the database of their queues, and learn from the others there."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from consumers.sinks.threads import SinkThreads
from consumers.status import QueueStatus
from consumers.supervisor import Supervisor
from forebay.brokers.api import Broker, Depth
from forebay.brokers.naming import dead_letter_queue
from forebay.errors import BrokerError
from forebay.figures import Figures, Place, complete
from forebay.storage.database import Database
from forebay.storage.reports import (
    FRESH,
    LeftBehind,
    QueueReport,
    exchange,
    left_behind,
    open_dead_letters,
    withdraw,
)

log = structlog.get_logger()

T = TypeVar("T")

DEPTH_TIMEOUT = 3.0
DATABASE_TIMEOUT = 3.0
COUNT_EVERY = 30.0
"""Seconds between two counts of the dead letters in the database."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The consumers of one broker, and how that is reached, without credentials."""

    supervisor: Supervisor
    url: str


def process_name() -> str:
    """A name for this process that no other has: process ids repeat, in containers they are often all 1."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}-{secrets.token_hex(2)}"


class Reporter:
    """
    Asks the brokers how much they hold and exchanges that with the other consumers.

    Never in the way: it has a thread of its own, and a database that is away only
    means that nobody is told and nothing is learned.
    """

    def __init__(self, database: Database | None, process: str) -> None:
        self._database = database
        self._threads = SinkThreads("forebay-reports")
        self._process = process
        self._written_at: float | None = None
        self._trouble = ""
        self._counted_at = -COUNT_EVERY
        self._dead_letters: Mapping[str, int] = {}

    async def look(self, watched: Sequence[Watched]) -> dict[Place, Figures]:
        """The figures of every queue, by broker and queue; those of which nothing is known are absent."""
        reports = [report for reports in await asyncio.gather(*map(_report, watched)) for report in reports]
        if self._database is not None:
            now = time.monotonic()
            tidy = self._written_at is not None and now - self._written_at < FRESH
            try:
                figures = await self._ask(
                    partial(exchange, self._database, self._process, reports, tidy=tidy)
                )
            except Exception as error:
                self._failed(error)
            else:
                self._written_at, self._trouble = now, ""
                return figures
        return {(r.broker, r.queue): complete(r.depth, None) for r in reports if r.depth is not None}

    async def dead_letters(self) -> Mapping[str, int]:
        """Open dead letters by queue, counted now and then; what was counted last while nobody answers."""
        now = time.monotonic()
        if self._database is not None and now - self._counted_at >= COUNT_EVERY:
            try:
                self._dead_letters = await self._ask(partial(open_dead_letters, self._database))
            except Exception as error:
                self._failed(error)
            self._counted_at = now
        return self._dead_letters

    async def left_behind(self, watched: Sequence[Watched], urls: Sequence[str]) -> list[LeftBehind]:
        """Other brokers that may hold messages; none while the database cannot be asked."""
        if self._database is None:
            return []
        known = [w.supervisor.broker.identity for w in watched]
        try:
            return await self._ask(partial(left_behind, self._database, known=known, urls=urls))
        except Exception as error:
            self._failed(error)
            return []

    async def close(self) -> None:
        """Take back what this process reported: it holds nothing any more."""
        if self._database is not None:
            try:
                await self._ask(partial(withdraw, self._database, self._process))
            except Exception as error:
                self._failed(error)
        self._threads.close()

    async def _ask(self, call: Callable[[], T]) -> T:
        async with asyncio.timeout(DATABASE_TIMEOUT):
            return await self._threads.run(call)

    def _failed(self, error: Exception) -> None:
        reason = str(error) or "no answer in time"
        # Once: the consumers themselves say that the database is away.
        if reason != self._trouble:
            log.info("the database did not take the consumers' report", reason=reason)
        self._trouble = reason


async def _report(watched: Watched) -> list[QueueReport]:
    supervisor = watched.supervisor
    states = {status.queue: status for status in supervisor.snapshot()}
    found = []
    for queue in supervisor.queues:
        # The dead-letter queue second: what dies in between is counted twice rather than not at all.
        for name in (queue, dead_letter_queue(queue)):
            found.append(
                QueueReport(
                    broker=supervisor.broker.identity,
                    url=watched.url,
                    queue=name,
                    depth=await _depth(supervisor.broker, name),
                    # Now: the share and the depth are to be of one moment.
                    share=supervisor.share(name),
                    state=states[name].state if name in states else "",
                    pause_reason=_own_reason(states.get(name)),
                )
            )
    return found


def _own_reason(status: QueueStatus | None) -> str | None:
    """Why a queue is paused, unless `queue_controls` says it: that is known at once, a report only later."""
    if status is None or status.paused_by not in ("destination", "schedule"):
        return None
    return status.pause_reason


async def _depth(broker: Broker, queue: str) -> Depth | None:
    """The queue's depth; None while the broker does not tell, whatever the reason."""
    try:
        async with asyncio.timeout(DEPTH_TIMEOUT):
            return await broker.depth(queue)
    except (BrokerError, TimeoutError):
        return None
