"""What waits in a journal goes on to a broker: in order, confirmed before it is let go."""

from __future__ import annotations

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
from forebay.journal.journal import Journal

log = structlog.get_logger()

TOGETHER = 200
BYTES_TOGETHER = 4 * 2**20
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

        Raises:
            BrokerError: the journal itself cannot be used.
        """
        journal, queue = self._journal, self._queue
        async with journal.broker.subscribe(queue, prefetch=TOGETHER) as subscription:
            while journal.holds(queue):
                to = self._target(queue)
                if to is None:
                    return False
                most = max(1, min(TOGETHER, BYTES_TOGETHER // max(1, journal.average(queue))))
                deliveries = await subscription.receive(most, 0.1)
                if not deliveries:
                    await journal.look()  # it may hold less than it seems to
                elif not await self._hand_on(subscription, to, deliveries):
                    return False
        return True

    async def _hand_on(self, subscription: Subscription, to: Target, deliveries: Sequence[Delivery]) -> bool:
        queue = self._queue
        errors: Sequence[PublishError | None]
        try:
            results = await to.publish(queue, [d.message for d in deliveries], timeout=TIMEOUT)
            errors = [r.error for r in results]
        except QueueNotFound:
            # It was declared when they were accepted.
            await to.declare(queue)
            errors = [NotSent("the queue was not there")] * len(deliveries)
        except BrokerError as error:
            errors = [NotSent(str(error))] * len(deliveries)
        settled = _settlements(deliveries, errors)
        stale = await subscription.settle(settled)
        gone = [s.delivery for s in settled if not isinstance(s, Release)]
        # Nobody else takes anything from this file; what is stale was not let go, and comes again.
        gone = [d for d in gone if d not in stale] if stale else gone
        self._journal.left(queue, gone)
        self._note(settled)
        self._moved(len(gone))
        return len(gone) == len(deliveries)

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
