"""The partitions that are ours: how far each is committed, and what happens when they change hands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from forebay.brokers.kafka.assignor import Claims
from forebay.brokers.kafka.parking import Parking
from forebay.brokers.kafka.partition import Epoch
from forebay.brokers.kafka.tracker import CommitTracker, failed_above

log = structlog.get_logger()

COMMIT_TIMEOUT = 5.0


class Holdings(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    """Of one member of the queue's group."""

    def __init__(self, queue: str, *, ordered: bool, handover: float, dealt: Callable[[], None]) -> None:
        self._queue = queue
        self._ordered = ordered
        self._handover = handover
        self._dealt = dealt
        self.consumer: AIOKafkaConsumer | None = None
        self.epochs: dict[TopicPartition, Epoch] = {}
        self.failure: Exception | None = None
        """Of a rebalance: aiokafka logs it and would go on without us knowing from where to read."""
        self._left: tuple[str, int] = ("", -1)
        """Member id and generation at the last rebalance's begin."""
        self._surplus: set[TopicPartition] = set()
        """Ours for now, and to be given up: what the last deal told us."""
        self._handover_at: float | None = None
        """When what is to be given up goes, finished or not."""
        self._asked = False
        """For a new deal, since the last one."""
        self._committing = asyncio.Lock()

    def begin_with(self, consumer: AIOKafkaConsumer) -> None:
        """A new consumer, which owns nothing yet."""
        self.consumer = consumer
        self._left = ("", -1)
        self.failure = None

    async def find_start(self, consumer: AIOKafkaConsumer, error: KafkaError) -> None:
        """Offsets that are gone: go on with the oldest there is, and say so."""
        if isinstance(error, OffsetOutOfRangeError):
            gone: dict[TopicPartition, int] = dict(error.args[0]) if error.args else {}
            begin = await consumer.beginning_offsets(list(gone))
            for tp, offset in gone.items():
                self._report_loss(tp, offset, begin[tp])
                epoch = self.epochs.get(tp)
                if epoch is not None:
                    epoch.over = True
                    self.epochs[tp] = self._new_epoch(tp, begin[tp], "")
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

    async def commit(self, consumer: AIOKafkaConsumer) -> None:
        """Explicit positions of our own epochs only; what could not be committed is so with the next."""
        async with self._committing:
            offsets: dict[TopicPartition, OffsetAndMetadata] = {}
            wanted: list[tuple[Epoch, tuple[int, str]]] = []
            assigned = consumer.assignment()
            for tp, epoch in self.epochs.items():
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

    def claims(self) -> Claims:
        """
        What is in hand stays with us, and so does what was settled since the last commit: the
        next owner would deliver it again.
        """
        late = self._handover_at is not None and time.monotonic() > self._handover_at
        for epoch in self.epochs.values():
            busy = epoch.in_hand or epoch.progress != epoch.committed
            epoch.claimed_free = not busy or (epoch.surplus and late)
        return self._left[1], {
            (tp.topic, tp.partition): not epoch.claimed_free for tp, epoch in self.epochs.items()
        }

    def told(self, surplus: list[tuple[str, int]]) -> None:
        self._surplus = {TopicPartition(t, p) for t, p in surplus}

    def hand_over(self, consumer: AIOKafkaConsumer) -> None:
        """Ask for a new deal when we hold nothing more of what others are to have, or for too long."""
        surplus = [e for e in self.epochs.values() if e.surplus]
        if not surplus or self._handover_at is None:
            return
        late = time.monotonic() > self._handover_at
        if not self._asked and (late or not all(e.in_hand for e in surplus)):
            self._asked = True
            consumer._coordinator.request_rejoin()

    async def on_partitions_revoked(self, tps: set[TopicPartition]) -> None:
        consumer = self.consumer
        if consumer is None:
            return  # on our way out: all is committed and handed back
        coordinator = consumer._coordinator
        self._left = (coordinator.member_id, coordinator.generation)
        if tps:
            await self.commit(consumer)

    async def on_partitions_assigned(self, tps: set[TopicPartition]) -> None:
        try:
            await self._begin(tps)
        except Exception as error:
            self.failure = error

    async def _begin(self, tps: set[TopicPartition]) -> None:
        """
        Go on where we were with what stays ours; begin a new epoch with the rest.

        What we owned in the generation right before this one nobody else can have
        read in between, so its loans are still good.
        """
        consumer = self.consumer
        if consumer is None:
            return
        coordinator = consumer._coordinator
        unbroken = self._left == (coordinator.member_id, coordinator.generation - 1)
        kept = {tp: e for tp, e in self.epochs.items() if unbroken and tp in tps and not e.over}
        for tp, epoch in self.epochs.items():
            if tp not in kept:
                epoch.over = True
        new = [tp for tp in tps if tp not in kept]
        self.epochs = kept
        self._asked = False
        if not self._surplus:
            self._handover_at = None
        elif self._handover_at is None:
            self._handover_at = time.monotonic() + self._handover
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
                self.epochs[tp] = epoch = self._new_epoch(tp, at, "" if tp in begin else found[tp].metadata)
                epoch.committed = None if tp in begin else (at, found[tp].metadata)
                consumer.seek(tp, at)
        self._dealt()

    def _new_epoch(self, tp: TopicPartition, position: int, metadata: str) -> Epoch:
        parking = Parking(ordered=self._ordered, failed=failed_above(position, metadata))
        return Epoch(tp.topic, tp.partition, CommitTracker(position, metadata), parking)
