"""
A thread that writes to the queue file: everything that waits goes into one transaction.

Nobody waits for company: an idle writer starts at once, and what arrives while it
is busy (with the turn, with the disk) is the next batch. So batches grow with the
load, and the cost of one fsync is shared by more messages just when it matters.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import apsw
import structlog

from forebay.brokers.sqlite import checkpoints
from forebay.brokers.sqlite.checkpoints import Checkpoints
from forebay.brokers.sqlite.files import SideFiles, Turn
from forebay.brokers.sqlite.schema import connect, one_row
from forebay.errors import BrokerClosed, BrokerError, BrokerUnavailable, SettingsError

log = structlog.get_logger()

_MAX_WEIGHT = 8 * 2**20
"""Bytes of bodies in one transaction, about: a burst must not make one huge one."""


class Job(Protocol):
    """One request to a writer. `deliver` is called exactly once, on the event loop."""

    @property
    def weight(self) -> int:
        """Bytes of bodies."""
        ...

    def apply(self, tx: Transaction) -> object:
        """Do it, on the writer's thread. What it returns is delivered after the commit."""
        ...

    def deliver(self, result: object) -> None:
        """Take the result, or the BrokerError."""
        ...

    def unknown(self, error: BrokerError) -> object:
        """What to deliver when the commit failed so that it may have been done, or not."""
        ...


@dataclass(slots=True)
class Transaction:
    """What a job may use while it is applied."""

    db: apsw.Connection
    now: int
    """Microseconds since the epoch."""
    ring: set[int] = field(default_factory=set)
    """Ids of queues that have something to take after the commit."""


