"""Redrives under anything that can happen: crashes at any point, two workers, operators, deaths, arrivals."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from forebay.brokers.api import Death, Delivery, Failure, PublishResult
from forebay.dead_letters.redrive import Options, Redrive, create
from forebay.errors import PublishUnconfirmed
from forebay.message import Message
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from forebay.storage.messages import MessageStore
from forebay.storage.redrive_jobs import RESUMABLE, JobBusy, JobStore
from forebay.storage.schema import migrate
from tests.unit.dead_letters.world import bury

COUNT = 14
WORKERS = st.sampled_from(["one", "two"])
STEPS = st.integers(1, 12)


class Died(BaseException):
    """As `kill -9` does."""


class Redrives(RuleBasedStateMachine):
    """
    A queue is a list here; what is published waits until a rule consumes it.

    A worker dies at its n-th call of the database or the broker, before or after that has done its
    work; whatever happens, no message is lost, and each takes effect once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.database = Database(f"sqlite:///{self.folder}/forebay.db")
        migrate(self.database)
        self.letters, self.jobs = DeadLetterStore(self.database), JobStore(self.database)
        self.queue: list[Message] = []
        self.taken_by: dict[str, Counter[str]] = {}
        self.crashed = False

    @initialize()
    def start(self) -> None:
        self.ids = bury(self.database, COUNT)

    def teardown(self) -> None:
        try:
            self.end_in_order()
        finally:
            self.database.dispose()
            shutil.rmtree(self.folder)

    # ---- workers

    def work(self, id: str, owner: str, die_at: int | None, after: bool, unconfirmed: bool) -> None:
        left = die_at

        def fatal(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **more: Any) -> Any:
                nonlocal left
                if left is not None:
                    left -= 1
                    if left == 0 and not after:
                        raise Died
                result = call(*args, **more)
                if left == 0:
                    raise Died
                return result

            return wrapped

        machine = self

        class Broker:
            async def publish(
                self, queue: str, messages: Sequence[Message], *, timeout: float
            ) -> list[PublishResult]:
                def put() -> None:
                    machine.queue += messages
                    machine.taken_by.setdefault(id, Counter()).update(m.id for m in messages)

                fatal(put)()
                error = PublishUnconfirmed("no answer") if unconfirmed else None
                return [
                    PublishResult(message_id=m.id, error=error, durability=None if error else "synced")
                    for m in messages
                ]

        async def run() -> None:
            job = self.jobs.acquire(id, owner)
            redrive = Redrive(Broker(), self.database, job, owner=owner, poll=0.001)
            for part in (redrive._store, redrive._jobs):
                for name in ("take", "confirm_sent", "mark", "renew", "end"):
                    if hasattr(part, name):
                        setattr(part, name, fatal(getattr(part, name)))
            await redrive.run(asyncio.Event())

        try:
            asyncio.run(run())
        except Died:
            self.crashed = True
            # Nobody waits for the lease here: it is as if its time had passed.
            with self.database.begin() as connection:
                connection.exec_driver_sql(
                    "UPDATE redrive_jobs SET lease_until = '2020-01-01 00:00:00.000000'"
                )

    @rule(owner=WORKERS, canary=st.booleans(), queue=st.booleans(), limit=st.none() | st.integers(1, COUNT))
    def ask(self, owner: str, canary: bool, queue: bool, limit: int | None) -> None:
        which = DeadLetterFilter(status="dead", queue="orders" if queue else None)
        options = Options(canary=canary, patience=0.0, limit=limit)
        try:
            create(self.database, which, options, by=owner, origin="cli", owner=None)
        except JobBusy:
            pass

    @rule(
        data=st.data(),
        owner=WORKERS,
        die_at=st.none() | STEPS,
        after=st.booleans(),
        unconfirmed=st.booleans(),
    )
    def go_on(
        self, data: st.DataObject, owner: str, die_at: int | None, after: bool, unconfirmed: bool
    ) -> None:
        open_ = [job.id for job in self.jobs.list(limit=100, states=RESUMABLE)]
        if open_:
            self.work(data.draw(st.sampled_from(sorted(open_))), owner, die_at, after, unconfirmed)

    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        open_ = [job.id for job in self.jobs.list(limit=100, states=("running", "paused"))]
        if open_:
            self.jobs.stop(data.draw(st.sampled_from(sorted(open_))), by="ann")

    # ---- the consumer

    @rule(data=st.data(), dies=st.booleans())
    def consume(self, data: st.DataObject, dies: bool) -> None:
        if self.queue:
            self._consume(self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1))), dies)

    def _consume(self, message: Message, dies: bool) -> None:
        delivery = Delivery(message=message, queue="orders", attempt=1, receipt=None)
        if not dies:
            (result,) = MessageStore(self.database).write([delivery])
            assert result.error is None
            return
        failure = Failure(reason="bad", error_class="CheckViolation", destination="database")
        death = Death(failure=failure, queue="orders", attempts=1, died_at=datetime.now(UTC))
        self.letters.archive([replace(delivery, death=death)])

    # ---- what always holds

    @invariant()
    def nothing_is_lost(self) -> None:
        """What is not stored is dead, or in the queue, or taken by a job that will send it again."""
        waiting = {m.id for m in self.queue}
        for record in self.letters.list(DeadLetterFilter(), limit=COUNT):
            if record.status == "redriving" and record.id not in waiting:
                assert record.redriven_at is None, f"{record.id} is neither here nor there"
                assert self.jobs.get(str(record.redrive_job)).state != "done"

    @invariant()
    def no_job_sends_one_twice_unless_its_process_died(self) -> None:
        if not self.crashed:
            for job in self.jobs.list(limit=100):
                assert job.sent <= job.total
                if job.failed == 0 and job.state == "done":
                    sent = self.taken_by.get(job.id, Counter())
                    assert max(sent.values(), default=0) <= 1

    def end_in_order(self) -> None:
        """All jobs are gone on with, the rest is redriven, all is consumed: then each is stored, once."""
        for job in self.jobs.list(limit=100, states=RESUMABLE):
            for _ in range(10):
                if self.jobs.get(job.id).state == "done":
                    break
                self.work(job.id, "last", None, False, False)
                self._drain()
        for _ in range(3):
            which, options = DeadLetterFilter(status="dead"), Options(canary=False, max_died_share=1.0)
            job = create(self.database, which, options, by="last", origin="cli", owner=None)
            self.work(job.id, "last", None, False, False)
            self._drain()
        statuses = Counter(r.status for r in self.letters.list(DeadLetterFilter(), limit=2 * COUNT))
        assert statuses == {"resolved": COUNT}

    def _drain(self) -> None:
        while self.queue:
            self._consume(self.queue.pop(), dies=False)


TestRedrives = Redrives.TestCase
TestRedrives.settings = settings(
    max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
