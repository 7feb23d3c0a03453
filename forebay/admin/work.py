"""What lives as long as the admin process: its broker, and the redrives that it works on."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import structlog

from forebay.brokers.api import Broker
from forebay.dead_letters.redrive import Redrive
from forebay.errors import BrokerUnavailable, ForebayError
from forebay.storage.database import Database
from forebay.storage.redrive_jobs import Job, JobBusy, JobStore

log = structlog.get_logger()

LOOK_EVERY = 10.0
"""Seconds between two looks for redrives that a process that died has left."""

AGAIN = 5.0
"""Seconds until a broker that could not be opened is tried again."""

BrokerOpener = Callable[[], AbstractAsyncContextManager[Broker]]


@dataclass(slots=True)
class Line:
    """The broker, once it could be opened."""

    broker: Broker | None = None
    why: str = "it is being opened"

    def get(self) -> Broker:
        """
        Raises:
            BrokerUnavailable: it could not be opened yet.
        """
        if self.broker is None:
            raise BrokerUnavailable(self.why)
        return self.broker


@asynccontextmanager
async def line_to(opener: BrokerOpener) -> AsyncIterator[Line]:
    """A broker that is opened beside us, as soon as it can be: dead letters are readable without it."""
    line, end = Line(), asyncio.Event()

    async def keep() -> None:
        while not end.is_set():
            try:
                async with opener() as line.broker:
                    await end.wait()
            except ForebayError as error:
                line.why = str(error)
                log.warning("broker unreachable, trying again", reason=line.why, next_try_in=AGAIN)
                await _until(end, AGAIN)
            finally:
                line.broker = None

    task = asyncio.create_task(keep(), name="admin-broker")
    try:
        yield line
    finally:
        end.set()
        try:
            await asyncio.wait_for(task, 10.0)
        except TimeoutError:
            task.cancel()


class Workshop:
    """Runs redrives that the API began, also those that an admin process that died has left."""

    def __init__(self, database: Database, line: Line) -> None:
        self._database = database
        self._line = line
        self._jobs = JobStore(database)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stop = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self.owner = f"{socket.gethostname()}/{os.getpid()} admin"

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look(), name="admin-redrives")

    async def close(self) -> None:
        """Leave what is not done to the next admin process."""
        self._stop.set()
        if self._looking is not None:
            await self._looking
        await asyncio.gather(*self._tasks.values())

    def work_on(self, job: Job) -> None:
        """Go on with a job that is ours already."""
        task = asyncio.create_task(self._work_on(job), name=f"redrive-{job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))

    def works_on(self, id: str) -> bool:
        return id in self._tasks

    async def _work_on(self, job: Job) -> None:
        try:
            work = Redrive(self._line.get(), self._database, job, owner=self.owner)
            job = await work.run(self._stop, on_stop="release")
            log.info(
                "redrive", job=job.id, state=job.state, sent=job.sent, died_again=job.died_again, why=job.why
            )
        except ForebayError as error:
            # Its lease ends, and it is found again.
            log.warning("redrive interrupted", job=job.id, reason=str(error))
        except Exception:
            log.exception("redrive failed unexpectedly", job=job.id)

    async def _look(self) -> None:
        while not self._stop.is_set():
            try:
                if self._line.broker is not None:
                    for job in await asyncio.to_thread(self._jobs.abandoned, "api"):
                        if job.id not in self._tasks:
                            self.work_on(await asyncio.to_thread(self._jobs.acquire, job.id, self.owner))
            except JobBusy:
                pass  # Another admin process was faster.
            except ForebayError as error:
                log.warning("cannot look for redrives", reason=str(error))
            await _until(self._stop, LOOK_EVERY)


async def _until(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        pass
