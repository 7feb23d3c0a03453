"""The table of redrive jobs: what was asked for, how far it is, and which process works on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import orjson
import sqlalchemy as sa

from forebay import ids
from forebay.errors import ForebayError, MessageRejected
from forebay.storage import audit
from forebay.storage.clock import server_time
from forebay.storage.database import Database
from forebay.storage.dead_letter_types import DeadLetterFilter
from forebay.storage.tables import dead_letters
from forebay.storage.tables import redrive_jobs as table

JobState = Literal["running", "paused", "stopped", "done", "failed"]

RESUMABLE: tuple[JobState, ...] = ("running", "paused", "stopped", "failed")

LEASE = 60.0
"""Seconds without a sign of life after which another process may go on with a job."""


class JobNotFound(ForebayError):
    """There is no such job."""


class JobBusy(ForebayError):
    """Another process works on it, another job is over the same dead letters, or it is over."""

    def __init__(self, text: str, job: Job) -> None:
        super().__init__(text)
        self.job = job


class LeaseLost(ForebayError):
    """The job was stopped, or another process has taken it over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One redrive, as the table has it."""

    id: str
    selection: dict[str, Any]
    """As `DeadLetterFilter.as_json` has it."""
    requested_by: str
    origin: str
    """Who goes on with it when its process dies: "cli" the operator, "api" any admin process."""
    state: JobState
    why: str
    """Why it is paused, stopped or failed; empty otherwise."""
    canary: bool
    stage: int
    """From 0; the last one is all the rest."""
    stage_sent: int
    """How many were sent when the stage began, and with the next how it is judged."""
    stage_died: int
    rate: float | None
    """Messages per second at most."""
    max_died_share: float
    """It stops when more than this share of what a stage sent dies again."""
    patience: float
    """Seconds to wait after a stage for what it sent."""
    total: int
    """How many it is to send."""
    sent: int
    arrived: int
    died_again: int
    failed: int
    """Not sent: the broker did not take them. They are dead as before."""
    created_at: datetime
    changed_at: datetime
    ended_at: datetime | None
    lease_owner: str | None
    lease_until: datetime | None

    @property
    def which(self) -> DeadLetterFilter:
        return DeadLetterFilter.from_json(self.selection)

    @property
    def on_their_way(self) -> int:
        """Sent, and neither arrived nor dead again yet."""
        return max(0, self.sent - self.arrived - self.died_again)

    @property
    def over(self) -> bool:
        return self.state in ("done", "stopped", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of the dead letters of one job."""

    unsent: int
    """Taken, and not known to be on the broker: a process died in between."""
    sent: int
    arrived: int
    died_again: int


