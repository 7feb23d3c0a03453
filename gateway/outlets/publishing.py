"""A message goes to the first outlet that takes it within its budget; to the journal when none does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from forebay.brokers.api import DURABILITIES, Capabilities, Durability, Publisher, PublishResult
from forebay.errors import (
    BrokerError,
    BrokerUnavailable,
    DurabilityUnavailable,
    JournalFull,
    NotSent,
    PublishError,
    PublishUnconfirmed,
    QueueNotFound,
)
from forebay.journal.draining import final
from forebay.journal.journal import Journal
from forebay.message import Message
from gateway.outlets.outlet import Outlet

_RANK: dict[Durability, int] = {level: rank for rank, level in enumerate(DURABILITIES)}


PING_TIMEOUT = 0.5
"""Seconds that one outlet may take to answer for readiness: the next of them may be the one that is ready."""

HANDOVER = 1.0
"""
Seconds that messages wait while a journal that is being drained has no more than two batches before them.

Into the journal they would keep it from ever being empty: keys that are used all the time would never come
back to the broker.
"""

SHARE_FULL = "the tenant's share of the journal is full (journal_share of its API keys)"


class Outlets:
    """
    The publisher of a gateway that has more than its broker.

    The broker, and each fallback after it, gets `budget` seconds for one publish. What is not confirmed
    then goes on to the next, under the same id: it may be in both, and takes effect once. What has failed
    is left out until it works again, so that the budget is paid once and not by every request.

    A message whose ordering key has others in the journal goes behind them, whatever works. A queue that
    may not be journaled, or go to a fallback, does not.
    """

    def __init__(
        self,
        outlets: Sequence[Outlet],
        *,
        budget: float,
        may_journal: Callable[[str], bool],
        may_fall_back: Callable[[str], bool],
        counted: Callable[[str, int], None] = lambda outlet, count: None,
    ) -> None:
        self.outlets = outlets
        self.journal: Journal | None = None
        """None: there is none, or it cannot be opened at the moment."""
        self.no_journal = "no journal is configured (gateway.journal)"
        """Why there is none."""
        self._budget = budget
        self._may_journal = may_journal
        self._may_fall_back = may_fall_back
        self._counted = counted
        self._reaching: dict[tuple[Durability, bool], Publisher] = {
            (level, journaled): _Reaching(self, level, journaled)
            for level in DURABILITIES
            for journaled in (True, False)
        }

    @property
    def capabilities(self) -> Capabilities:
        """The best that any of them reaches, and what all of them take."""
        best = max(self.outlets, key=lambda o: _RANK[o.durability]).broker.capabilities
        return Capabilities(
            durability=best.durability,
            ordering=best.ordering,
            bounded=best.bounded,
            max_body_bytes=min(o.broker.capabilities.max_body_bytes for o in self.outlets),
            retry_delays=best.retry_delays,
        )

    def reaching(self, least: Durability, *, journaled: bool = True) -> Publisher:
        """
        The same for messages that must not be stored less safely than that.

        Without `journaled`, for a tenant whose share of the journal is full.
        """
        return self._reaching[least, journaled]

    def target(self, queue: str) -> Outlet | None:
        """Where what is in the journal of a queue can go now."""
        return next((o for o in self._brokers(queue) if o.usable), None)

    def _brokers(self, queue: str) -> Sequence[Outlet]:
        return self.outlets if self._may_fall_back(queue) else self.outlets[:1]

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        return await self.publish_reaching("unsynced", queue, messages, timeout=timeout)

    async def publish_reaching(
        self,
        least: Durability,
        queue: str,
        messages: Sequence[Message],
        *,
        timeout: float,
        journaled: bool = True,
    ) -> list[PublishResult]:
        """
        As the contract says; nothing ends less safely than `least`, nor in the journal without `journaled`.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        lot = _Lot(messages)
        journal = self.journal if self._may_journal(queue) else None
        if journal is not None and journal.holds(queue):
            behind = [i for i in lot.left if journal.before(queue, messages[i].key)]
            if behind and queue in journal.draining and journal.holds(queue) <= 2 * journal.batch(queue):
                await journal.emptied(queue, min(HANDOVER, timeout / 2))
                behind = [i for i in behind if journal.before(queue, messages[i].key)]
            if behind:
                if journaled:
                    await self._to_journal(journal, least, queue, lot, behind, deadline)
                else:
                    lot.refuse(behind, JournalFull(SHARE_FULL))
        for outlet in self._brokers(queue):
            if not lot.left:
                return lot.results()
            if _RANK[outlet.durability] < _RANK[least]:
                continue
            if outlet.usable:
                await self._to_broker(outlet, queue, lot, deadline)
            else:
                lot.reason = f"{outlet.name} is away: {outlet.reason}"
        if lot.left and journal is not None:
            if journaled:
                await self._to_journal(journal, least, queue, lot, lot.left, deadline)
            else:
                lot.refuse(lot.left, JournalFull(SHARE_FULL))
        elif journal is None and self.journal is not None:
            lot.reason += f"; {queue!r} is not journaled (queues.{queue}.journal)"
        return lot.results()

    async def _to_broker(self, outlet: Outlet, queue: str, lot: _Lot, deadline: float) -> None:
        which = lot.left
        left = max(0.001, deadline - asyncio.get_running_loop().time())
        try:
            results = await outlet.publish(queue, lot.of(which), timeout=min(self._budget, left))
        except BrokerUnavailable as error:
            lot.reason = f"{outlet.name} is away: {error}"
            return
        except QueueNotFound:
            # It is in our settings, so the broker has lost it. For the next ones.
            lot.reason = f"{outlet.name} has lost the queue"
            with contextlib.suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(min(self._budget, left)):
                    await outlet.declare(queue)
            return
        self._counted(outlet.name, lot.take(which, results))

    async def _to_journal(
        self,
        journal: Journal,
        least: Durability,
        queue: str,
        lot: _Lot,
        which: Sequence[int],
        deadline: float,
    ) -> None:
        """The last place there is for these."""
        if _RANK[least] > _RANK["journaled"]:
            why = "the journal has messages of the same ordering key" if which is not lot.left else lot.reason
            lot.refuse(which, DurabilityUnavailable(f"{least!r} was asked for, and {why}"))
            return
        left = max(0.001, deadline - asyncio.get_running_loop().time())
        try:
            results = await journal.publish(queue, lot.of(which), timeout=left)
        except BrokerError as error:
            lot.refuse(which, NotSent(f"the journal cannot take it: {error}"))
            return
        self._counted("journal", lot.take(which, results, last=True))

    # ---- readiness

    async def ping(self, least: Durability) -> None:
        """
        Return if a message would be stored now, at least so safely.

        Raises:
            BrokerUnavailable: nothing can take it, and why.
        """
        reasons = []
        for outlet in self.outlets:
            if outlet.usable and _RANK[outlet.durability] >= _RANK[least]:
                try:
                    async with asyncio.timeout(PING_TIMEOUT):
                        await outlet.broker.ping()
                    return
                except BrokerError as error:
                    reasons.append(f"{outlet.name}: {error}")
                except TimeoutError:
                    reasons.append(f"{outlet.name}: no answer to a ping within {PING_TIMEOUT:g} s")
            elif not outlet.usable:
                reasons.append(f"{outlet.name}: {outlet.reason}")
        if self.journal is None:
            reasons.append(f"journal: {self.no_journal}")
        elif _RANK[least] > _RANK["journaled"]:
            reasons.append(f"journal: gateway.min_durability is {least!r}")
        elif (full := self.journal.no_room()) is not None:
            reasons.append(f"journal: {full}")
        else:
            try:
                await self.journal.broker.ping()
                return
            except BrokerError as error:
                reasons.append(f"journal: {error}")
        raise BrokerUnavailable("; ".join(reasons))


