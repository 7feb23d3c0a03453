"""A database of dead letters, a broker, and a consumer that takes what is good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from forebay.brokers.api import Death, Delivery, Failure, PublishResult
from forebay.errors import BrokerUnavailable
from forebay.message import Message
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from forebay.storage.messages import MessageStore
from tests.unit.storage.deliveries import dead


class Consumed:
    """
    A publisher whose messages are consumed at once: stored, or dead again where the body is in `bad`.

    `before` is called with the number of the publish, from 1, and may raise.
    """

    def __init__(
        self,
        database: Database,
        *,
        bad: Collection[bytes] = (),
        lost: Collection[bytes] = (),
        before: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._messages = MessageStore(database)
        self._letters = DeadLetterStore(database)
        self.bad = bad
        self.lost = lost
        """These neither arrive nor die."""
        self._before = before
        self.calls = 0
        self.sent: list[tuple[str, Message]] = []

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        self.calls += 1
        self._before(self.calls)
        self.sent += [(queue, m) for m in messages]
        await asyncio.to_thread(self._consume, queue, messages)
        return [PublishResult(message_id=m.id, durability="synced") for m in messages]

    def _consume(self, queue: str, messages: Sequence[Message]) -> None:
        deliveries = [Delivery(message=m, queue=queue, attempt=1, receipt=None) for m in messages]
        good = [d for d in deliveries if d.message.body not in {*self.bad, *self.lost}]
        results = self._messages.write(good) if good else []
        assert not [r.error for r in results if r.error]
        death = Death(
            failure=Failure(reason="still bad", error_class="CheckViolation", destination="database"),
            queue=queue,
            attempts=1,
            died_at=datetime.now(UTC),
        )
        self._letters.archive([replace(d, death=death) for d in deliveries if d.message.body in self.bad])

    @property
    def ids(self) -> list[str]:
        return [message.id for _, message in self.sent]


class Down:
    """A broker that is away."""

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        raise BrokerUnavailable("connection refused")


def bury(database: Database, count: int) -> list[str]:
    """So many dead letters, the oldest first, with their numbers as bodies; return their ids."""
    letters = [dead(b"%d" % n, minute=n) for n in range(count)]
    DeadLetterStore(database).archive(letters)
    return [one.message.id for one in letters]


def statuses(database: Database) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in DeadLetterStore(database).list(DeadLetterFilter(), limit=10_000):
        found[record.status] = found.get(record.status, 0) + 1
    return found
