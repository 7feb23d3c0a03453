"""What waits in a journal goes on to a broker: in order, confirmed before it is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from forebay.brokers.api import (
    Ack,
    DeadLetter,
    Delivery,
    Durability,
    Failure,
    Publisher,
    Release,
    Settlement,
    Subscription,
)
from forebay.errors import (
    BrokerError,
    NotSent,
    PublishError,
    PublishRejected,
    QueueFull,
    QueueNotFound,
)
from forebay.journal.journal import TOGETHER, Journal

log = structlog.get_logger()

TIMEOUT = 5.0
"""Seconds that one publish may take: nobody waits for it."""
PAUSE = (0.1, 5.0)
"""Seconds after a first failure, and the most that this grows to."""


class Target(Publisher, Protocol):
    """Takes what a journal hands on."""

    async def declare(self, queue: str) -> Durability: ...


class Drain:
    """
    Hands one queue of a journal on to whatever `target` names at the moment.

    `target` returns None while nothing can take messages. One batch is under way at a time, so that
    messages arrive in the order in which they were journaled; of a batch that fails half-way, what is
    behind the first failure is sent again. What is refused for good is set aside and holds up nobody.
    """

    def __init__(
        self,
        journal: Journal,
        queue: str,
        *,
        target: Callable[[str], Target | None],
        moved: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._journal = journal
        self._queue = queue
        self._target = target
        self._moved = moved

    async def run_once(self) -> bool:
        """
        Hand on what is there now; False if something is left because it could not be.

        While a batch is published the next one is fetched: else new messages of many ordering keys, which
        have to go through the journal meanwhile, might come as fast as the old ones go.

        Raises:
            BrokerError: the journal itself cannot be used.
        """
        async with self._journal.broker.subscribe(self._queue, prefetch=2 * TOGETHER) as subscription:
            self._journal.draining.add(self._queue)
            try:
                return await self._hand_on(subscription)
            finally:
                self._journal.draining.discard(self._queue)

    async def _hand_on(self, subscription: Subscription) -> bool:
        batch: list[Delivery] = []
        while self._journal.holds(self._queue):
            to = self._target(self._queue)
            if to is None:
                return False
            batch = batch or await self._fetch(subscription, 0)
            following, errors = await asyncio.gather(
                self._fetch(subscription, len(batch)), self._publish(to, batch), return_exceptions=True
            )
            if isinstance(errors, BaseException):
                raise errors
            if not await self._settle(subscription, batch, errors):
                return False
            if isinstance(following, BaseException):
                raise following
            batch = following
        return True

    async def _fetch(self, subscription: Subscription, in_hand: int) -> list[Delivery]:
        journal, queue = self._journal, self._queue
        if journal.holds(queue) <= in_hand:
            return []
        deliveries = await subscription.receive(journal.batch(queue), 0.1)
        if not deliveries and not in_hand:
            await journal.look()  # it may hold less than it seems to
        return deliveries

    async def _publish(self, to: Target, batch: Sequence[Delivery]) -> Sequence[PublishError | None]:
        if not batch:
            return []
        try:
            results = await to.publish(self._queue, [d.message for d in batch], timeout=TIMEOUT)
        except QueueNotFound:
            # It was declared when they were accepted.
            await to.declare(self._queue)
            return [NotSent("the queue was not there")] * len(batch)
        except BrokerError as error:
            return [NotSent(str(error))] * len(batch)
        return [r.error for r in results]

    async def _settle(
        self, subscription: Subscription, batch: Sequence[Delivery], errors: Sequence[PublishError | None]
    ) -> bool:
        """Let go of what is elsewhere; False if something of the batch is not."""
        settled = _settlements(batch, errors)
        with self._journal.changing():
            stale = await subscription.settle(settled) if settled else []
            gone = [s.delivery for s in settled if not isinstance(s, Release)]
            # Nobody else takes anything from this file; what is stale was not let go, and comes again.
            gone = [d for d in gone if d not in stale] if stale else gone
            self._journal.left(self._queue, gone)
        self._note(settled)
        self._moved(len(gone))
        return len(gone) == len(batch)

    def _note(self, settled: Sequence[Settlement]) -> None:
        for s in settled:
            if isinstance(s, DeadLetter):
                self._journal.set_aside += 1
                log.warning(
                    "a journaled message is refused for good and was set aside",
                    journal=self._journal.name,
                    queue=self._queue,
                    id=s.delivery.message.id,
                    reason=s.failure.reason,
                )


def _settlements(deliveries: Sequence[Delivery], errors: Sequence[PublishError | None]) -> list[Settlement]:
    """All up to the first that may still be taken later; that one and what is behind it comes again."""
    settled: list[Settlement] = []
    for d, error in zip(deliveries, errors, strict=True):
        if error is None:
            settled.append(Ack(d))
        elif final(error):
            failure = Failure(reason=str(error), error_class=type(error).__name__, destination="broker")
            settled.append(DeadLetter(d, failure))
        else:
            break
    settled += [Release(d) for d in deliveries[len(settled) :]]
    return settled


def final(error: BrokerError) -> bool:
    """Whether the message itself is the reason, so that no other try and no other broker helps."""
    return isinstance(error, PublishRejected) and not isinstance(error, (NotSent, QueueFull))
