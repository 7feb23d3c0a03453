"""Requests that arrive together share one publish, and none of them waits past its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from forebay.brokers.api import PublishResult
from forebay.errors import BrokerError, BrokerUnavailable, PublishUnconfirmed
from forebay.message import Message
from gateway import group_commit
from gateway.group_commit import GroupCommit
from tests.unit.gateway.support import ScriptedBroker
from tests.waiting import until


@dataclass
class Waiting:
    message: Message
    deadline: float = 0.0
    answered: bool = False
    outcomes: list[PublishResult | BrokerError] = field(default_factory=list)
    expired: list[bool] = field(default_factory=list)


def waiting(name: str = "a", body: bytes = b"{}") -> Waiting:
    return Waiting(Message(id=name, body=body, accepted_at=datetime.now(UTC)))


class Commit:
    """A group commit that notes on each entry what it was told."""

    def __init__(self, publisher: Any, *, timeout: float = 5.0, **limits: Any) -> None:
        self.group: GroupCommit[Waiting] = GroupCommit(
            publisher, timeout=timeout, settled=self._settled, expired=self._expired, **limits
        )

    def _settled(
        self,
        queue: str,
        entries: list[Waiting],
        outcomes: Sequence[PublishResult | BrokerError],
        seconds: float,
    ) -> None:
        for entry, outcome in zip(entries, outcomes, strict=True):
            entry.outcomes.append(outcome)
            entry.answered = True

    def _expired(self, entry: Waiting, sent: bool) -> None:
        entry.expired.append(sent)
        entry.answered = True


@pytest.fixture
async def broker() -> ScriptedBroker:
    broker = ScriptedBroker()
    await broker.declare("orders")
    await broker.declare("clicks")
    return broker


async def test_what_arrives_in_one_turn_of_the_loop_is_one_publish(broker: ScriptedBroker) -> None:
    commit = Commit(broker)
    entries = [waiting(str(n)) for n in range(10)]
    for entry in entries:
        commit.group.add("orders", entry)
    await commit.group.close()

    assert [[m.id for m in messages] for _, messages in broker.publishes] == [[str(n) for n in range(10)]]
    assert all(isinstance(e.outcomes[0], PublishResult) and e.outcomes[0].ok for e in entries)


async def test_queues_do_not_wait_for_each_other(broker: ScriptedBroker) -> None:
    commit = Commit(broker)
    broker.gate.clear()
    commit.group.add("orders", waiting())
    commit.group.add("clicks", waiting())
    await until(lambda: broker.running == 2)
    broker.gate.set()
    await commit.group.close()


async def test_while_a_publish_runs_later_ones_gather(broker: ScriptedBroker) -> None:
    commit = Commit(broker)
    broker.gate.clear()
    commit.group.add("orders", waiting("first"))
    await broker.began.wait()
    for n in range(3):
        commit.group.add("orders", waiting(str(n)))
        await asyncio.sleep(0)
    broker.gate.set()
    await commit.group.close()

    assert [len(messages) for _, messages in broker.publishes] == [1, 3]


async def test_who_has_just_been_answered_may_join_those_who_waited(broker: ScriptedBroker) -> None:
    commit = Commit(broker)
    follow = waiting("c")
    told = commit.group._settled

    def answered(queue: str, entries: list[Waiting], outcomes: Any, seconds: float) -> None:
        told(queue, entries, outcomes, seconds)
        if entries[0].message.id == "a":
            # A client that has its answer sends the next one.
            asyncio.get_running_loop().call_later(0.001, commit.group.add, "orders", follow)

    commit.group._settled = answered
    broker.gate.clear()
    commit.group.add("orders", waiting("a"))
    await broker.began.wait()
    commit.group.add("orders", waiting("b"))
    # Such a publish: a part of this is what the next one waits for.
    await asyncio.sleep(0.05)
    broker.gate.set()
    await until(lambda: bool(follow.outcomes))
    await commit.group.close()

    assert [[m.id for m in messages] for _, messages in broker.publishes] == [["a"], ["b", "c"]]


async def test_enough_of_them_wait_no_longer_and_a_pause_ends_with_the_service(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "PART", 1_000.0)
    monkeypatch.setattr(group_commit, "MAX_PAUSE", 1_000.0)
    commit = Commit(broker, worthwhile=3)

    async def one_and_two_behind_it(name: str) -> None:
        broker.gate.clear()
        broker.began.clear()
        commit.group.add("orders", waiting(name))
        await broker.began.wait()
        commit.group.add("orders", waiting(f"{name}1"))
        commit.group.add("orders", waiting(f"{name}2"))
        broker.gate.set()
        await until(lambda: broker.running == 0)
        await asyncio.sleep(0)

    await one_and_two_behind_it("a")
    third = waiting("a3")
    commit.group.add("orders", third)
    await until(lambda: bool(third.outcomes))
    await one_and_two_behind_it("b")
    await commit.group.close()

    assert [[m.id for m in messages] for _, messages in broker.publishes] == [
        ["a"], ["a1", "a2", "a3"], ["b"], ["b1", "b2"],
    ]  # fmt: skip


async def test_publishes_in_flight_are_bounded(broker: ScriptedBroker) -> None:
    commit = Commit(broker, max_publishes=3, worthwhile=1)
    broker.gate.clear()
    for n in range(10):
        commit.group.add("orders", waiting(str(n)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert broker.running == 3
    broker.gate.set()
    await commit.group.close()

    assert broker.most_running == 3
    assert len(broker.messages) == 10


async def test_a_publish_is_bounded_in_messages_and_bytes(broker: ScriptedBroker) -> None:
    commit = Commit(broker, max_messages=4, max_bytes=10)
    for n in range(5):
        commit.group.add("orders", waiting(str(n), b"x"))
    for n in range(3):
        commit.group.add("clicks", waiting(str(n), b"x" * 6))
    await commit.group.close()

    sizes = [(queue, len(messages)) for queue, messages in broker.publishes]
    assert sorted(sizes) == [("clicks", 1), ("clicks", 1), ("clicks", 1), ("orders", 1), ("orders", 4)]


async def test_still_waiting_at_the_deadline_is_definitely_not_sent(broker: ScriptedBroker) -> None:
    commit = Commit(broker, timeout=0.05, max_publishes=1)
    broker.gate.clear()
    first, second = waiting("first"), waiting("second")
    commit.group.add("orders", first)
    await broker.began.wait()
    commit.group.add("orders", second)
    await until(lambda: bool(second.expired))

    assert second.expired == [False]
    broker.gate.set()
    await commit.group.close()
    assert [m.id for m in broker.messages] == ["first"]
    assert second.outcomes == []


async def test_in_a_running_publish_at_the_deadline_the_outcome_comes_later(broker: ScriptedBroker) -> None:
    commit = Commit(broker, timeout=0.05)
    broker.gate.clear()
    entry = waiting()
    commit.group.add("orders", entry)
    await until(lambda: bool(entry.expired))

    assert entry.expired == [True]
    broker.gate.set()
    await commit.group.close()
    assert len(entry.outcomes) == 1


async def test_what_the_publisher_reports_at_its_deadline_comes_before_the_entries_own() -> None:
    """It may know that nothing was stored, which is far better to hear than that nobody knows."""
    deadlines: list[float] = []

    class Stalled:
        async def publish(self, queue: str, messages: Sequence[Message], *, timeout: float) -> Any:
            deadlines.append(asyncio.get_running_loop().time() + timeout)
            raise BrokerUnavailable("no turn to write; nothing was stored")

    commit = Commit(Stalled(), timeout=60.0)
    entry = waiting()
    commit.group.add("orders", entry)
    await commit.group.close()

    assert deadlines[0] <= entry.deadline - 1.0
    assert isinstance(entry.outcomes[0], BrokerUnavailable)


async def test_a_publisher_that_never_reports_is_given_up_as_unconfirmed(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.group_commit.GRACE", 0.02)
    commit = Commit(broker, timeout=0.03)
    broker.gate.clear()
    entry = waiting()
    commit.group.add("orders", entry)
    await commit.group.close()

    assert entry.expired == [True]
    assert isinstance(entry.outcomes[0], PublishUnconfirmed)


async def test_a_watched_entry_expires_at_its_own_deadline(broker: ScriptedBroker) -> None:
    commit = Commit(broker, timeout=0.03)
    entry, answered = waiting(), waiting("b")
    commit.group.watch(answered)
    commit.group.watch(entry)
    answered.answered = True
    await until(lambda: bool(entry.expired))

    assert (entry.expired, answered.expired) == ([True], [])


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), PublishUnconfirmed("who knows")])
async def test_what_a_publish_raises_is_every_entrys_outcome(
    broker: ScriptedBroker, error: BrokerError
) -> None:
    commit = Commit(broker)
    broker.failures.append(error)
    entries = [waiting("a"), waiting("b")]
    for entry in entries:
        commit.group.add("orders", entry)
    await commit.group.close()

    assert [e.outcomes for e in entries] == [[error], [error]]


async def test_a_bug_in_the_driver_leaves_the_outcome_unknown(broker: ScriptedBroker) -> None:
    """Whatever the driver raises, or however few results it returns, nobody may be told `not stored`."""
    commit = Commit(broker)

    def bug(message: Message) -> PublishResult:
        raise ZeroDivisionError

    broker.failures.append(bug)
    entry = waiting()
    commit.group.add("orders", entry)
    await commit.group.close()

    assert isinstance(entry.outcomes[0], PublishUnconfirmed)


async def test_cancelling_a_publish_still_settles_its_entries(broker: ScriptedBroker) -> None:
    commit = Commit(broker)
    broker.gate.clear()
    entry = waiting()
    commit.group.add("orders", entry)
    await broker.began.wait()
    for task in list(commit.group._tasks):
        task.cancel()
    await commit.group.close()

    assert isinstance(entry.outcomes[0], PublishUnconfirmed)
