"""The embedded queue: one SQLite file, shared by all processes of one host."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import apsw
import structlog

from forebay.brokers.api import Capabilities, Depth, Durability, Finding, PublishResult, Subscription
from forebay.brokers.naming import DEAD_SUFFIX, check_queue_name, dead_letter_queue, is_dead_letter_queue
from forebay.brokers.sqlite import schema
from forebay.brokers.sqlite.consuming import Enter, Reap, Renew, look
from forebay.brokers.sqlite.files import SideFiles
from forebay.brokers.sqlite.opening import leave_clean, prepare
from forebay.brokers.sqlite.publishing import Declare, FutureJob, Limits, Ping, Publish, failed
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.brokers.sqlite.subscription import FALLBACK_POLL, PATIENCE, SQLiteSubscription
from forebay.brokers.sqlite.writer import Job, Writer
from forebay.errors import (
    BrokerClosed,
    BrokerUnavailable,
    PublishUnconfirmed,
    QueueNotFound,
)
from forebay.message import Message

log = structlog.get_logger()
T = TypeVar("T")

PING_TIMEOUT = 2.0
CLOSE_TIMEOUT = 3.0


class SQLiteBroker:
    """
    The queue file as one process sees it.

    Two writers, each a thread with its own connection: one publishes with an fsync
    per batch, one lends and settles without. Reads have a third connection, and
    never wait for a writer.
    """

    def __init__(
        self,
        files: SideFiles,
        settings: SQLiteSettings,
        clock: Callable[[], float],
        *,
        at_once: bool = False,
    ) -> None:
        self._files = files
        self._settings = settings
        self._clock = clock
        self._limits = Limits(files, settings, at_once=at_once)
        self._publisher = Writer(
            "forebay-publish",
            files,
            synchronous="full",
            now=self._now,
            full_disk=_refuse_on_full_disk,
            may_use_ballast=False,
        )
        self._consumer = Writer(
            "forebay-consume",
            files,
            synchronous="normal",
            now=self._now,
            peek=look,
            full_disk=lambda _: BrokerUnavailable(f"the disk under {files.database} is full"),
            may_use_ballast=True,
        )
        self._reader: apsw.Connection | None = None
        self._reading = threading.Lock()
        self._queue_ids: dict[str, int] = {}
        self._subscriptions: set[SQLiteSubscription] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @staticmethod
    @contextlib.asynccontextmanager
    async def open(
        path: Path,
        settings: SQLiteSettings | None = None,
        *,
        create: bool = True,
        clock: Callable[[], float] = time.time,
        at_once: bool = False,
    ) -> AsyncIterator[SQLiteBroker]:
        """
        Open the queue file; with `create`, make it and its directory if they are missing.

        With `at_once` what is published with a time to wait for is lent before it: for a journal, whose
        messages go on to a broker that does the waiting.

        Raises:
            SettingsError: the path cannot be a queue.
            BrokerUnavailable: it is one, but cannot be used now.
        """
        settings = settings or SQLiteSettings()
        files = await asyncio.to_thread(prepare, path, settings, create)
        broker = SQLiteBroker(files, settings, clock, at_once=at_once)
        try:
            yield broker
        finally:
            await broker.close()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            durability="synced",
            ordering="by_key",
            bounded=True,
            max_body_bytes=self._settings.max_body_bytes,
            retry_delays=None,
        )

    @property
    def identity(self) -> str:
        return f"embedded queue {self._files.database.resolve()}"

    # ---- publish

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        """
        As the contract says; what was not begun at the deadline is taken back.

        Then the call raises BrokerUnavailable: another process holds the file, and
        nothing of this call is or will be stored.
        """
        self._check_open()
        queue_id = self._queue_ids.get(queue) or await self._queue_id(queue)
        job = Publish(self._limits, queue_id, messages)

        def expire() -> None:
            if self._publisher.withdraw(job):
                job.deliver(BrokerUnavailable(self._no_turn(timeout)))
            else:
                job.deliver(
                    failed(messages, PublishUnconfirmed(f"no answer from the disk within {timeout:g} s"))
                )

        self._publisher.put(job)
        timer = asyncio.get_running_loop().call_later(timeout, expire)
        try:
            return await job.future  # type: ignore[return-value]  # the result of a Publish job
        finally:
            timer.cancel()

    async def declare(self, queue: str) -> Durability:
        self._check_open()
        check_queue_name(queue)
        if queue not in self._queue_ids:
            await self._run(self._publisher, Declare(queue), PATIENCE)
        return self.capabilities.durability

    # ---- consume

    @contextlib.asynccontextmanager
    async def subscribe(
        self, queue: str, *, prefetch: int, ordered: bool = False
    ) -> AsyncIterator[Subscription]:
        self._check_open()
        queue_id = await self._queue_id(queue)
        dead = None if is_dead_letter_queue(queue) else await self._queue_id(dead_letter_queue(queue))
        lease = self._settings.lease
        owner = await self._run(self._consumer, Enter(queue_id, self._files.process, lease), PATIENCE)
        assert isinstance(owner, int)
        subscription = SQLiteSubscription(
            writer=self._consumer,
            bell=self._files.bells.listen(queue_id),
            queue=queue,
            queue_id=queue_id,
            dead_queue_id=dead,
            owner=owner,
            prefetch=prefetch,
            ordered=ordered,
            process=self._files.process,
            lease=lease,
            now=self._now,
        )
        self._subscriptions.add(subscription)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="forebay-leases")
        try:
            yield subscription
        finally:
            await self._end(subscription)

    async def _end(self, subscription: SQLiteSubscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.discard(subscription)
            subscription.stop()
            await subscription.leave(CLOSE_TIMEOUT)

    async def _keep(self) -> None:
        """
        Renew our leases and take over those of the dead, while there are subscriptions.

        On the event loop on purpose: a process whose loop hangs loses its leases.
        """
        renew_every = self._settings.lease / 3
        renew_at = time.monotonic() + renew_every
        while True:
            await asyncio.sleep(min(FALLBACK_POLL, renew_every) * 0.8)
            own = [s.owner for s in self._subscriptions]
            try:
                for s in self._subscriptions:
                    s.release_unapplied()
                if own and time.monotonic() >= renew_at:
                    await self._run(self._consumer, Renew(own, self._settings.lease), PATIENCE)
                    renew_at = time.monotonic() + renew_every
                if own:
                    dead = await self._run(self._consumer, Reap(own, self._files.is_dead), PATIENCE)
                    assert isinstance(dead, set)
                    for process in dead:
                        log.info("took over the messages of a dead process", process=process)
                        self._files.forget(process)
            except BrokerUnavailable as error:
                log.warning("cannot renew leases; tried again", error=str(error))
            except BrokerClosed:
                return

    # ---- reads

    async def declared_queues(self) -> list[str]:
        def read(db: apsw.Connection) -> list[str]:
            names = [str(name) for (name,) in db.execute("select name from queue order by name")]
            return [name for name in names if not name.endswith(DEAD_SUFFIX)]

        return await self._read(read)

    async def depth(self, queue: str) -> Depth:
        queue_id = await self._queue_id(queue)
        now = self._now()

        def read(db: apsw.Connection) -> Depth:
            with db:
                counters = "select messages, bytes from queue where id = ?"
                messages, size = schema.one_row(db, counters, (queue_id,))
                lent, oldest_lent = schema.one_row(db, IN_HAND, (queue_id,))
                (scheduled,) = schema.one_row(db, COUNT_SCHEDULED, (queue_id, now))
                firsts = [oldest_lent]
                firsts += [db.execute(query, (queue_id,)).get for query in (FIRST_FRESH, FIRST_SCHEDULED)]
                first = min([seq for seq in firsts if seq is not None], default=None)
                accepted = None if first is None else db.execute(ACCEPTED, (first,)).get
            return Depth(
                waiting=messages - lent - scheduled,
                scheduled=scheduled,
                in_hand=lent,
                bytes=size,
                oldest_age=None if accepted is None else max(0.0, (now - accepted) / 1e6),
            )

        return await self._read(read)

    async def examine(self, queues: Sequence[str]) -> list[Finding]:
        """Nothing: disk and SQLite's version, all there is to judge, are looked at without it."""
        self._check_open()
        return []

    async def ping(self) -> None:
        self._check_open()
        await self._run(self._publisher, Ping(self._limits), PING_TIMEOUT)

    async def _read(self, query: Callable[[apsw.Connection], T]) -> T:
        self._check_open()

        def run() -> T:
            with self._reading:
                try:
                    if self._reader is None:
                        self._reader = schema.connect(self._files.database, synchronous="normal")
                    return query(self._reader)
                except apsw.Error as error:
                    raise BrokerUnavailable(f"cannot read {self._files.database}: {error}") from error

        return await asyncio.to_thread(run)

    async def _queue_id(self, queue: str) -> int:
        """
        Raises:
            QueueNotFound
        """
        self._check_open()
        found = self._queue_ids.get(queue)
        if found is None:
            # Queues are never deleted, so what was found once stays true.
            found = await self._read(
                lambda db: db.execute("select id from queue where name = ?", (queue,)).get
            )
            if found is None:
                raise QueueNotFound(queue)
            self._queue_ids[queue] = found
        return found

    # ---- the rest

    async def _run(self, writer: Writer, job: FutureJob, timeout: float) -> object:
        writer.put(job)
        try:
            async with asyncio.timeout(timeout):
                return await job.future
        except TimeoutError:
            writer.withdraw(job)
            raise BrokerUnavailable(self._no_turn(timeout)) from None

    def _no_turn(self, timeout: float) -> str:
        return f"no turn to write {self._files.database} within {timeout:g} s: another process holds it"

    def _now(self) -> int:
        return int(self._clock() * 1_000_000)

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed(f"the queue {self._files.database} was closed")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        subscriptions = list(self._subscriptions)
        for s in subscriptions:
            s.stop()
        await asyncio.gather(*[self._end(s) for s in subscriptions])
        ended = await asyncio.gather(self._publisher.stop(CLOSE_TIMEOUT), self._consumer.stop(CLOSE_TIMEOUT))
        await asyncio.to_thread(self._close_files, all(ended))

    def _close_files(self, ended: bool) -> None:
        with self._reading:
            if self._reader is not None:
                self._reader.close(True)
        if not ended:
            # A thread waits for a turn that another process does not let go of. It
            # ends when it gets it; until then it needs the files.
            log.warning("closed while another process held the queue file", path=str(self._files.database))
            threading.Thread(target=self._close_late, name="forebay-close", daemon=True).start()
            return
        try:
            if self._files.enter_door(CLOSE_TIMEOUT) and self._files.alone():
                leave_clean(self._files)
        finally:
            self._files.close()

    def _close_late(self) -> None:
        self._publisher.join()
        self._consumer.join()
        self._files.close()


COUNT_SCHEDULED = "select count(*) from slot where queue = ? and due > ?"
IN_HAND = "select count(*), min(l.seq) from owner o cross join lease l on l.owner = o.id where o.queue = ?"
FIRST_FRESH = "select seq from slot where queue = ? and due = 0 order by seq limit 1"
FIRST_SCHEDULED = "select seq from slot where queue = ? and due > 0 order by seq limit 1"
ACCEPTED = "select accepted_at from message where seq = ?"


def _refuse_on_full_disk(job: Job) -> object:
    return job.full_disk() if isinstance(job, Publish) else BrokerUnavailable("the disk is full")
