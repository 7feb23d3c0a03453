"""Reading a queue: loans, settlements, offsets, and what happens when partitions change hands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import (
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from forebay.brokers.api import Ack, DeadLetter, Delivery, Release, Retry, Settlement, Share
from forebay.brokers.kafka import copies
from forebay.brokers.kafka.assignor import Claims, make_assignor
from forebay.brokers.kafka.parking import Parking
from forebay.brokers.kafka.partition import Epoch, Receipt
from forebay.brokers.kafka.records import Incoming, Outgoing, read
from forebay.brokers.kafka.topics import group_of, topics_to_read
from forebay.brokers.kafka.tracker import CommitTracker, failed_above
from forebay.brokers.naming import is_dead_letter_queue
from forebay.errors import BrokerClosed, BrokerUnavailable, MessageTooLarge

if TYPE_CHECKING:
    from forebay.brokers.kafka.broker import KafkaBroker

log = structlog.get_logger()

POLL = 0.2
"""Seconds that one look for new records waits."""
COMMIT_TIMEOUT = 5.0
COPY_TIMEOUT = 10.0
COUNT_EVERY = 2.0
"""Seconds between two questions how far our partitions reach."""
STUCK = 60.0
"""Seconds until a message is delivered again whose copy was too large for its topic."""
LONGEST_DELAY = 100 * 366 * 86_400.0
"""A handler may ask for an infinite delay; it must not spoil the settlements beside it."""
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
        self._consumer: AIOKafkaConsumer | None = None
        self._epochs: dict[TopicPartition, Epoch] = {}
        self._ends: dict[TopicPartition, int] = {}
        """The offset after the last record of each of our partitions, when it was asked last."""
        self._counted_at = 0.0
        self._counting: asyncio.Task[None] | None = None
        self._left: tuple[str, int] = ("", -1)
        """Member id and generation at the last rebalance's begin."""
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._assigned = asyncio.Event()
        self._closed = False
        self._away = False
        """We left the group, for nobody takes what we handed back."""
        self._released_at: float | None = None
        self._receiving = 0
        self._surplus: set[TopicPartition] = set()
        """Ours for now, and to be given up: what the last deal told us."""
        self._handover_at: float | None = None
        """When what is to be given up goes, finished or not."""
        self._asked = False
        """For a new deal, since the last one."""
        self._failure: Exception | None = None
        """Of a rebalance: aiokafka logs it and would go on without us knowing from where to read."""
        self._moved_at = 0.0
        """When the consumer was last seen to read, or to have nothing to read."""
        self._committing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

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
                target = min(max_messages, self._prefetch - self._lent)
                left = deadline - time.monotonic()
                # Nothing is taken before it is handed out: a cancelled call loses nothing.
                if left <= 0 or (target > 0 and self._available(target) >= target):
                    return self._lend(max(0, target))
                self._changed.clear()
                if (due := self._next_due()) is not None:
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
        now = _now()
        waiting = scheduled = in_hand = 0
        known = self._assigned.is_set() and self._epochs.keys() <= self._ends.keys()
        oldest: list[datetime] = []
        for tp, epoch in self._epochs.items():
            in_hand += len(epoch.lent) + epoch.busy
            later = sum(incoming.due > now for _, incoming in epoch.ready)
            scheduled += later
            parked = [head for head in epoch.parking.heads.values() if not head.lent]
            not_due = sum(head.due > now for head in parked)
            scheduled += not_due
            waiting += len(epoch.ready) - later + len(parked) - not_due + epoch.parking.set_aside
            waiting += len(epoch.stuck)
            unread = max(0, self._ends.get(tp, 0) - epoch.tracker.next - epoch.tracker.to_skip)
            if tp.topic == self._queue:
                waiting += unread
            else:
                scheduled += unread
            messages = [d.message for d, _ in epoch.lent.values()]
            messages += [incoming.decoded.message for _, incoming in epoch.ready[:1]]
            messages += [head.incoming.decoded.message for head in parked]
            oldest += [m.accepted_at for m in messages]
        return Share(
            in_hand=in_hand,
            waiting=waiting if known else None,
            scheduled=scheduled if known else None,
            oldest_age=(datetime.now(UTC) - min(oldest)).total_seconds() if oldest else None,
        )

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
            match s:
                case Ack():
                    epoch.finish(offset, lent[1])
                case Release():
                    epoch.put(offset, lent[1])
                    self._released_at = time.monotonic()
                case Retry(delay=delay, history=history) if (
                    self._ordered and s.delivery.message.key is not None
                ):
                    # The count travels in the commit, the history stays with this process.
                    tried = replace(lent[1], decoded=replace(lent[1].decoded, history=history))
                    epoch.fail(offset, tried, _now() + int(min(delay, LONGEST_DELAY) * 1e6) + 1)
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
        if parked and (consumer := self._consumer) is not None:
            # So that the attempt counts also if this process is killed now.
            await self._commit(consumer)
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

    # ---- lending

    @property
    def _lent(self) -> int:
        return sum(len(e.lent) + e.busy for e in self._epochs.values())

    def _lendable(self) -> Iterator[Epoch]:
        for epoch in self._epochs.values():
            if not (epoch.over or epoch.surplus or epoch.claimed_free) and epoch.waits:
                yield epoch

    def _next_due(self) -> float | None:
        """Seconds until the next of the failed messages is to be tried again."""
        now = _now()
        due = (epoch.parking.next_due(now) for epoch in self._lendable())
        return min(((at - now) / 1e6 for at in due if at is not None), default=None)

    def _available(self, target: int) -> int:
        now = _now()
        found = 0
        for epoch in self._lendable():
            found += len(epoch.lendable(target - found, now))
            if found >= target:
                break
        return found

    def _lend(self, count: int) -> list[Delivery]:
        now = _now()
        out: list[Delivery] = []
        for epoch in sorted(self._lendable(), key=lambda e: e.oldest):
            entries = epoch.lendable(count - len(out), now)
            for offset, incoming in entries:
                delivery = copies.delivery_of(incoming, self._queue, Receipt(epoch, offset))
                epoch.lend(offset, incoming, delivery)
                out.append(delivery)
            if entries:
                epoch.drop_lent()
        if out:
            self._wake.set()
        return out

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
            partition_assignment_strategy=(make_assignor(self._claims, self._told),),
            session_timeout_ms=int(s.session_timeout * 1000),
            heartbeat_interval_ms=int(s.heartbeat * 1000),
            rebalance_timeout_ms=int(max(s.session_timeout, 2 * COMMIT_TIMEOUT) * 1000),
            max_poll_interval_ms=int(s.max_poll_interval * 1000),
            max_partition_fetch_bytes=2 * 2**20,
            fetch_max_wait_ms=500,
            metadata_max_age_ms=30_000,
        )
        self._consumer = consumer
        self._left = ("", -1)
        self._failure = None
        self._moved_at = time.monotonic()
        try:
            consumer.subscribe(self._topics, listener=_Listener(self))
            await consumer.start()
            while not self._closed and not self._leave_now():
                await self._look(consumer)
                if self._failure is not None:
                    raise self._failure
                if time.monotonic() - self._moved_at > SILENCE:
                    await self._check_that_it_reads(consumer)
        finally:
            await self._stop(consumer)

    async def _check_that_it_reads(self, consumer: AIOKafkaConsumer) -> None:
        """
        Start again a consumer that reads nothing although there is something.

        aiokafka's task that fetches can end without a word to its caller.
        """
        reading = [tp for tp in self._epochs if tp not in consumer.paused()]
        async with asyncio.timeout(COMMIT_TIMEOUT):
            end = await consumer.end_offsets(reading) if reading else {}
        behind = [
            tp for tp, offset in end.items() if tp in self._epochs and self._epochs[tp].tracker.next < offset
        ]
        if behind:
            raise BrokerUnavailable(f"nothing was read of {len(behind)} partitions for {SILENCE:g} s")
        self._moved_at = time.monotonic()

    def _leave_now(self) -> bool:
        at = self._released_at
        if at is None or self._receiving or self._lent:
            return False
        self._away = time.monotonic() - at > self._settings.idle_leave
        return self._away

    async def _look(self, consumer: AIOKafkaConsumer) -> None:
        self._adjust(consumer)
        moved = asyncio.create_task(self._move())
        room = max(1, self._limit - sum(len(e.ready) for e in self._epochs.values()))
        try:
            records = await consumer.getmany(timeout_ms=int(POLL * 1000), max_records=room)
        except (NoOffsetForPartitionError, OffsetOutOfRangeError) as error:
            records = {}
            await self._find_start(consumer, error)
        finally:
            await asyncio.wait([moved])
        if moved.exception() is not None:
            log.warning("kafka copies failed", queue=self._queue, error=repr(moved.exception()))
        if records:
            self._moved_at = time.monotonic()
        for tp, batch in records.items():
            epoch = self._epochs.get(tp)
            if epoch is None:
                continue  # read before we knew from where; the seek that follows reads it again
            for record in batch:
                epoch.received(record.offset, read(record))
        if records or any(e.waits for e in self._epochs.values()):
            self._changed.set()
        if self._counting is None and time.monotonic() - self._counted_at > COUNT_EVERY:
            # Beside the reading: a node that does not answer must not stop it.
            self._counting = asyncio.create_task(self._count(consumer))
        await self._commit(consumer)
        self._hand_over(consumer)

    async def _count(self, consumer: AIOKafkaConsumer) -> None:
        """Ask how far our partitions reach; what cannot be asked now is asked again later."""
        mine = list(self._epochs)
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
        full = sum(len(e.ready) for e in self._epochs.values()) >= self._limit
        assigned = consumer.assignment()
        wait: set[TopicPartition] = set()
        for tp, e in self._epochs.items():
            held = bool(e.ready) and e.ready[0][1].due > now
            crowded = e.tracker.crowded or e.parking.crowded
            if tp in assigned and (full or held or e.surplus or crowded):
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
        for epoch in self._epochs.values():
            if epoch.stuck:
                epoch.free_stuck(time.monotonic())
        copied: list[tuple[Epoch, int, Incoming, Outgoing]] = []
        for epoch in self._lendable():
            while epoch.ready:
                offset, incoming = epoch.ready[0]
                if incoming.foreign:
                    log.warning(
                        "a record that is not a Forebay message was dead-lettered",
                        queue=self._queue, topic=epoch.topic, partition=epoch.number, offset=offset,
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

    async def _find_start(self, consumer: AIOKafkaConsumer, error: KafkaError) -> None:
        """Offsets that are gone: go on with the oldest there is, and say so."""
        if isinstance(error, OffsetOutOfRangeError):
            gone: dict[TopicPartition, int] = dict(error.args[0]) if error.args else {}
            begin = await consumer.beginning_offsets(list(gone))
            for tp, offset in gone.items():
                self._report_loss(tp, offset, begin[tp])
                epoch = self._epochs.get(tp)
                if epoch is not None:
                    epoch.over = True
                    self._epochs[tp] = self._new_epoch(tp, begin[tp], "")
                consumer.seek(tp, begin[tp])
        # Without a committed offset: the listener is about to seek.

    def _report_loss(self, tp: TopicPartition, wanted: int, oldest: int) -> None:
        """
        By age, or by somebody's hand. A group whose offsets have expired looks the same as one that
        was never there, so that `lost` is then at most so many.
        """
        log.error(
            "messages were deleted by Kafka before they were consumed",
            queue=self._queue, topic=tp.topic, partition=tp.partition,
            wanted=wanted, oldest=oldest, lost=max(0, oldest - wanted),
        )  # fmt: skip

    # ---- offsets

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        """Explicit positions of our own epochs only; what could not be committed is so with the next."""
        async with self._committing:
            offsets: dict[TopicPartition, OffsetAndMetadata] = {}
            wanted: list[tuple[Epoch, tuple[int, str]]] = []
            assigned = consumer.assignment()
            for tp, epoch in self._epochs.items():
                if tp not in assigned or epoch.over:
                    continue
                at = epoch.progress
                if at != epoch.committed:
                    offsets[tp] = OffsetAndMetadata(*at)
                    wanted.append((epoch, at))
            if not offsets:
                return
            try:
                # aiokafka tries again for ever what can be tried again.
                async with asyncio.timeout(COMMIT_TIMEOUT):
                    await consumer.commit(offsets)
            except (KafkaError, TimeoutError) as error:
                log.info("offsets not committed", queue=self._queue, error=repr(error))
                return
            for epoch, at in wanted:
                epoch.committed = at

    # ---- rebalances

    def _claims(self) -> Claims:
        """
        What is in hand stays with us, and so does what was settled since the last commit: the
        next owner would deliver it again.
        """
        late = self._handover_at is not None and time.monotonic() > self._handover_at
        for epoch in self._epochs.values():
            busy = epoch.in_hand or epoch.progress != epoch.committed
            epoch.claimed_free = not busy or (epoch.surplus and late)
        return self._left[1], {
            (tp.topic, tp.partition): not epoch.claimed_free for tp, epoch in self._epochs.items()
        }

    def _told(self, surplus: list[tuple[str, int]]) -> None:
        self._surplus = {TopicPartition(t, p) for t, p in surplus}

    def _hand_over(self, consumer: AIOKafkaConsumer) -> None:
        """Ask for a new deal when we hold nothing more of what others are to have, or for too long."""
        surplus = [e for e in self._epochs.values() if e.surplus]
        if not surplus or self._handover_at is None:
            return
        late = time.monotonic() > self._handover_at
        if not self._asked and (late or not all(e.in_hand for e in surplus)):
            self._asked = True
            consumer._coordinator.request_rejoin()

    async def revoked(self, tps: set[TopicPartition]) -> None:
        consumer = self._consumer
        if consumer is None:
            return  # on our way out: all is committed and handed back
        coordinator = consumer._coordinator
        self._left = (coordinator.member_id, coordinator.generation)
        if tps:
            await self._commit(consumer)

    async def assigned(self, tps: set[TopicPartition]) -> None:
        try:
            await self._begin(tps)
        except Exception as error:
            self._failure = error

    async def _begin(self, tps: set[TopicPartition]) -> None:
        """
        Go on where we were with what stays ours; begin a new epoch with the rest.

        What we owned in the generation right before this one nobody else can have
        read in between, so its loans are still good.
        """
        consumer = self._consumer
        if consumer is None:
            return
        coordinator = consumer._coordinator
        unbroken = self._left == (coordinator.member_id, coordinator.generation - 1)
        kept = {tp: e for tp, e in self._epochs.items() if unbroken and tp in tps and not e.over}
        for tp, epoch in self._epochs.items():
            if tp not in kept:
                epoch.over = True
        new = [tp for tp in tps if tp not in kept]
        self._counted_at = 0.0
        self._epochs = kept
        self._asked = False
        if not self._surplus:
            self._handover_at = None
        elif self._handover_at is None:
            self._handover_at = time.monotonic() + self._settings.handover
        for tp, epoch in kept.items():
            epoch.surplus = tp in self._surplus
            epoch.claimed_free = False
            consumer.seek(tp, epoch.tracker.next)
        if new:
            found = await coordinator.fetch_committed_offsets(new)
            missing = [tp for tp in new if tp not in found or found[tp].offset < 0]
            begin = await consumer.beginning_offsets(missing) if missing else {}
            for tp in missing:
                if begin[tp] > 0:
                    self._report_loss(tp, 0, begin[tp])
            for tp in new:
                at = begin[tp] if tp in begin else found[tp].offset
                self._epochs[tp] = epoch = self._new_epoch(tp, at, "" if tp in begin else found[tp].metadata)
                epoch.committed = None if tp in begin else (at, found[tp].metadata)
                consumer.seek(tp, at)
        self._assigned.set()
        self._changed.set()

    def _new_epoch(self, tp: TopicPartition, position: int, metadata: str) -> Epoch:
        parking = Parking(ordered=self._ordered, failed=failed_above(position, metadata))
        return Epoch(tp.topic, tp.partition, CommitTracker(position, metadata), parking)

    # ---- the end

    async def _stop(self, consumer: AIOKafkaConsumer) -> None:
        if self._counting is not None:
            self._counting.cancel()
        for epoch in self._epochs.values():
            epoch.release_all()
        try:
            async with asyncio.timeout(2):
                await self._commit(consumer)
        except (KafkaError, TimeoutError):
            pass
        for epoch in self._epochs.values():
            epoch.over = True
        self._epochs = {}
        self._consumer = None
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


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    def __init__(self, subscription: KafkaSubscription) -> None:
        self._subscription = subscription

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        await self._subscription.revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        await self._subscription.assigned(assigned)


def _now() -> int:
    return int(datetime.now(UTC).timestamp() * 1e6)