class JobStore:
    """The `redrive_jobs` of one database. Raises as `Database.begin` does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        which: DeadLetterFilter,
        *,
        total: int,
        by: str,
        origin: str,
        owner: str | None,
        canary: bool,
        rate: float | None,
        max_died_share: float,
        patience: float,
    ) -> Job:
        """
        A new job over `which`, running. With `owner` it is that process's from the start.

        Raises:
            JobBusy: a job over the same selection is not over.
        """
        selection = which.as_json()
        key = hashlib.sha256(orjson.dumps(selection, option=orjson.OPT_SORT_KEYS)).hexdigest()
        if (other := self._holder(key)) is not None:
            raise _same_selection(other)
        id = ids.new_id()
        try:
            with self._database.begin() as connection:
                now = server_time(self._database, connection)
                connection.execute(
                    sa.insert(table).values(
                        id=id, selection=selection, selection_key=key, requested_by=by[:200], origin=origin,
                        state="running", why="", canary=canary, stage=0, stage_sent=0, stage_died=0,
                        rate=rate, max_died_share=max_died_share, patience=patience, total=total, sent=0,
                        arrived=0, died_again=0, failed=0, created_at=now, changed_at=now, lease_owner=owner,
                        lease_until=now + timedelta(seconds=LEASE) if owner else None,
                    )
                )  # fmt: skip
                detail = f"job {id}" + (", canary" if canary else "") + (f", {rate:g}/s" if rate else "")
                audit.record(
                    self._database, connection, who=by, action="redrive", queue=which.queue,
                    selection=selection, count=total, detail=detail,
                )  # fmt: skip
        except MessageRejected:
            # The unique key: another operator pressed at the same moment.
            if (other := self._holder(key)) is None:
                raise
            raise _same_selection(other) from None
        return self.get(id)

    def get(self, id: str) -> Job:
        """
        The job with its counts of this moment.

        Raises:
            JobNotFound.
        """
        with self._database.read() as connection:
            row = connection.execute(sa.select(*_FIELDS).where(table.c.id == id)).mappings().one_or_none()
            if row is None:
                raise JobNotFound(f"there is no redrive job {id}; those there are: forebay dead-letters jobs")
            return _with_tally(row, _tally(connection, id))

    def list(self, *, limit: int, states: Collection[JobState] | None = None) -> Jobs:
        """The latest first."""
        query = sa.select(*_FIELDS).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit)
        if states is not None:
            query = query.where(table.c.state.in_(states))
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
            return [_with_tally(row, _tally(connection, row["id"])) for row in rows]

    def tally(self, id: str) -> Tally:
        with self._database.read() as connection:
            return _tally(connection, id)

    def abandoned(self, origin: str) -> Jobs:
        """Running jobs of this origin that no process works on."""
        with self._database.read() as connection:
            now = server_time(self._database, connection)
        free = sa.or_(table.c.lease_until.is_(None), table.c.lease_until < now)
        query = sa.select(*_FIELDS).where(table.c.state == "running", table.c.origin == origin, free)
        with self._database.read() as connection:
            return [Job(**row) for row in connection.execute(query).mappings()]

    def acquire(self, id: str, owner: str, *, by: str | None = None) -> Job:
        """
        Make the job this process's, and running. `by` resumes it; None goes on with it.

        Raises:
            JobNotFound.
            JobBusy: another process works on it, or it is done.
        """
        job = self.get(id)
        # What made it stop must not stop it again: from here on it is judged anew.
        anew = {"stage_sent": job.sent, "stage_died": job.died_again} if job.over else {}
        with self._database.begin() as connection:
            now = server_time(self._database, connection)
            free = sa.or_(
                table.c.lease_until.is_(None), table.c.lease_until < now, table.c.lease_owner == owner
            )
            took = connection.execute(
                sa.update(table)
                .where(table.c.id == id, table.c.state.in_(RESUMABLE), free)
                .values(
                    state="running", why="", ended_at=None, changed_at=now,
                    lease_owner=owner, lease_until=now + timedelta(seconds=LEASE), **anew,
                )
            ).rowcount  # fmt: skip
            if took and by is not None:
                audit.record(
                    self._database, connection, who=by, action="redrive-resume", selection=job.selection,
                    queue=job.selection.get("queue"), count=max(0, job.total - job.sent), detail=f"job {id}",
                )  # fmt: skip
        if not took:
            job = self.get(id)
            if job.state == "done":
                raise JobBusy(f"redrive job {id} is done: {job.sent} of {job.total} were sent", job)
            raise JobBusy(
                f"{job.lease_owner} works on redrive job {id}; if that process is gone, another may go on"
                f" {LEASE:g} s after its last sign of life",
                job,
            )
        return self.get(id)

    def renew(self, id: str, owner: str, **changes: object) -> None:
        """
        A sign of life; `changes` are columns to write.

        Raises:
            LeaseLost: it was stopped, or is another process's now.
        """
        self._write(id, owner, lambda now: {"lease_until": now + timedelta(seconds=LEASE)} | changes)

    def end(self, id: str, owner: str, *, state: JobState, why: str, by: str, failed: int) -> Job:
        """
        Let go of the job, whatever it has come to.

        Raises:
            LeaseLost: it was stopped, or is another process's now.
        """
        tally = self.tally(id)
        over = {"ended_at": None, "lease_owner": None, "lease_until": None}
        counts = {"sent": tally.sent, "arrived": tally.arrived, "died_again": tally.died_again}

        def changes(now: datetime) -> dict[str, object]:
            found = over | counts | {"state": state, "why": why, "failed": failed}
            return found if state == "paused" else found | {"ended_at": now, "selection_key": None}

        self._write(id, owner, changes)
        with self._database.begin() as connection:
            audit.record(
                self._database, connection, who=by, action="redrive-end", count=tally.sent,
                detail=f"job {id} is {state}{f' ({why})' if why else ''}: {tally.arrived} arrived,"
                f" {tally.died_again} died again, {failed} could not be sent",
            )  # fmt: skip
        return self.get(id)

    def release(self, id: str, owner: str) -> None:
        """Leave it running, for another process to go on with."""
        with suppress(LeaseLost):
            self._write(id, owner, lambda _: {"lease_owner": None, "lease_until": None})

    def stop(self, id: str, *, by: str) -> Job:
        """
        End the job, whoever works on it: that process sees it before its next page.

        Raises:
            JobNotFound.
            JobBusy: it is over.
        """
        job = self.get(id)
        with self._database.begin() as connection:
            now = server_time(self._database, connection)
            stopped = connection.execute(
                sa.update(table)
                .where(table.c.id == id, table.c.state.in_(("running", "paused")))
                .values(
                    state="stopped", why=f"stopped by {by}", changed_at=now, ended_at=now,
                    selection_key=None, lease_owner=None, lease_until=None,
                    sent=job.sent, arrived=job.arrived, died_again=job.died_again,
                )
            ).rowcount  # fmt: skip
            if stopped:
                audit.record(
                    self._database, connection, who=by, action="redrive-stop", selection=job.selection,
                    queue=job.selection.get("queue"), count=max(0, job.total - job.sent), detail=f"job {id}",
                )  # fmt: skip
        job = self.get(id)
        if not stopped:
            raise JobBusy(f"redrive job {id} is {job.state} already", job)
        return job

    def _write(self, id: str, owner: str, changes: Callable[[datetime], dict[str, object]]) -> None:
        with self._database.begin() as connection:
            now = server_time(self._database, connection)
            written = connection.execute(
                sa.update(table)
                .where(table.c.id == id, table.c.lease_owner == owner, table.c.state == "running")
                .values(changed_at=now, **changes(now))
            ).rowcount
        if not written:
            job = self.get(id)
            raise LeaseLost(job.why or f"{job.lease_owner or 'another process'} has gone on with it")

    def _holder(self, key: str) -> Job | None:
        with self._database.read() as connection:
            query = sa.select(*_FIELDS).where(table.c.selection_key == key)
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else Job(**row)


# Inside the class above `list` is a method.
Jobs = list[Job]

_FIELDS = tuple(c for c in table.columns if c.name != "selection_key")


def _same_selection(other: Job) -> JobBusy:
    return JobBusy(
        f"redrive job {other.id} of {other.requested_by} over the same dead letters is {other.state};"
        f" see it: forebay dead-letters jobs {other.id}, go on with it: forebay dead-letters redrive"
        f" --resume {other.id}, or end it: forebay dead-letters redrive --stop {other.id}",
        other,
    )


def _tally(connection: sa.Connection, id: str) -> Tally:
    d = dead_letters.c
    query = (
        sa.select(d.status, d.redriven_at.is_not(None).label("sent"), sa.func.count().label("number"))
        .where(d.redrive_job == id)
        .group_by(d.status, d.redriven_at.is_not(None))
    )
    found = {(row.status, bool(row.sent)): row.number for row in connection.execute(query)}
    unsent = found.get(("redriving", False), 0)
    return Tally(
        unsent=unsent,
        # What arrived or died again was sent, whether or not its process lived to write that.
        sent=sum(found.values()) - unsent,
        arrived=sum(n for (status, _), n in found.items() if status == "resolved"),
        died_again=sum(n for (status, _), n in found.items() if status in ("dead", "discarded")),
    )


def _with_tally(row: sa.RowMapping, tally: Tally) -> Job:
    values = dict(row)
    # A later job may have taken some of them over: what was counted before stays.
    for name in ("sent", "arrived", "died_again"):
        values[name] = max(values[name], getattr(tally, name))
    return Job(**values)
