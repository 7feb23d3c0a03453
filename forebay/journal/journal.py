"""One journal file, open in this process: what it takes, what it holds, and what order it asks for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import structlog

from forebay.brokers.api import Broker, Delivery, PublishResult
from forebay.brokers.factory import damage, rescue
from forebay.brokers.naming import dead_letter_queue, is_dead_letter_queue, origin_queue
from forebay.errors import BrokerUnavailable, JournalFull, PublishError, QueueFull
from forebay.journal.files import Claim, JournalFile
from forebay.message import Message

log = structlog.get_logger()

Opener = Callable[[Path], AbstractAsyncContextManager[Broker]]
"""Opens an embedded queue that lends delayed messages at once (`forebay.brokers.factory.open_journal`)."""

TOGETHER = 1_000
BYTES_TOGETHER = 4 * 2**20
"""Bounds on the messages that are handed on together."""

RESCUED_TOGETHER = 200


@dataclass(slots=True)
class _Held:
    """What the journal holds of one queue."""

    messages: int = 0
    size: int = 0
    inherited: int = 0
    """Of these, so many were there when the file was opened; their keys are not known."""
    keys: Counter[str] = field(default_factory=Counter)
    """Ordering keys of the others."""


class Journal:
    """
    Takes messages while the broker is away, and knows what it holds without asking the disk.

    Messages of one queue leave in the order in which they came. Belongs to one event loop.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        name: str,
        max_bytes: int,
        max_age: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.broker = broker
        self.name = name
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self.draining: set[str] = set()
        """Queues of which it is handing on messages at the moment."""
        self._emptied: dict[str, asyncio.Event] = {}
        """For those who wait until a queue is empty."""
        self._changes = 0
        """Goes up whenever something comes or goes."""
        self._oldest: tuple[float, float] | None = None
        """The age of the oldest message, in seconds, and when it was that."""
        self.set_aside = 0
        """Messages that the broker refused for good; they stay here."""
        self.unsure = False
        """It may hold something that it does not know of; `look` finds out."""
        self._changing = 0

    @classmethod
    async def of(cls, broker: Broker, *, name: str, max_bytes: int, max_age: float) -> Journal:
        """
        The journal in an open file, with what an earlier process left in it.

        Raises:
            BrokerUnavailable
        """
        journal = cls(broker, name=name, max_bytes=max_bytes, max_age=max_age)
        for queue in await broker.declared_queues() or []:
            depth = await broker.depth(queue)
            count = sum(n or 0 for n in (depth.waiting, depth.scheduled, depth.in_hand))
            journal._held[queue] = _Held(count, depth.bytes or 0, inherited=count)
            dead = await broker.depth(dead_letter_queue(queue))
            journal.set_aside += dead.waiting or 0
        await journal.look()
        return journal

    # ---- what it holds

    @property
    def messages(self) -> int:
        return sum(h.messages for h in self._held.values())

    @property
    def size(self) -> int:
        """Bytes of bodies."""
        return sum(h.size for h in self._held.values())

    @property
    def queues(self) -> list[str]:
        """The queues of which it holds something."""
        return [queue for queue, held in self._held.items() if held.messages]

    def holds(self, queue: str) -> int:
        """How many messages of the queue."""
        held = self._held.get(queue)
        return 0 if held is None else held.messages

    def batch(self, queue: str) -> int:
        """How many messages of the queue are handed on together."""
        held = self._held[queue]
        average = max(1, held.size // max(1, held.messages))
        return max(1, min(TOGETHER, BYTES_TOGETHER // average))

    def before(self, queue: str, key: str | None) -> bool:
        """Whether a new message of this ordering key has to wait behind one that is here."""
        if key is None or not (held := self._held.get(queue)):
            return False
        return held.inherited > 0 or key in held.keys

    @property
    def oldest_age(self) -> float | None:
        """Seconds since the oldest message was accepted, as of the last `look`; None: it is empty."""
        if self._oldest is None or not self.messages:
            return None
        age, at = self._oldest
        return age + self._clock() - at

    async def look(self) -> None:
        """
        Find out how old the oldest message is, and whether it holds what we believe.

        A commit of which the disk said that it failed may be there all the same.

        Raises:
            BrokerUnavailable
        """
        ages = []
        sure = True
        for queue in list(self._held):
            before = self._changes
            depth = await self.broker.depth(queue)
            ages.append(depth.oldest_age)
            there = sum(n or 0 for n in (depth.waiting, depth.scheduled, depth.in_hand))
            # While something comes or goes the two need not agree.
            if self._changing or self._changes != before:
                sure = False
            elif there != self.holds(queue):
                self._held[queue] = _Held(there, depth.bytes or 0, inherited=there)
        if sure:
            self.unsure = False
        known = [age for age in ages if age is not None]
        self._oldest = (max(known), self._clock()) if known else None

    # ---- taking

    def no_room(self) -> str | None:
        """Why it takes nothing more; None: it does."""
        if self.size >= self._max_bytes:
            return (
                f"{self.name} holds {self.size} bytes of messages; its limit is {self._max_bytes}"
                " (gateway.journal_max_bytes)"
            )
        age = self.oldest_age
        if age is not None and age > self._max_age:
            return (
                f"{self.name} holds a message of {age:.0f} s ago; its limit is {self._max_age:g} s"
                " (gateway.journal_max_age)"
            )
        return None

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        """
        As a broker's; `journaled` is what it reaches, and JournalFull says that it takes no more.

        Raises:
            BrokerUnavailable
        """
        held = self._held.get(queue)
        if held is None:
            await self.broker.declare(queue)
            held = self._held.setdefault(queue, _Held())
        if not self.messages:
            self._oldest = None  # what was here at the last look is gone
        taken = self._fitting(messages)
        # Before they are stored: what comes meanwhile has to come behind them.
        for m in taken:
            self._count(held, m, 1)
        stored: list[PublishResult] = []
        try:
            if taken:
                with self.changing():
                    stored = await self.broker.publish(queue, taken, timeout=timeout)
        finally:
            for index, m in enumerate(taken):
                # What is not confirmed may be there all the same; `look` finds it.
                if index >= len(stored) or not stored[index].ok:
                    self._count(held, m, -1)
                    self.unsure = True
        results = [self._result(r) for r in stored]
        if len(taken) < len(messages):
            why = JournalFull(self.no_room() or f"{self.name} has no room for so many bytes")
            results += [PublishResult(message_id=m.id, error=why) for m in messages[len(taken) :]]
        return results

    def _fitting(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The first of them, as far as there is room."""
        if self.no_room() is not None:
            return []
        room = self._max_bytes - self.size
        for index, m in enumerate(messages):
            room -= len(m.body)
            if room < 0:
                return messages[:index]
        return messages

    @staticmethod
    def _result(stored: PublishResult) -> PublishResult:
        error: PublishError | None = stored.error
        if error is None:
            return PublishResult(message_id=stored.message_id, durability="journaled")
        if isinstance(error, QueueFull):
            error = JournalFull(str(error))
        return PublishResult(message_id=stored.message_id, error=error)

    @staticmethod
    def _count(held: _Held, message: Message, change: int) -> None:
        held.messages += change
        held.size += change * len(message.body)
        if message.key is not None:
            held.keys[message.key] += change
            if not held.keys[message.key]:
                del held.keys[message.key]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While this lasts, what is on the disk and what is known here need not agree."""
        self._changing += 1
        try:
            yield
        finally:
            self._changing -= 1
            self._changes += 1

    def left(self, queue: str, deliveries: Sequence[Delivery]) -> None:
        """These are gone from the queue, in the order in which they came."""
        held = self._held[queue]
        for d in deliveries:
            if held.inherited:
                held.inherited -= 1
                held.messages -= 1
                held.size -= len(d.message.body)
            else:
                self._count(held, d.message, -1)
        if held.messages <= 0 and queue in self._emptied:
            self._emptied.pop(queue).set()

    async def emptied(self, queue: str, timeout: float) -> None:
        """Wait until nothing of the queue is left, but not longer than that."""
        event = self._emptied.setdefault(queue, asyncio.Event())
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            pass


@asynccontextmanager
async def open_journal(
    claim: Claim, opener: Opener, *, max_bytes: int, max_age: float
) -> AsyncIterator[Journal]:
    """
    The journal in a file that is ours; a damaged one is set aside first, and what can be read of it kept.

    Raises:
        SettingsError, BrokerUnavailable: on entering the context.
    """
    finding = await asyncio.to_thread(partial(trouble, claim.file, in_full=False))
    if finding is not None:
        await repair(claim, opener, finding)
    async with opener(claim.file.path) as broker:
        yield await Journal.of(broker, name=claim.file.name, max_bytes=max_bytes, max_age=max_age)


def trouble(file: JournalFile, *, in_full: bool) -> str | None:
    """
    Why a file that nobody else uses needs a repair; None if it needs none.

    Raises:
        BrokerUnavailable: it cannot be read now.
    """
    if file.repairing.exists():
        return "its repair was broken off"
    return damage(file.path, in_full=in_full)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What was done about a damaged file."""

    finding: str
    set_aside: Path
    """Where the damaged file is now, as it was."""
    rescued: int
    """Messages that are in a new file in its place."""
    unreadable: int
    unplaced: int
    """Messages that can be read, and nobody can tell of which queue; they are only in the damaged file."""


async def repair(claim: Claim, opener: Opener, finding: str) -> Repaired:
    """
    Set a damaged file aside, and put what can be read of it into a new one in its place.

    Raises:
        BrokerUnavailable: the new file cannot be written now; it is begun anew when the journal is opened.
    """
    try:
        aside = claim.set_aside()
    except OSError as error:
        raise BrokerUnavailable(f"cannot set {claim.file.path} aside: {error.strerror}") from error
    log.error(
        "a journal is damaged and was set aside", journal=claim.file.name, finding=finding, to=str(aside)
    )
    found = rescue(aside)
    rescued = 0
    async with opener(claim.file.path) as broker:
        declared: set[str] = set()
        batch: list[Message] = []
        batch_of = ""

        async def store() -> int:
            if not batch:
                return 0
            if batch_of not in declared:
                await broker.declare(batch_of)
                declared.add(batch_of)
            results = await broker.publish(batch_of, batch, timeout=60)
            batch.clear()
            refused = next((r.error for r in results if r.error is not None), None)
            if refused is not None:
                raise BrokerUnavailable(f"cannot write {claim.file.path}: {refused}")
            return len(results)

        readable = found.messages()
        # In a thread: the file may be large, and a gateway that has adopted it serves meanwhile.
        while some := await asyncio.to_thread(lambda: list(islice(readable, RESCUED_TOGETHER))):
            for queue, message in some:
                # What had been given up there is tried once more: the new file does not know why.
                name = origin_queue(queue) if is_dead_letter_queue(queue) else queue
                if name != batch_of or len(batch) >= RESCUED_TOGETHER:
                    rescued += await store()
                    batch_of = name
                batch.append(message)
        rescued += await store()
    try:
        claim.repaired()
    except OSError as error:
        raise BrokerUnavailable(f"cannot write to {claim.file.directory}: {error.strerror}") from error
    outcome = Repaired(
        finding=finding,
        set_aside=aside,
        rescued=rescued,
        unreadable=found.unreadable,
        unplaced=found.unplaced,
    )
    (log.error if found.unreadable or found.unplaced else log.warning)(
        "what could be read of the damaged journal is in a new one",
        journal=claim.file.name,
        rescued=rescued,
        unreadable=found.unreadable,
        unplaced=found.unplaced,
    )
    return outcome
