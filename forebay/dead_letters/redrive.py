"""
A redrive as a job: dead letters go back to their queues in stages, watched, and can be gone on with.

Each page is taken (`dead` becomes `redriving`, in one statement that decides between two
who press at once), published, and confirmed. The counts are those of the dead letters
themselves, so that a process that dies at any point leaves nothing to repair: whoever
goes on sends again what was taken and not confirmed, which has its effect once by its id.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import sqlalchemy as sa

from forebay.dead_letters.sending import first_of, send_back
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterRecord, DeadLetterStore
from forebay.storage.redrive_jobs import LEASE, Job, JobState, JobStore, LeaseLost, Tally
from forebay.storage.tables import dead_letters, redrive_jobs

if TYPE_CHECKING:
    from forebay.brokers.api import Publisher
    from forebay.storage.database import Database

STAGES = (1, 10, 100)
"""How many a canary sends before it looks what became of them. Then the rest."""

PAGE = 100

MAX_DIED_SHARE = 0.1
PATIENCE = 60.0
"""Seconds to wait for the messages of a stage."""

_FEW = 10
"""While a stage is on its way, one that died is not yet a share of anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a redrive is to be done."""

    canary: bool = True
    """1, then 10, then 100, then the rest, looking in between. One message alone needs none."""
    rate: float | None = None
    """Messages per second at most."""
    limit: int | None = None
    """Only so many, the oldest first."""
    max_died_share: float = MAX_DIED_SHARE
    patience: float = PATIENCE


class Watcher(Protocol):
    """Is told how a job goes on."""

    def advance(self, count: int = 1) -> None: ...

    def describe(self, text: str) -> None: ...


class _Nobody:
    def advance(self, count: int = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass


def count(database: Database, which: DeadLetterFilter, limit: int | None = None) -> int:
    """How many a redrive of `which` would send, to the message."""
    found = DeadLetterStore(database).count(which)
    return found if limit is None else min(found, limit)


def create(
    database: Database,
    which: DeadLetterFilter,
    options: Options,
    *,
    by: str,
    origin: Literal["cli", "api"],
    owner: str | None,
) -> Job:
    """
    A job over `which`, for `Redrive` to run.

    Raises:
        JobBusy: one over the same selection is not over.
    """
    total = count(database, which, options.limit)
    return JobStore(database).create(
        which,
        total=total,
        by=by,
        origin=origin,
        owner=owner,
        canary=options.canary and total > 1,
        rate=options.rate,
        max_died_share=options.max_died_share,
        patience=options.patience,
    )


def verdict(job: Job, tally: Tally, *, ended: bool) -> str:
    """Why the job must stop, judged by its stage; empty: it may go on. `ended`: the stage is all sent."""
    sent, died = tally.sent - job.stage_sent, tally.died_again - job.stage_died
    if job.canary and job.stage == 0:
        too_many = died > 0
    else:
        too_many = died > job.max_died_share * (sent if ended else max(sent, _FEW))
    if not too_many:
        return ""
    return f"{died} of {sent} sent in this stage died again, more than {job.max_died_share:.0%} allows" + (
        ": the first one did" if job.canary and job.stage == 0 else ""
    )


class Redrive:
    """One process's work on one job, which is this process's already."""

    def __init__(
        self,
        publisher: Publisher,
        database: Database,
        job: Job,
        *,
        owner: str,
        watcher: Watcher | None = None,
        poll: float = 0.25,
    ) -> None:
        self._publisher = publisher
        self._store = DeadLetterStore(database)
        self._jobs = JobStore(database)
        self._job = job
        self._owner = owner
        self._watcher = watcher or _Nobody()
        self._poll = poll
        self._status = job.which.status or "dead"
        self._last: DeadLetterRecord | None = None
        self._failed = 0
        self._blocked = False
        self._due = 0.0
        self.why = ""
        """The first reason why one could not be sent."""

    async def run(self, stop: asyncio.Event, *, on_stop: Literal["pause", "release"] = "pause") -> Job:
        """
        Go on with the job until it is over, or `stop` is set; return it as it is then.

        Raises:
            SinkUnavailable and its like: the database went away. The job can be resumed.
        """
        self._due = asyncio.get_running_loop().time()
        try:
            state, why = await self._go_on(stop)
            if stop.is_set() and state == "paused" and on_stop == "release":
                await asyncio.to_thread(self._jobs.release, self._job.id, self._owner)
                return await asyncio.to_thread(self._jobs.get, self._job.id)
            return await asyncio.to_thread(
                self._jobs.end,
                self._job.id,
                self._owner,
                state=state,
                why=why,
                by=self._job.requested_by,
                failed=self._failed,
            )
        except LeaseLost as lost:
            self.why = self.why or str(lost)
            return await asyncio.to_thread(self._jobs.get, self._job.id)

    async def _go_on(self, stop: asyncio.Event) -> tuple[JobState, str]:
        await self._finish_unsent()
        while True:
            job = self._job
            size = STAGES[job.stage] if job.canary and job.stage < len(STAGES) else None
            target = job.total if size is None else min(job.total, job.stage_sent + size)
            tally, more = await self._send_up_to(target, stop)
            if self._blocked:
                return "failed", self.why
            if why := verdict(job, tally, ended=False):
                return "stopped", why
            if job.canary and not stop.is_set():
                tally = await self._wait(tally, stop)
                if why := verdict(job, tally, ended=True):
                    return "stopped", why
            if stop.is_set():
                return "paused", "interrupted"
            if size is None or not more or tally.sent + self._failed >= job.total:
                return "done", ""
            if (open_ := tally.sent - tally.arrived - tally.died_again) > 0:
                return "paused", (
                    f"{open_} of {tally.sent} sent have neither arrived nor died after {job.patience:g} s:"
                    " does a consumer run, or do they wait for a retry?"
                )
            await self._renew(
                stage=job.stage + 1, stage_sent=tally.sent, stage_died=tally.died_again, failed=self._failed
            )
            self._job = await asyncio.to_thread(self._jobs.get, job.id)

    async def _finish_unsent(self) -> None:
        """Send what a process that died had taken: whether it was sent, nobody knows."""
        mine = DeadLetterFilter(redrive_job=self._job.id, status="redriving")
        unsent = dead_letters.c.redriven_at.is_(None)
        while page := await asyncio.to_thread(self._store.list, mine, limit=PAGE, bodies=True, where=unsent):
            await self._renew()
            await self._publish(page)
            if self._blocked:
                return

    async def _send_up_to(self, target: int, stop: asyncio.Event) -> tuple[Tally, bool]:
        """Send until `target` are sent in all; return how it stands, and whether there may be more."""
        loop = asyncio.get_running_loop()
        rate = self._job.rate
        largest = PAGE if rate is None else max(1, min(PAGE, int(rate)))
        tally = await asyncio.to_thread(self._jobs.tally, self._job.id)
        looked, done = loop.time(), tally.sent + self._failed
        while done < target and not self._blocked:
            if await self._pause(self._due - loop.time(), stop):
                break
            await self._renew(failed=self._failed)
            page = await asyncio.to_thread(self._next_page, min(largest, target - done))
            if not page:
                return await asyncio.to_thread(self._jobs.tally, self._job.id), False
            taken = await asyncio.to_thread(self._take, page)
            await self._publish(taken)
            done += len(taken)
            self._watcher.advance(len(taken))
            if rate is not None:
                self._due = max(self._due, loop.time() - 1.0) + len(taken) / rate
            if loop.time() - looked >= 1.0:
                tally, looked = await asyncio.to_thread(self._jobs.tally, self._job.id), loop.time()
                if verdict(self._job, tally, ended=False):
                    break
        return await asyncio.to_thread(self._jobs.tally, self._job.id), True

    async def _publish(self, records: list[DeadLetterRecord]) -> None:
        if not records:
            return
        sent = await send_back(self._publisher, records)
        await asyncio.to_thread(self._settle, sent.confirmed, sent.refused)
        self._failed += len(sent.refused)
        self._blocked |= sent.blocked
        self.why = self.why or sent.why

    async def _wait(self, tally: Tally, stop: asyncio.Event) -> Tally:
        """Until all that was sent has arrived or died again, patience ends, or too many have died."""
        loop = asyncio.get_running_loop()
        until, renewed, poll = loop.time() + self._job.patience, loop.time(), self._poll
        while tally.sent > tally.arrived + tally.died_again and loop.time() < until:
            self._watcher.describe(f"waiting for {tally.sent - tally.arrived - tally.died_again}")
            if await first_of(stop, min(poll, until - loop.time())):
                break
            poll = min(poll * 1.5, 2.0)
            if loop.time() - renewed > LEASE / 6:
                await self._renew()
                renewed = loop.time()
            tally = await asyncio.to_thread(self._jobs.tally, self._job.id)
            if verdict(self._job, tally, ended=True):
                break
        self._watcher.describe("sending back")
        return tally

    async def _pause(self, seconds: float, stop: asyncio.Event) -> bool:
        """Sleep as the rate demands, with signs of life."""
        while seconds > LEASE / 6 and not stop.is_set():
            await first_of(stop, LEASE / 6)
            await self._renew()
            seconds -= LEASE / 6
        return await first_of(stop, seconds)

    async def _renew(self, **changes: object) -> None:
        await asyncio.to_thread(self._renew_now, changes)

    def _renew_now(self, changes: dict[str, object]) -> None:
        self._jobs.renew(self._job.id, self._owner, **changes)

    # ---- in a thread

    def _next_page(self, size: int) -> list[DeadLetterRecord]:
        which = DeadLetterFilter.from_json(self._job.selection | {"status": self._status})
        page = self._store.list(which, limit=size, after=self._last, bodies=True, where=self._not_mine())
        self._last = page[-1] if page else self._last
        return page

    def _take(self, page: list[DeadLetterRecord]) -> list[DeadLetterRecord]:
        return self._store.take(
            page,
            status="redriving",
            expected=self._status,
            where=self._not_mine(),
            redrive_job=self._job.id,
            redriven_at=None,
            changed_by=self._job.requested_by,
        )

    def _settle(self, confirmed: list[DeadLetterRecord], refused: list[DeadLetterRecord]) -> None:
        if confirmed:
            self._store.confirm_sent(confirmed, self._job.id)
        if refused:
            self._store.mark(refused, status="dead", expected="redriving", redrive_job=None)

    def _not_mine(self) -> sa.ColumnElement[bool]:
        """Nothing twice in one job; of those on their way nothing that another job is sending now."""
        job = dead_letters.c.redrive_job
        free: sa.ColumnElement[bool] = job != self._job.id
        if self._status == "redriving":
            running = sa.select(redrive_jobs.c.id).where(redrive_jobs.c.state == "running")
            free = job.not_in(running)
        return sa.or_(job.is_(None), free)
