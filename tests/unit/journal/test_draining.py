"""What a journal hands on, and what it keeps, when the broker takes only some of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from forebay.brokers.api import Durability, PublishResult
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.errors import (
    BrokerUnavailable,
    MessageTooLarge,
    NotSent,
    PublishError,
    PublishRejected,
    PublishUnconfirmed,
    QueueFull,
    QueueNotFound,
)
from forebay.journal.draining import Drain, final
from forebay.journal.journal import Journal
from forebay.message import Message


class Picky:
    """Refuses what `errors` names, by id, once each; raises what `raises` has first."""

    def __init__(self) -> None:
        self.errors: dict[str, PublishError] = {}
        self.raises: list[Exception] = []
        self.arrived: list[str] = []
        self.declared: list[str] = []

    async def declare(self, queue: str) -> Durability:
        self.declared.append(queue)
        return "synced"

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        if self.raises:
            raise self.raises.pop(0)
        results = []
        for m in messages:
            error = self.errors.pop(m.id, None)
            if error is None:
                self.arrived.append(m.id)
                results.append(PublishResult(message_id=m.id, durability="synced"))
            else:
                results.append(PublishResult(message_id=m.id, error=error))
        return results


class Case:
    def __init__(self, journal: Journal, server: MemoryServer) -> None:
        self.journal = journal
        self.server = server
        self.target = Picky()

    async def fill(self, *names: str, key: str | None = "k") -> None:
        now = datetime.now(UTC)
        sent = [Message(id=n, body=b"12345", key=key, accepted_at=now) for n in names]
        assert all(r.ok for r in await self.journal.publish("orders", sent, timeout=5))

    async def drain(self) -> bool:
        return await Drain(self.journal, "orders", target=lambda _: self.target).run_once()


@pytest.fixture
async def case() -> Case:
    server = MemoryServer()
    journal = await Journal.of(MemoryBroker(server), name="journal", max_bytes=10**6, max_age=1e6)
    return Case(journal, server)


async def test_behind_a_failure_everything_is_sent_again(case: Case) -> None:
    await case.fill("1", "2", "3")
    case.target.errors["2"] = QueueFull("at its limit")

    assert not await case.drain()
    assert (case.journal.holds("orders"), case.journal.size) == (2, 10)
    assert await case.drain()
    assert case.target.arrived == ["1", "3", "2", "3"]
    assert case.journal.messages == 0
    assert not case.journal.before("orders", "k")


async def test_what_an_earlier_process_left_is_counted_apart(case: Case) -> None:
    """A failure in the middle of old and new messages must not mix up whose keys are known."""
    await case.fill("1", "2", key="old")
    journal = await Journal.of(MemoryBroker(case.server), name="journal", max_bytes=10**6, max_age=1e6)
    again = Case(journal, case.server)
    await again.fill("3", key="new")
    again.target.errors["2"] = PublishUnconfirmed("the connection was lost")

    assert not await again.drain()
    assert journal.before("orders", "old")
    assert await again.drain()
    assert not journal.before("orders", "old")
    assert not journal.before("orders", "new")


async def test_the_age_of_what_an_earlier_outage_left_is_not_that_of_what_comes_in_the_next() -> None:
    now = 0.0
    journal = Journal(
        MemoryBroker(MemoryServer()), name="journal", max_bytes=10**6, max_age=60.0, clock=lambda: now
    )
    case = Case(journal, MemoryServer())
    await case.fill("1")
    await journal.look()
    assert await case.drain()
    now = 3_600.0
    await case.fill("2")
    assert journal.no_room() is None
    await case.fill("3")


async def test_a_queue_that_the_broker_has_lost_is_declared_again(case: Case) -> None:
    await case.fill("1")
    case.target.raises.append(QueueNotFound("orders"))

    assert not await case.drain()
    assert case.target.declared == ["orders"]
    assert await case.drain()


async def test_a_broker_that_is_away_takes_nothing_and_nothing_is_lost(case: Case) -> None:
    await case.fill("1", "2")
    case.target.raises.append(BrokerUnavailable("connection refused"))

    assert not await case.drain()
    assert case.journal.messages == 2


async def test_what_is_refused_for_good_is_set_aside_with_the_reason(case: Case) -> None:
    await case.fill("1", "2", "3")
    case.target.errors["2"] = MessageTooLarge(5, 4)

    assert await case.drain()
    assert case.target.arrived == ["1", "3"]
    assert case.journal.set_aside == 1
    [entry] = case.server.queues["orders.dead"].entries.values()
    assert entry.death is not None
    assert entry.death.failure.error_class == "MessageTooLarge"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MessageTooLarge(2, 1), True),
        (PublishRejected("a header is too long"), True),
        (NotSent("no connection"), False),
        (QueueFull("full"), False),
        (PublishUnconfirmed("no answer"), False),
    ],
)
def test_only_what_is_about_the_message_is_final(error: PublishError, expected: bool) -> None:
    assert final(error) is expected