class _Reaching:
    def __init__(self, outlets: Outlets, least: Durability, journaled: bool) -> None:
        self._outlets = outlets
        self._least = least
        self._journaled = journaled

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        return await self._outlets.publish_reaching(
            self._least, queue, messages, timeout=timeout, journaled=self._journaled
        )


class _Lot:
    """The messages of one publish on their way from outlet to outlet."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        self._outcomes: dict[int, PublishResult] = {}
        self._doubts: dict[int, PublishUnconfirmed] = {}
        """What an outlet did not confirm: it may be stored there, so that nothing else may be claimed."""
        self._refusals: dict[int, PublishError] = {}
        """Why the last outlet that was asked did not take a message."""
        self.left: list[int] = list(range(len(messages)))
        """Those that still need a place."""
        self.reason = "no outlet takes messages of this queue"
        """Why nothing took those that nothing was asked for."""

    def of(self, which: Sequence[int]) -> Sequence[Message]:
        return self._messages if len(which) == len(self._messages) else [self._messages[i] for i in which]

    def take(self, which: Sequence[int], results: Sequence[PublishResult], *, last: bool = False) -> int:
        """
        Note what an outlet said; what it refused for no fault of the message stays `left`, unless it was
        the `last` to ask. Returns how many are stored now.
        """
        stored = 0
        done: set[int] = set()
        for i, result in zip(which, results, strict=True):
            error = result.error
            if error is None:
                stored += 1
                self._outcomes[i] = result
                done.add(i)
                continue
            self._refusals[i] = error
            if isinstance(error, PublishUnconfirmed):
                self._doubts[i] = error
            if last or final(error):
                done.add(i)
        self._end(done)
        return stored

    def refuse(self, which: Sequence[int], error: PublishError) -> None:
        """These end here."""
        self._refusals.update(dict.fromkeys(which, error))
        self._end(set(which))

    def _end(self, done: set[int]) -> None:
        self.left = [] if len(done) == len(self.left) else [i for i in self.left if i not in done]

    def results(self) -> list[PublishResult]:
        return [self._result(i, m.id) for i, m in enumerate(self._messages)]

    def _result(self, i: int, message_id: str) -> PublishResult:
        outcome = self._outcomes.get(i)
        if outcome is not None:
            return outcome
        error = self._doubts.get(i) or self._refusals.get(i) or NotSent(self.reason)
        return PublishResult(message_id=message_id, error=error)
