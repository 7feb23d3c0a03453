"""Redrive jobs: stages, limits, stopping, going on, and two who press at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from forebay.brokers.api import Publisher
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.dead_letters.redrive import Options, Redrive, create
from forebay.storage import audit
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from forebay.storage.redrive_jobs import Job, JobBusy, JobNotFound, JobStore
from tests.unit.dead_letters.world import Consumed, Down, bury, statuses
from tests.unit.storage.deliveries import dead

DEAD = DeadLetterFilter(status="dead")
PLAIN = Options(canary=False)
CANARY = Options(patience=5.0)


class Died(BaseException):
    """As `kill -9` does, nothing that the engine handles."""


def made(database: Database, options: Options, which: DeadLetterFilter = DEAD, owner: str = "me") -> Job:
    return create(database, which, options, by="ann", origin="cli", owner=owner)


async def run(publisher: Publisher, database: Database, job: Job, owner: str = "me") -> Job:
    return await Redrive(publisher, database, job, owner=owner, poll=0.01).run(asyncio.Event())


async def test_a_canary_sends_1_then_10_then_100_then_the_rest(database: Database) -> None:
    ids = bury(database, 150)
    broker = Consumed(database)

    job = await run(broker, database, made(database, CANARY))

    assert (job.state, job.total, job.sent, job.arrived, job.died_again) == ("done", 150, 150, 150, 0)
    assert broker.ids == ids
    assert broker.calls == 4
    assert statuses(database) == {"resolved": 150}


async def test_one_that_dies_at_the_first_stage_stops_it(database: Database) -> None:
    bury(database, 50)

    job = await run(Consumed(database, bad={b"0"}), database, made(database, CANARY))

    assert (job.state, job.sent, job.died_again) == ("stopped", 1, 1)
    assert "the first one did" in job.why
    assert statuses(database) == {"dead": 50}


@pytest.mark.parametrize(("bad", "state", "sent"), [(1, "done", 50), (2, "stopped", 11)])
async def test_more_than_the_share_that_may_die_stops_it(
    database: Database, bad: int, state: str, sent: int
) -> None:
    """Of the ten of the second stage one is 10 %, and two are more."""
    bury(database, 50)
    broker = Consumed(database, bad={b"%d" % n for n in range(1, 1 + bad)})

    job = await run(broker, database, made(database, CANARY))

    assert (job.state, job.sent, job.died_again) == (state, sent, bad)


async def test_without_a_canary_it_stops_too_once_many_die(database: Database) -> None:
    ids = bury(database, 30)
    broker = Consumed(database, bad={b"%d" % n for n in range(30)})
    job = made(database, Options(canary=False, rate=2.0))

    job = await run(broker, database, job)

    assert job.state == "stopped"
    assert job.died_again < len(ids)


async def test_what_does_not_arrive_pauses_it_and_says_why(database: Database) -> None:
    bury(database, 20)
    broker = Consumed(database, lost={b"0"})

    job = await run(broker, database, made(database, Options(patience=0.05)))

    assert (job.state, job.sent, job.on_their_way) == ("paused", 1, 1)
    assert "does a consumer run" in job.why


async def test_a_paused_job_goes_on_where_it_was(database: Database) -> None:
    ids = bury(database, 20)
    broker = Consumed(database, lost={b"0"})
    job = await run(broker, database, made(database, Options(patience=0.05)))
    (first,) = DeadLetterStore(database).list(DeadLetterFilter(ids=[ids[0]]), limit=1)
    assert first.status == "redriving"

    broker.lost = ()
    broker._consume("orders", [m for _, m in broker.sent])  # It arrives after all.
    job = JobStore(database).acquire(job.id, "other", by="bob")
    job = await run(broker, database, job, "other")

    assert (job.state, job.arrived) == ("done", 20)
    assert sorted(broker.ids) == sorted(ids)
    assert [e.action for e in audit.entries(database, limit=9)] == [
        "redrive-end", "redrive-resume", "redrive-end", "redrive",
    ]  # fmt: skip


async def test_a_job_that_stopped_is_judged_anew_when_it_is_resumed(database: Database) -> None:
    bury(database, 50)
    broker = Consumed(database, bad={b"0"})
    job = await run(broker, database, made(database, CANARY))
    assert job.state == "stopped"

    job = JobStore(database).acquire(job.id, "me", by="ann")
    job = await run(broker, database, job)

    assert (job.state, job.sent, job.died_again) == ("done", 50, 1)
    assert len(set(broker.ids)) == len(broker.ids)


async def test_a_broker_that_is_away_fails_it_at_once(database: Database) -> None:
    bury(database, 150)

    job = await run(Down(), database, made(database, PLAIN))

    assert (job.state, job.sent, job.failed, job.why) == ("failed", 0, 100, "connection refused")
    assert statuses(database) == {"dead": 150}


async def test_one_that_cannot_be_sent_does_not_hold_up_the_rest(database: Database) -> None:
    broker = MemoryBroker(MemoryServer())
    await broker.declare("orders")
    DeadLetterStore(database).archive([dead(b"1", queue="gone"), dead(b"2", minute=1)])
    job = made(database, PLAIN)

    redrive = Redrive(broker, database, job, owner="me")
    job = await redrive.run(asyncio.Event())

    assert (job.state, job.sent, job.failed) == ("done", 1, 1)
    assert "'gone' is not declared" in redrive.why


@pytest.mark.parametrize("call", [1, 2, 3])
async def test_a_process_that_dies_before_a_publish_leaves_nothing_behind(
    database: Database, call: int
) -> None:
    ids = bury(database, 30)

    def die(number: int) -> None:
        if number == call:
            raise Died

    job = made(database, CANARY)
    with pytest.raises(Died):
        await run(Consumed(database, before=die), database, job)

    # The lease of the dead one is the same owner's, so that the test need not wait for its end.
    broker = Consumed(database)
    job = await run(broker, database, JobStore(database).acquire(job.id, "me"))

    assert (job.state, job.arrived) == ("done", 30)
    assert statuses(database) == {"resolved": 30}
    assert set(broker.ids) <= set(ids)


async def test_a_process_that_dies_after_a_publish_sends_those_again_with_one_effect(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(database, 5)
    broker = Consumed(database, lost={b"%d" % n for n in range(5)})

    def die(*_: object) -> None:
        raise Died

    job = made(database, PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(DeadLetterStore, "confirm_sent", die)
        with pytest.raises(Died):
            await run(broker, database, job)

    broker.lost = ()
    job = await run(broker, database, JobStore(database).acquire(job.id, "me"))

    assert (job.state, job.sent, job.arrived) == ("done", 5, 5)
    assert len(broker.ids) == 10


async def test_two_jobs_over_overlapping_letters_send_each_once(
    database: Database, another: Callable[[], Database]
) -> None:
    ids = bury(database, 120)
    one, other = Consumed(database), Consumed(another())

    first, second = await asyncio.gather(
        run(one, database, made(database, PLAIN)),
        run(other, another(), made(database, PLAIN, DeadLetterFilter(status="dead", queue="orders"))),
    )

    assert sorted(one.ids + other.ids) == sorted(ids)
    assert first.sent + second.sent == 120


async def test_a_second_job_over_the_same_selection_is_refused_while_the_first_is_not_over(
    database: Database,
) -> None:
    bury(database, 3)
    job = made(database, PLAIN)

    with pytest.raises(JobBusy, match=f"redrive job {job.id} of ann over the same dead letters is running"):
        made(database, PLAIN)

    await run(Consumed(database), database, job)
    assert made(database, PLAIN).total == 0


async def test_only_one_process_works_on_a_job(database: Database) -> None:
    bury(database, 3)
    job = made(database, PLAIN)
    jobs = JobStore(database)

    with pytest.raises(JobBusy, match="me works on redrive job"):
        jobs.acquire(job.id, "other")
    jobs.release(job.id, "me")
    assert jobs.acquire(job.id, "other").lease_owner == "other"
    done = await run(Consumed(database), database, job, "me")

    assert done.lease_owner == "other"
    assert done.sent == 0


async def test_a_job_that_is_stopped_by_somebody_sends_no_more(database: Database) -> None:
    bury(database, 300)
    jobs = JobStore(database)
    job = made(database, PLAIN)

    def stop(number: int) -> None:
        if number == 2:
            jobs.stop(job.id, by="bob")

    broker = Consumed(database, before=stop)
    job = await run(broker, database, job)

    assert (job.state, job.why, broker.calls) == ("stopped", "stopped by bob", 2)
    assert statuses(database) == {"resolved": 200, "dead": 100}
    with pytest.raises(JobBusy, match="is stopped already"):
        jobs.stop(job.id, by="bob")


async def test_an_interrupted_one_is_paused_or_left_to_others(database: Database) -> None:
    bury(database, 3)
    stop = asyncio.Event()
    stop.set()
    job = made(database, CANARY)

    left = await Redrive(Consumed(database), database, job, owner="me").run(stop, on_stop="release")
    assert (left.state, left.lease_owner) == ("running", None)
    job = JobStore(database).acquire(job.id, "me")
    paused = await Redrive(Consumed(database), database, job, owner="me").run(stop)

    assert (paused.state, paused.why) == ("paused", "interrupted")


def test_what_is_not_there_is_said(database: Database) -> None:
    with pytest.raises(JobNotFound):
        JobStore(database).get("019aaf0e-8d0c-7c52-b7a5-0d7f9f0f3a11")


def test_the_audit_tells_who_asked_for_what(database: Database) -> None:
    bury(database, 3)
    made(database, PLAIN)

    (entry,) = audit.entries(database, limit=9)

    assert (entry.who, entry.action, entry.count) == ("ann", "redrive", 3)
    assert entry.selection == {"status": "dead"}
