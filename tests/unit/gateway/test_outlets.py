"""Where each message of one publish goes, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from forebay.brokers.api import PublishResult
from forebay.brokers.memory import MemoryBroker
from forebay.errors import (
    BrokerUnavailable,
    DurabilityUnavailable,
    JournalFull,
    NotSent,
    PublishRejected,
    PublishUnconfirmed,
    QueueFull,
)
from forebay.journal.draining import Drain
from forebay.journal.journal import Journal
from forebay.message import Message
from gateway.outlets.outlet import Outlet, State
from gateway.outlets.publishing import Outlets
from tests.unit.gateway.support import Failure, ScriptedBroker
from tests.waiting import until


def message(name: str, key: str | None = None) -> Message:
    return Message(id=name, body=b"12345", key=key, accepted_at=datetime.now(UTC))


def refuse(error: Any) -> Callable[[Message], PublishResult]:
    return lambda m: PublishResult(message_id=m.id, error=error)


class Case:
    """A broker, a fallback and a journal."""

    def __init__(self, journal: Journal) -> None:
        self.broker, self.fallback = ScriptedBroker("replicated"), ScriptedBroker()
        self.outlets = Outlets(
            [Outlet(name, b, changed=lambda: None) for name, b in self.both()],
            budget=0.2,
            may_journal=lambda queue: queue != "strict",
            may_fall_back=lambda queue: queue not in ("ordered", "strict"),
        )
        self.outlets.journal = self.journal = journal

    def both(self) -> list[tuple[str, ScriptedBroker]]:
        return [("broker", self.broker), ("fallback-1", self.fallback)]

    async def ready(self) -> Case:
        for _, broker in self.both():
            for queue in ("orders", "ordered", "strict"):
                await broker.declare(queue)
        return self

    def fail(self, broker: Failure | None = None, fallback: Failure | None = None) -> None:
        for target, failure in ((self.broker, broker), (self.fallback, fallback)):
            target.failures += [] if failure is None else [failure]

    async def publish(self, *messages: Message, queue: str = "orders") -> list[Any]:
        results = await self.outlets.publish(queue, messages, timeout=2)
        return [r.durability or r.error for r in results]


@pytest.fixture
async def case() -> Case:
    journal = await Journal.of(MemoryBroker(), name="journal", max_bytes=100, max_age=1e6)
    return await Case(journal).ready()


AWAY = BrokerUnavailable("connection refused")


async def test_a_key_goes_behind_its_journaled_messages_and_nothing_else_does(case: Case) -> None:
    await case.journal.publish("orders", [message("a1", "a")], timeout=1)

    said = await case.publish(message("a2", "a"), message("b", "b"), message("c"))

    assert said == ["journaled", "replicated", "replicated"]


async def test_the_first_that_takes_it_has_it(case: Case) -> None:
    case.fail(AWAY)
    assert await case.publish(message("1")) == ["synced"]
    case.fail(fallback=AWAY)
    assert await case.publish(message("2")) == ["journaled"]
    assert case.outlets.outlets[0].state is State.AWAY


async def test_a_driver_that_fails_unexpectedly_is_asked_again(case: Case) -> None:
    case.broker.ping_error = RuntimeError("a bug of a driver")  # type: ignore[assignment]  # as drivers do
    case.fail(AWAY)
    assert await case.publish(message("1")) == ["synced"]
    await until(lambda: "RuntimeError" in case.outlets.outlets[0].reason)
    case.broker.ping_error = None
    await until(lambda: case.outlets.outlets[0].usable)


async def test_what_is_about_the_message_ends_there(case: Case) -> None:
    wrong = PublishRejected("a header is too long")
    case.fail(refuse(wrong))
    assert await case.publish(message("1")) == [wrong]
    assert case.journal.messages == 0
    assert case.outlets.outlets[0].state is State.WORKS


async def test_only_what_was_not_taken_goes_on(case: Case) -> None:
    case.fail(
        lambda m: (
            PublishResult(message_id=m.id, error=NotSent("no room"))
            if m.id == "2"
            else PublishResult(message_id=m.id, durability="replicated")
        )
    )
    assert await case.publish(message("1"), message("2"), message("3")) == [
        "replicated",
        "synced",
        "replicated",
    ]


async def test_a_full_queue_does_not_close_the_broker(case: Case) -> None:
    case.fail(refuse(QueueFull("at its limit")), refuse(QueueFull("at its limit")))
    assert await case.publish(message("1")) == ["journaled"]
    assert [o.state for o in case.outlets.outlets] == [State.WORKS] * 2


async def test_what_may_be_stored_somewhere_is_never_called_refused(case: Case) -> None:
    """Unconfirmed by the broker, refused by everything after it: nobody knows."""
    doubt = PublishUnconfirmed("the connection was lost")
    case.fail(refuse(doubt), AWAY)
    big = Message(id="1", body=b"x" * 200, accepted_at=datetime.now(UTC))
    assert await case.publish(big) == [doubt]


async def test_when_nothing_takes_it_the_journal_says_why(case: Case) -> None:
    case.fail(AWAY, AWAY)
    [error] = await case.publish(Message(id="1", body=b"x" * 200, accepted_at=datetime.now(UTC)))
    assert isinstance(error, JournalFull)


async def test_who_asks_for_more_is_never_given_less(case: Case) -> None:
    case.fail(AWAY)
    [result] = await case.outlets.reaching("replicated").publish("orders", [message("1")], timeout=2)
    assert isinstance(result.error, DurabilityUnavailable)
    [result] = await case.outlets.reaching("synced").publish("orders", [message("2")], timeout=2)
    assert result.durability == "synced"
    assert case.journal.messages == 0


async def test_a_queue_that_keeps_its_order_goes_to_no_fallback(case: Case) -> None:
    case.fail(AWAY)
    assert await case.publish(message("1"), queue="ordered") == ["journaled"]
    assert case.fallback.messages == []


async def test_a_queue_that_is_not_journaled_is_refused_and_the_reason_names_the_setting(case: Case) -> None:
    case.fail(AWAY)
    [error] = await case.publish(message("1"), queue="strict")
    assert isinstance(error, NotSent)
    assert "queues.strict.journal" in str(error)
    assert case.journal.messages == 0


async def test_one_publish_at_a_time_finds_out_whether_it_works_again(case: Case) -> None:
    outlet = case.outlets.outlets[0]
    outlet.state = State.TRIAL
    case.broker.gate.clear()
    first = asyncio.create_task(case.publish(message("1")))
    await case.broker.began.wait()
    assert await case.publish(message("2")) == ["synced"]
    case.broker.gate.set()
    assert await first == ["replicated"]
    works: State = outlet.state
    assert works is State.WORKS


async def test_at_the_end_of_a_drain_new_messages_wait_for_it_and_go_straight(case: Case) -> None:
    """Were they journaled, too, keys that are used all the time would never come back to the broker."""
    await case.journal.publish("orders", [message("a1", "a")], timeout=1)
    case.broker.gate.clear()
    drain = asyncio.create_task(Drain(case.journal, "orders", target=case.outlets.target).run_once())
    await case.broker.began.wait()
    publishing = asyncio.create_task(case.publish(message("a2", "a")))
    await asyncio.sleep(0)
    case.broker.gate.set()

    assert await publishing == ["replicated"]
    assert await drain
    assert [m.id for m in case.broker.queues["orders"]] == ["a1", "a2"]
