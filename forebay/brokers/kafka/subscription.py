"""Reading a queue: what is received, lent and settled."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import (
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import TopicPartition

from forebay.brokers.api import Ack, DeadLetter, Delivery, Release, Retry, Settlement, Share
from forebay.brokers.kafka import copies, lending
from forebay.brokers.kafka.assignor import make_assignor
from forebay.brokers.kafka.fetched import Fetched
from forebay.brokers.kafka.holdings import COMMIT_TIMEOUT, Holdings
from forebay.brokers.kafka.partition import Epoch, Receipt
from forebay.brokers.kafka.records import Incoming, Outgoing, read
from forebay.brokers.kafka.topics import group_of, topics_to_read
from forebay.brokers.naming import is_dead_letter_queue
from forebay.brokers.tally import Tally
from forebay.errors import BrokerClosed, BrokerUnavailable, MessageTooLarge

if TYPE_CHECKING:
    from forebay.brokers.kafka.broker import KafkaBroker

log = structlog.get_logger()

POLL = 0.2
"""Seconds that one look for new records waits."""
IN_ONE_LOOK = 1_000
"""Records read in one look, at most."""
AT_ONCE = 200
"""Records that aiokafka makes at once: each is eight objects, which are to be gone before the next come."""
COMMIT_EVERY = 0.1
"""Seconds between two commits of what was settled; each is a request as dear as some hundred messages."""
FULL_FOR = 1.0
"""Seconds without room for more after which partitions are paused."""
COPY_TIMEOUT = 10.0
COUNT_EVERY = 2.0
"""Seconds between two questions how far our partitions reach."""
LONGEST_DELAY = 100 * 366 * 86_400.0
"""A handler may ask for an infinite delay; it must not spoil the settlements beside it."""
STUCK = 60.0
"""Seconds until a message is delivered again whose copy was too large for its topic."""
SILENCE = 30.0
"""Seconds without a record after which a consumer is asked whether there is none."""


class KafkaSubscription:
    """One member of the queue's group."""

    def __init__(self, broker: KafkaBroker, queue: str, prefetch: int, *, ordered: bool = False) -> None:
        self._broker = broker
        self._settings = broker.settings
        self._queue = queue
        self._prefetch = prefetch
        self._ordered = ordered
        self._topics = topics_to_read(queue, broker.settings)
        self._limit = max(2 * prefetch, 500)
        self._enough = max(prefetch, 500)
        """Messages that could be lent now; more of these would only grow cold."""
        self._own = Holdings(queue, ordered=ordered, handover=broker.settings.handover, dealt=self._dealt)
        self._ends: dict[TopicPartition, int] = {}
        """The offset after the last record of each of our partitions, when it was asked last."""
        self._counted_at = 0.0
        self._counting: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._assigned = asyncio.Event()
        self._closed = False
        self._away = False
        """We left the group, for nobody takes what we handed back."""
        self._released_at: float | None = None
        self._patience = random.uniform(1.0, 2.0)
        self._receiving = 0
        self._full_since: float | None = None
        """Since when there has been no room for more; None while there is."""
        self._committed_at = 0.0
        self._moved_at = 0.0
        """When the consumer was last seen to read, or to have nothing to read."""
        self._task: asyncio.Task[None] | None = None
        self._foreign = Tally(
            partial(log.warning, "messages that are not ours are moved to the dead letters", queue=queue)
        )

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())
        try:
            # So that "subscribed" means it; a broker that is away is waited for in the background.
            async with asyncio.timeout(COMMIT_TIMEOUT):
                await self._assigned.wait()
        except TimeoutError:
            pass

    # ---- the two verbs

    async def receive(self, max_messages: int, max_wait: float) -> list[Delivery]:
        deadline = time.monotonic() + max_wait
        self._receiving += 1
        self._released_at = None
        self._wake.set()
        try:
            while True:
                if self._closed:
                    raise BrokerClosed("this subscription was closed")
                target = min(max_messages, self._prefetch - lending.on_loan(self._epochs))
                left = deadline - time.monotonic()
                # Nothing is taken before it is handed out: a cancelled call loses nothing.
                now = _now()
                if left <= 0 or (target > 0 and lending.available(self._epochs, target, now) >= target):
                    self._wake.set()
                    return lending.lend(self._epochs, max(0, target), self._queue, now)
                self._changed.clear()
                if (due := lending.next_due(self._epochs, now)) is not None:
                    left = min(left, due)
                try:
                    async with asyncio.timeout(left):
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            self._receiving -= 1

    def share(self) -> Share:
        """Of the partitions that are ours: how far they reach was asked less than COUNT_EVERY ago."""
        if not self._assigned.is_set():
            return Share(in_hand=0)
        return lending.share(self._own.epochs, self._ends, self._queue, _now())

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        if self._closed:
            raise BrokerClosed("this subscription was closed")
        if is_dead_letter_queue(self._queue) and any(isinstance(s, DeadLetter) for s in settlements):
            raise ValueError("what comes from a dead-letter queue cannot be dead-lettered again")
        stale: list[Delivery] = []
        copied: list[tuple[Epoch, int, Incoming, Outgoing]] = []
        parked = False
        for s in settlements:
            receipt = s.delivery.receipt
            assert isinstance(receipt, Receipt)
            epoch, offset = receipt.epoch, receipt.offset
            lent = epoch.lent.get(offset)
            if epoch.over or lent is None or lent[0] is not s.delivery:
                stale.append(s.delivery)
                continue
            del epoch.lent[offset]
            if type(s) is Ack:
                epoch.finish(offset, lent[1])
                continue
            if self._ordered and isinstance(s, (Retry, Release)):
                epoch.send_back(lent[1])
            match s:
                case Release():
                    epoch.put(offset, lent[1])
                    self._released_at = time.monotonic()
                case Retry(delay=delay) if self._ordered and s.delivery.message.key is not None:
                    due = _now() + int(min(delay, LONGEST_DELAY) * 1e6) + 1
                    epoch.fail(offset, lent[1], due, s.history)
                    parked = True
                case Retry() | DeadLetter():
                    epoch.busy += 1
                    out = copies.copy_of(s, self._queue, lent[1], self._settings.retry_delays)
                    copied.append((epoch, offset, lent[1], out))
        self._wake.set()
        self._changed.set()
        if copied:
            # Shielded: a copy that was written and not noted would be a duplicate for nothing.
            await asyncio.shield(self._copy(copied))
        if parked and (consumer := self._own.consumer) is not None:
            # So that the attempt counts also if this process is killed now.
            await self._own.commit(consumer)
        return stale

    async def _copy(self, copied: list[tuple[Epoch, int, Incoming, Outgoing]]) -> None:
        """
        Write copies and finish their originals; what could not be copied is ready again.

        Raises:
            BrokerUnavailable
        """
        failed: Exception | None = None
        try:
            errors: list[Any] = list(await self._broker.write([c[3] for c in copied], COPY_TIMEOUT))
        except Exception as error:
            errors = [error] * len(copied)
        for (epoch, offset, incoming, _), outcome in zip(copied, errors, strict=True):
            epoch.busy -= 1
            if outcome is None:
                epoch.finish(offset, incoming)
            elif isinstance(outcome, MessageTooLarge):
                epoch.stuck.append((time.monotonic() + STUCK, offset, incoming))
                log.error(
                    "a copy is larger than its topic takes; the message stays where it is, others go on",
                    queue=self._queue, topic=epoch.topic, partition=epoch.number, offset=offset,
                    id=incoming.decoded.message.id, next_try_in=STUCK,
                    fix="raise max.message.bytes of the queue's topics, retry topics and dead letters",
                )  # fmt: skip
            else:
                failed = outcome
                epoch.put(offset, incoming)
        self._wake.set()
        self._changed.set()
        if failed is not None:
            raise BrokerUnavailable(
                f"a copy was not confirmed, and its original is kept: {failed}"
            ) from failed

    @property
    def _epochs(self) -> Collection[Epoch]:
        return self._own.epochs.values()

    # ---- the member of the group

    async def _run(self) -> None:
        backoff = 0.1
        while not self._closed:
            if self._away:
                self._wake.clear()
                if not self._receiving:
                    await self._wake.wait()
                    continue
                self._away = False
            try:
                await self._consume()
                backoff = 0.1
            except (KafkaError, OSError, TimeoutError, BrokerUnavailable) as error:
                log.warning("kafka consumer starts again", queue=self._queue, error=repr(error))
                await asyncio.sleep(backoff)
                backoff = min(5.0, 2 * backoff)
            except Exception:
                log.exception("kafka consumer failed and starts again", queue=self._queue)
                await asyncio.sleep(backoff)
                backoff = min(5.0, 2 * backoff)

    async def _consume(self) -> None:
        s = self._settings
        consumer = AIOKafkaConsumer(
            **self._broker.connection,
            group_id=group_of(self._queue),
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=(make_assignor(self._own.claims, self._own.told),),
            session_timeout_ms=int(s.session_timeout * 1000),
            heartbeat_interval_ms=int(s.heartbeat * 1000),
            rebalance_timeout_ms=int(max(s.session_timeout, 2 * COMMIT_TIMEOUT) * 1000),
            max_poll_interval_ms=int(s.max_poll_interval * 1000),
            # Some thousand messages at a time: more would only lie in memory, and out of the caches.
            fetch_max_bytes=4 * 2**20,
            max_partition_fetch_bytes=2**19,
            fetch_max_wait_ms=500,
            metadata_max_age_ms=30_000,
        )
        self._own.begin_with(consumer)
        self._moved_at = time.monotonic()
        try:
            consumer.subscribe(self._topics, listener=self._own)
            await consumer.start()
            Fetched.keep(consumer)
            while not self._closed and not self._leave_now(consumer):
                await self._look(consumer)
                if self._own.failure is not None:
                    raise self._own.failure
                if time.monotonic() - self._moved_at > SILENCE:
                    await self._check_that_it_reads(consumer)
        finally:
            await self._stop(consumer)

    async def _check_that_it_reads(self, consumer: AIOKafkaConsumer) -> None:
        """
        Start again a consumer that reads nothing although there is something.

        aiokafka's task that fetches can end without a word to its caller.
        """
        reading = [tp for tp in self._own.epochs if tp not in consumer.paused()]
        async with asyncio.timeout(COMMIT_TIMEOUT):
            end = await consumer.end_offsets(reading) if reading else {}
        behind = [
            tp
            for tp, offset in end.items()
            if tp in self._own.epochs and self._own.epochs[tp].tracker.next < offset
        ]
        if behind:
            raise BrokerUnavailable(f"nothing was read of {len(behind)} partitions for {SILENCE:g} s")
        self._moved_at = time.monotonic()

    def _dealt(self) -> None:
        """Partitions were dealt: what we knew of their ends is no longer right."""
        self._counted_at = 0.0
        self._assigned.set()
        self._changed.set()

    def _leave_now(self, consumer: AIOKafkaConsumer) -> bool:
        at = self._released_at
        if at is None or self._receiving or lending.on_loan(self._epochs) or self._is_alone(consumer):
            return False
        # Not all in the same moment: the last one has nobody to leave them to, and stays.
        patience = self._settings.idle_leave * self._patience
        self._away = time.monotonic() - at > patience
        return self._away

    def _is_alone(self, consumer: AIOKafkaConsumer) -> bool:
        """
        Whether all partitions are ours, so that there is nobody to leave them to.

        A group that everybody has left takes three seconds to begin again, and an outage of the
        destination is everybody's.
        """
        known = [consumer.partitions_for_topic(topic) for topic in self._topics]
        return all(known) and len(self._epochs) == sum(len(partitions or ()) for partitions in known)

    async def _look(self, consumer: AIOKafkaConsumer) -> None:
        self._adjust(consumer)
        moved = asyncio.create_task(self._move())
        try:
            await self._read(consumer)
        except (NoOffsetForPartitionError, OffsetOutOfRangeError) as error:
            await self._own.find_start(consumer, error)
        finally:
            await asyncio.wait([moved])
        if moved.exception() is not None:
            log.warning("kafka copies failed", queue=self._queue, error=repr(moved.exception()))
        if any(e.waits for e in self._epochs):
            self._changed.set()
        if self._counting is None and time.monotonic() - self._counted_at > COUNT_EVERY:
            # Beside the reading: a node that does not answer must not stop it.
            self._counting = asyncio.create_task(self._count(consumer))
        if time.monotonic() - self._committed_at >= COMMIT_EVERY:
            await self._own.commit(consumer)
            self._committed_at = time.monotonic()
        self._own.hand_over(consumer)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        """Wait for records, and take what has been fetched, as far as there is room for it."""
        room = self._room()
        if room > 0:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = time.monotonic()
        if self._full_since is not None and not self._paused_as_full:
            self._wake.clear()
            try:
                async with asyncio.timeout(POLL):
                    await self._wake.wait()
            except TimeoutError:
                pass
            return
        left, wait = max(1, min(IN_ONE_LOOK, room)), POLL
        while left > 0:
            records = await consumer.getmany(timeout_ms=int(wait * 1000), max_records=min(AT_ONCE, left))
            if not records:
                return
            for tp, batch in records.items():
                self._received(tp, batch)
                left -= len(batch)
            wait = 0

    def _received(self, tp: TopicPartition, batch: list[Any]) -> None:
        self._moved_at = time.monotonic()
        epoch = self._own.epochs.get(tp)
        if epoch is None:
            return  # read before we knew from where; the seek that follows reads it again
        for record in batch:
            epoch.received(record.offset, read(record, tp))
        self._changed.set()

    def _room(self) -> int:
        now = _now()
        free = sum(len(e.ready) for e in lending.lendable(self._epochs) if not e.waits_for_its_head(now))
        return min(self._limit - sum(len(e.ready) for e in self._epochs), self._enough - free)

    @property
    def _paused_as_full(self) -> bool:
        """Not at once: of what is paused, aiokafka throws away what it has fetched already."""
        return self._full_since is not None and time.monotonic() - self._full_since > FULL_FOR

    async def _count(self, consumer: AIOKafkaConsumer) -> None:
        """Ask how far our partitions reach; what cannot be asked now is asked again later."""
        mine = list(self._own.epochs)
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT):
                self._ends = await consumer.end_offsets(mine) if mine else {}
        except (KafkaError, TimeoutError) as error:
            log.debug("kafka did not tell how far the partitions reach", error=repr(error))
            self._ends = {}
        finally:
            self._counted_at = time.monotonic()
            self._counting = None

    def _adjust(self, consumer: AIOKafkaConsumer) -> None:
        """Read on where there is room; pause partitions that wait for their head, or are full."""
        now = _now()
        assigned = consumer.assignment()
        wait: set[TopicPartition] = set()
        for tp, e in self._own.epochs.items():
            held = e.waits_for_its_head(now)
            crowded = e.tracker.crowded or e.parking.crowded
            if tp in assigned and (self._paused_as_full or held or e.surplus or crowded):
                wait.add(tp)
        paused = consumer.paused()
        try:
            if wait - paused:
                consumer.pause(*(wait - paused))
            if back := (paused & assigned) - wait:
                consumer.resume(*back)
        except IllegalStateError:
            pass  # assigned anew since we asked

    async def _move(self) -> None:
        """Copies that no consumer asked for: the next hop of what is not due yet, and what is not ours."""
        now = _now()
        for epoch in self._epochs:
            if epoch.stuck:
                epoch.free_stuck(time.monotonic())
        copied: list[tuple[Epoch, int, Incoming, Outgoing]] = []
        for epoch in lending.lendable(self._epochs):
            while epoch.ready:
                offset, incoming = epoch.ready[0]
                if incoming.foreign:
                    self._foreign.add(
                        first_topic=epoch.topic, first_partition=epoch.number, first_offset=offset,
                        first_reason=incoming.foreign,
                    )  # fmt: skip
                    out = copies.foreign(self._queue, incoming)
                elif incoming.due > now and incoming.hop <= now and not is_dead_letter_queue(self._queue):
                    out = copies.hop(self._queue, incoming, now, self._settings.retry_delays)
                else:
                    break
                del epoch.ready[0]
                epoch.busy += 1
                copied.append((epoch, offset, incoming, out))
        if copied:
            await self._copy(copied)

    # ---- the end

    async def _stop(self, consumer: AIOKafkaConsumer) -> None:
        if self._counting is not None:
            self._counting.cancel()
        for epoch in self._epochs:
            epoch.release_all()
        try:
            async with asyncio.timeout(2):
                await self._own.commit(consumer)
        except (KafkaError, TimeoutError):
            pass
        for epoch in self._epochs:
            epoch.over = True
        self._own.epochs = {}
        self._own.consumer = None
        stopping = asyncio.ensure_future(consumer.stop())
        done, _ = await asyncio.wait([stopping], timeout=2)
        if done:
            if not stopping.cancelled() and stopping.exception() is not None:
                log.info("kafka consumer did not stop in order", error=repr(stopping.exception()))
            return
        stopping.cancel()
        try:
            async with asyncio.timeout(1):
                await consumer._client.close()
        except (KafkaError, OSError, TimeoutError):
            pass

    async def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._changed.set()
        task = self._task
        if task is not None and not task.done():
            # The look that is under way ends within its wait, or within a commit's.
            done, _ = await asyncio.wait([task], timeout=POLL + 3)
            if not done:
                task.cancel()
                await asyncio.wait([task], timeout=4)
        self._foreign.close()


def _now() -> int:
    return int(datetime.now(UTC).timestamp() * 1e6)