class Writer:
    """
    One thread with one connection, started by the first job.

    `full_disk` says what to deliver when the disk was full: certainly not done.
    """

    def __init__(
        self,
        name: str,
        files: SideFiles,
        *,
        synchronous: Literal["full", "normal"],
        now: Callable[[], int],
        peek: Callable[[apsw.Connection, int, Job], object | None] | None = None,
        full_disk: Callable[[Job], object],
        may_use_ballast: bool,
    ) -> None:
        self._files = files
        self._synchronous = synchronous
        self._now = now
        self._peek = peek
        self._full_disk = full_disk
        self._may_use_ballast = may_use_ballast
        self._loop = asyncio.get_running_loop()
        self._mutex = threading.Lock()
        self._inbox: list[Job] = []
        self._stopping = False
        # A bare lock as a bell that remembers one ring: held means silent. Cheaper
        # than a Condition, and it is rung for every batch.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._thread: threading.Thread | None = None
        self._name = name
        self._db: apsw.Connection | None = None
        self._turn: Turn | None = None
        self._checkpoints = Checkpoints(files, synchronous=synchronous)
        self._dirty = False

    # ---- on the event loop

    def put(self, job: Job) -> None:
        with self._mutex:
            if self._stopping:
                raise BrokerClosed("this queue is closed")
            self._inbox.append(job)
        self._ring()
        if self._thread is None:
            # A daemon: another process that was stopped while it had the turn must
            # not keep this one from exiting.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def withdraw(self, job: Job) -> bool:
        """Take back a job that was not begun; False if it was."""
        with self._mutex:
            try:
                self._inbox.remove(job)
            except ValueError:
                return False
        return True

    async def stop(self, timeout: float) -> bool:
        """Do what is waiting and end the thread; False if it did not end in time."""
        with self._mutex:
            self._stopping = True
        if self._thread is None:
            return True
        self._ring()
        await asyncio.to_thread(self._thread.join, timeout)
        if not self._thread.is_alive():
            return True
        with self._mutex:
            abandoned, self._inbox = self._inbox, []
        for job in abandoned:
            job.deliver(BrokerUnavailable("the queue was closed while another process had the turn to write"))
        return False

    def join(self) -> None:
        """Wait for the thread to end, however long that takes."""
        if self._thread is not None:
            self._thread.join()

    def _ring(self) -> None:
        if self._bell.locked():
            try:
                self._bell.release()
            except RuntimeError:
                # The other thread that rang was quicker.
                pass

    # ---- on the thread

    def _run(self) -> None:
        try:
            while True:
                rung = self._bell.acquire(timeout=checkpoints.IDLE if self._dirty else -1)
                if not rung:
                    self._while_idle()
                    continue
                while self._inbox:
                    self._work()
                if self._stopping:
                    return
                # A subscription looks more often than that, and rings each time.
                if self._dirty and self._checkpoints.is_long_and_quiet():
                    self._while_idle()
        finally:
            self._checkpoints.close()
            self._close_connection()
            if self._turn is not None:
                self._turn.close()

    def _take(self) -> list[Job]:
        with self._mutex:
            jobs, weight = self._inbox, 0
            for i, job in enumerate(jobs):
                weight += job.weight
                if weight > _MAX_WEIGHT and i > 0:
                    self._inbox = jobs[i:]
                    return jobs[:i]
            self._inbox = []
            return jobs

    def _work(self) -> None:
        jobs: list[Job] = []
        outcomes: list[tuple[Job, object]] = []
        ring: set[int] = set()
        try:
            if self._turn is None:
                self._turn = Turn(self._files.directory)
            if self._db is None:
                self._db = self._connect()
            if self._peek is not None:
                jobs = self._take()
                jobs = self._answer_by_looking(self._db, jobs, outcomes)
                self._deliver(outcomes)
                if not jobs:
                    return
            with self._turn:
                # Taken only now: what reaches its deadline while we wait for the
                # turn can still be withdrawn, and then was certainly not stored.
                jobs += self._take()
                if jobs:
                    ring = self._transaction(self._db, jobs, outcomes)
                jobs = []
                self._deliver(outcomes)
                self._checkpoints.after_commit(self._db)
            if ring:
                self._files.bells.ring(ring)
        except BrokerError as error:
            outcomes += [(job, error) for job in (jobs or self._take())]
        except (apsw.Error, OSError, SettingsError) as error:
            # The last of these: what is found at the path is no queue any more, or may not be written.
            log.warning("the queue file failed", path=str(self._files.database), error=str(error))
            self._close_connection()
            refusal = BrokerUnavailable(f"cannot write {self._files.database}: {error}")
            outcomes += [(job, refusal) for job in (jobs or self._take())]
        except Exception as error:
            # A bug; those who wait must hear of it all the same.
            log.exception("a queue writer failed")
            self._close_connection()
            bug = BrokerUnavailable(f"internal error: {error!r}")
            outcomes += [(job, bug) for job in (jobs or self._take())]
        finally:
            self._deliver(outcomes)

    def _answer_by_looking(
        self, db: apsw.Connection, jobs: Sequence[Job], outcomes: list[tuple[Job, object]]
    ) -> list[Job]:
        """Answer the jobs that need no write, without waiting for the turn; return the others."""
        assert self._peek is not None
        answers = [(job, self._peek(db, self._now(), job)) for job in jobs]
        # Only now that none has failed: each job gets one answer.
        outcomes += [(job, answer) for job, answer in answers if answer is not None]
        return [job for job, answer in answers if answer is None]

    def _transaction(
        self, db: apsw.Connection, jobs: Sequence[Job], outcomes: list[tuple[Job, object]]
    ) -> set[int]:
        """Do the jobs in one transaction; return the queues to ring for."""
        for last_try in (False, True):
            tx = Transaction(db, self._now())
            try:
                self._heal(db)
                db.execute("begin immediate")
                results = [(job, job.apply(tx)) for job in jobs]
            except apsw.FullError:
                self._roll_back(db)
                if not last_try and self._give_up_ballast():
                    continue
                outcomes += [(job, self._full_disk(job)) for job in jobs]
                return set()
            except BaseException:
                self._roll_back(db)
                raise
            try:
                db.execute("commit")
            except apsw.FullError:
                self._roll_back(db)
                if not last_try and self._give_up_ballast():
                    continue
                outcomes += [(job, self._full_disk(job)) for job in jobs]
                return set()
            except apsw.Error as error:
                # The kernel reports a failed fsync once and then forgets the pages;
                # whether they are on the disk nobody can tell. Trying the fsync
                # again would succeed and prove nothing.
                log.error(
                    "the disk failed while committing", path=str(self._files.database), error=str(error)
                )
                self._files.mark_suspect()
                self._close_connection()
                why = BrokerUnavailable(
                    f"the disk failed while committing to {self._files.database}: {error}"
                )
                outcomes += [(job, job.unknown(why)) for job in jobs]
                return set()
            self._dirty = True
            outcomes += results
            return tx.ring
        raise AssertionError("unreachable")

    def _give_up_ballast(self) -> bool:
        if not self._may_use_ballast or not self._files.ballast.release():
            return False
        log.warning(
            "the disk is full; gave up the ballast to go on acknowledging", path=str(self._files.database)
        )
        return True

    def _roll_back(self, db: apsw.Connection) -> None:
        if db.in_transaction:
            try:
                db.execute("rollback")
            except apsw.Error:
                self._close_connection()

    def _heal(self, db: apsw.Connection) -> None:
        """After a failed fsync: copy the whole log into the file, which writes the pages anew."""
        if not self._files.is_suspect():
            return
        busy, _, _ = one_row(db, "pragma wal_checkpoint(truncate)")
        if busy:
            raise BrokerUnavailable("the queue file is being rewritten after a failed fsync")
        self._files.clear_suspect()
        log.warning("rewrote the queue file after a failed fsync", path=str(self._files.database))

    def _deliver(self, outcomes: list[tuple[Job, object]]) -> None:
        if not outcomes:
            return
        try:
            self._loop.call_soon_threadsafe(_deliver_all, list(outcomes))
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            pass
        outcomes.clear()

    # ---- connection and checkpoints

    def _connect(self) -> apsw.Connection:
        db = connect(self._files.database, synchronous=self._synchronous)
        self._checkpoints.watch(db)
        return db

    def _close_connection(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            try:
                db.close(True)
            except apsw.Error as error:
                log.warning("closing the queue file failed", error=str(error))

    def _while_idle(self) -> None:
        assert self._turn is not None
        self._dirty = False
        try:
            with self._turn:
                if self._db is not None:
                    self._checkpoints.while_idle(self._db)
        except (apsw.Error, OSError) as error:
            log.warning("moving the log into the queue file failed; tried again later", error=str(error))
            self._close_connection()


def _deliver_all(outcomes: list[tuple[Job, object]]) -> None:
    for job, result in outcomes:
        job.deliver(result)
