"""What one subscription holds: its own channel, its own buffer, and how loans are settled."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from pika import BasicProperties
from pika.exceptions import ChannelClosedByBroker
from pika.spec import Basic

from forebay.brokers.api import (
    Ack,
    DeadLetter,
    Delivery,
    Release,
    Retry,
    Settlement,
    Share,
    first_delivery,
)
from forebay.brokers.naming import is_dead_letter_queue, origin_queue
from forebay.brokers.rabbitmq import wire
from forebay.brokers.rabbitmq.copies import Copies
from forebay.brokers.rabbitmq.ladder import Ladder
from forebay.brokers.rabbitmq.link import Channel, Link
from forebay.brokers.rabbitmq.loans import Loans
from forebay.brokers.rabbitmq.publishing import Outgoing, PublishLink
from forebay.brokers.rabbitmq.reading import usual
from forebay.brokers.rabbitmq.topology import NOT_FOUND, PATIENCE, refusal
from forebay.brokers.tally import Tally
from forebay.errors import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    ForebayError,
    MessageDecodeError,
    QueueNotFound,
)

log = structlog.get_logger()

COPY_PATIENCE = 10.0
"""Seconds for the copies that Retry and DeadLetter make to be confirmed."""

AGAIN = 0.5
"""Seconds before a lost subscription is made again."""

WORN = 100
"""Times a message was handed back after which it is written anew: the server counts them up to its limit."""

NEARLY_DUE = 0.05
"""Seconds that a message may be kept here until it is due, instead of being sent down the ladder again."""


class RabbitMQSubscription:
    """
    One consumer. What the server has sent but nobody has received yet waits in `_buffer`.

    Delivery tags belong to a channel: when it is lost, everything lent ends, and the
    server lends it anew. A receipt is the tag; `_held` knows the deliveries of this channel only.

    A server ends the channel of who holds a message for too long, received or not. So what
    nobody receives is handed back after `idle_hold` seconds and the consumer cancelled; the
    next `receive` starts another, of which the server sends as much as was asked for: an
    outage is probed with one message, and the rest of the prefetch should not travel to
    and fro with it. With the first message that is acknowledged, or when more is asked for,
    the whole prefetch is back.
    """

    def __init__(
        self,
        *,
        link: Link,
        publisher: PublishLink,
        ladder: Ladder,
        queue: str,
        server_name: Callable[[str], str],
        prefetch: int,
        idle_hold: float,
    ) -> None:
        self._link = link
        self._publisher = publisher
        self._ladder = ladder
        self._copies = Copies(queue, server_name, ladder=ladder, publisher=publisher)
        self._queue = self.queue = queue
        self._name = server_name
        self._prefetch = prefetch
        self._idle_hold = idle_hold
        self._tag = ""
        """Of the consumer; empty while there is none."""
        self._window = 0
        """How much the server may send to it; 0 while there is none."""
        self._wanted = prefetch
        """How much it should be, when `_attend` looks next."""
        self._attention = asyncio.Event()
        self._buffer: deque[Delivery] = deque()
        self._held: dict[int, Delivery] = {}
        self._loans = Loans(queue)
        """All of them; its channel is the one that is consumed from."""
        self._worn: set[int] = set()
        """Tags of what the server counts as handed back too often to be handed back once more."""
        self._receiving = 0
        """Calls of `receive` that wait."""
        self._news = asyncio.Event()
        self._trouble: BrokerError | None = None
        self._cancelled: Channel | None = None
        self._closed = False
        self._moves: set[asyncio.Task[Any]] = set()
        self._foreign = Tally(
            partial(log.warning, "messages that are not ours are moved to the dead letters", queue=queue)
        )
        self._unmoved = Tally(
            partial(log.warning, "messages cannot be moved yet, and are tried again", queue=queue)
        )
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        """Done when the first attempt to subscribe has ended."""
        self._task = loop.create_task(self._run(), name=f"forebay-rabbitmq-consume-{queue}")

    # ---- the channel

    async def _run(self) -> None:
        while not self._closed:
            try:
                channel = await self._consume()
                if not self.first.done():
                    self.first.set_result(None)
                lost = await self._attend(channel)
                why = "RabbitMQ cancelled it" if channel is self._cancelled else str(lost)
                self._trouble = BrokerUnavailable(f"the subscription to {self._queue!r} was lost: {why}")
            except ChannelClosedByBroker as refused:
                if refused.reply_code == NOT_FOUND:
                    self._trouble = QueueNotFound(self._queue)
                else:
                    self._trouble = BrokerUnavailable(str(refusal(self._queue, refused)))
            except BrokerError as error:
                self._trouble = error
            except Exception as error:
                # Whatever it is: a subscription that stops trying would be silent for ever.
                log.exception("cannot consume from RabbitMQ", queue=self._queue)
                self._trouble = BrokerUnavailable(f"the subscription to {self._queue!r} failed: {error!r}")
            self._detach()
            if not self.first.done():
                assert self._trouble is not None
                self.first.set_exception(self._trouble)
                return
            if not self._closed:
                log.warning(
                    "subscription lost; it is made again", queue=self._queue, reason=str(self._trouble)
                )
                await asyncio.sleep(AGAIN)

    async def _consume(self) -> Channel:
        connection = await self._link.up(PATIENCE)
        channel = await Channel.open(connection, PATIENCE)
        # Registered first: deliveries may come before the answer to basic.consume.
        self._loans.begin(channel)
        self._window = 0

        def on_cancel(_: Any) -> None:
            # The queue was deleted or lost its majority, or something was held for too long.
            self._cancelled = channel
            channel.close()

        channel.raw.add_on_cancel_callback(on_cancel)
        channel.closed.add_done_callback(lambda _: self._attention.set())
        await self._start(channel, self._prefetch)
        self._trouble = None
        return channel

    async def _start(self, channel: Channel, window: int) -> None:
        """Consume, with at most so many unsettled that this consumer was sent."""

        def on_message(_: Any, method: Any, properties: Any, body: bytes) -> None:
            if self._loans.channel is channel:
                try:
                    self._take(method.delivery_tag, properties, body)
                except Exception:
                    # An exception that leaves a callback of pika's ends the connection.
                    log.exception("cannot read a delivery", queue=self._queue)
                    channel.close()

        own_dead_letters, loans = is_dead_letter_queue(self._queue), self._loans

        def on_delivery(tag: int, raw: bytes, body: bytes) -> None:
            if loans.channel is not channel:
                return
            message = None if own_dead_letters else usual(raw, body)
            if message is None:
                on_message(None, Basic.Deliver(delivery_tag=tag), BasicProperties().decode(raw), body)
                return
            loans.came(tag)
            self._buffer.append(first_delivery(message, self._queue, tag))
            self._news.set()

        # Never used twice: servers before 3.10.9 and 3.12.5 mix up consumers of one tag.
        self._tag = f"forebay.{uuid.uuid4().hex}"
        self._window = self._wanted = window
        channel.on_delivery(self._tag, on_delivery)
        # It holds for consumers that begin afterwards.
        await channel.call("basic_qos", prefetch_count=min(65_535, window), timeout=PATIENCE)
        await channel.call(
            "basic_consume", self._name(self._queue), on_message, consumer_tag=self._tag, timeout=PATIENCE
        )

    async def _attend(self, channel: Channel) -> Exception:
        """Until the channel is lost: hand back what nobody takes, and consume as much as is asked for."""
        while not channel.closed.done():
            self._attention.clear()
            if self._wanted > self._window:
                # From nothing to what is asked for; then to all, rather than in many steps.
                window = self._prefetch if self._window else self._wanted
                await self._cancel(channel)
                await self._start(channel, window)
            elif self._idle():
                await self._cancel(channel)
                if not self._wanted:
                    self._hand_back()
            try:
                async with asyncio.timeout(self._idle_hold / 4):
                    await self._attention.wait()
            except TimeoutError:
                pass
        return channel.closed.result()

    async def _cancel(self, channel: Channel) -> None:
        """What the server sends until it knows, pika hands back by itself."""
        tag, self._tag = self._tag, ""
        self._window = self._wanted = 0
        if tag:
            channel.no_delivery()
            await channel.call("basic_cancel", tag, timeout=PATIENCE)

    def _idle(self) -> bool:
        """Whether something was sent `idle_hold` ago that nobody is about to take."""
        if self._receiving or not self._buffer:
            return False
        tag = self._buffer[0].receipt
        assert isinstance(tag, int)
        return self._loans.age(tag) >= self._idle_hold

    def _hand_back(self) -> None:
        back: list[int] = [d.receipt for d in self._buffer]  # type: ignore[misc]  # ours are tags
        self._buffer.clear()
        self._loans.let_go([], back)
        log.info("handed back what nobody takes now", queue=self._queue, count=len(back))

    def _want(self, count: int) -> None:
        """So many more are to be received now."""
        if self._window < self._prefetch and (not self._window or count + len(self._held) > self._window):
            self._wanted = max(self._wanted, min(count + len(self._held), self._prefetch))
            self._attention.set()

    def _detach(self) -> None:
        channel = self._loans.channel
        self._loans.begin(None)
        self._buffer.clear()
        self._held.clear()
        self._worn.clear()
        self._news.set()
        if channel is not None:
            channel.close()

    # ---- receive

    def _take(self, tag: int, properties: Any, body: bytes) -> None:
        self._loans.came(tag)
        due = wire.due(properties)
        left = 0.0 if due is None else due / 1e6 - time.time()
        if left > NEARLY_DUE:
            self._start_move(tag, self._ladder.next_step(self._name(self._queue), properties, body, left))
            return
        try:
            decoded = wire.decode(properties, body)
        except MessageDecodeError as error:
            origin = origin_queue(self._queue)
            decoded = wire.adopt(properties, body, origin, error)
            if not is_dead_letter_queue(self._queue):
                self._foreign.add(first_reason=str(error))
                self._start_move(tag, self._copies.dead_as(decoded))
                return
        death = decoded.death
        if death is None and is_dead_letter_queue(self._queue):
            death = wire.death_by_server(
                properties, origin_queue(self._queue), decoded.attempt, decoded.history
            )
        handed_back = wire.deferrals(properties)
        if handed_back >= WORN:
            self._worn.add(tag)
        delivery = Delivery(
            message=decoded.message,
            queue=self._queue,
            attempt=decoded.attempt if death is decoded.death else 1,
            receipt=tag,
            deferrals=decoded.deferrals + handed_back,
            death=death,
            history=decoded.history if death is decoded.death else (),
        )
        if left > 0:
            channel = self._loans.channel
            asyncio.get_running_loop().call_later(left, self._put, channel, delivery)
        else:
            self._put(self._loans.channel, delivery)

    def _put(self, channel: Channel | None, delivery: Delivery) -> None:
        if self._loans.channel is channel:
            self._buffer.append(delivery)
            self._news.set()

    async def receive(self, max_messages: int, max_wait: float) -> list[Delivery]:
        self._receiving += 1
        try:
            return await self._receive(max_messages, time.monotonic() + max_wait)
        finally:
            self._receiving -= 1

    async def _receive(self, max_messages: int, deadline: float) -> list[Delivery]:
        while True:
            self._check_open()
            target = min(max_messages, self._prefetch - len(self._held))
            self._want(target)
            if len(self._buffer) >= target > 0:
                return self._hand_out(target)
            left = deadline - time.monotonic()
            if left <= 0:
                if not self._buffer and self._trouble is not None:
                    raise BrokerUnavailable(str(self._trouble))
                return self._hand_out(target)
            self._news.clear()
            try:
                async with asyncio.timeout(left):
                    await self._news.wait()
            except TimeoutError:
                pass

    def _hand_out(self, target: int) -> list[Delivery]:
        out = [self._buffer.popleft() for _ in range(min(target, len(self._buffer)))]
        # Our receipts are delivery tags.
        self._held.update([(d.receipt, d) for d in out])  # type: ignore[misc]
        return out

    def share(self) -> Share:
        accepted = [d.message.accepted_at for d in (*self._held.values(), *self._buffer)]
        oldest = (datetime.now(UTC) - min(accepted)).total_seconds() if accepted else None
        return Share(in_hand=len(self._loans), oldest_age=oldest)

    # ---- settle

    async def settle(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        self._check_open()
        if is_dead_letter_queue(self._queue) and any(isinstance(s, DeadLetter) for s in settlements):
            raise ValueError("what comes from a dead-letter queue cannot be dead-lettered again")
        stale: list[Delivery] = []
        done: list[int] = []
        back: list[int] = []
        copies: list[tuple[Delivery, Outgoing]] = []
        for s in settlements:
            d = s.delivery
            tag = d.receipt
            assert isinstance(tag, int)
            if self._held.get(tag) is not d:
                stale.append(d)
                continue
            del self._held[tag]
            outgoing: Outgoing | None = None
            match s:
                case Ack():
                    done.append(tag)
                case Retry(delay=delay, history=history):
                    again = replace(d, attempt=d.attempt + 1, history=history)
                    outgoing = self._copies.again(again, delay)
                case DeadLetter():
                    outgoing = self._copies.dead(s)
                case Release() if tag in self._worn:
                    outgoing = self._copies.again(replace(d, deferrals=d.deferrals + 1), 0)
                case Release():
                    back.append(tag)
            if outgoing is not None:
                copies.append((d, outgoing))
            elif not isinstance(s, Ack) and tag not in back:
                self._loans.give_to_server(tag)
        self._loans.let_go(done, back)
        self._news.set()
        if done and self._window:
            self._want(self._prefetch)
        if copies:
            # To the end, even if whoever waits for it is cancelled: these are no longer held.
            stale += await asyncio.shield(self._spawn(self._copy(copies)))
        return stale

    async def _copy(self, copies: list[tuple[Delivery, Outgoing]]) -> list[Delivery]:
        """Confirmed copies, then the originals are let go; what was not confirmed is handed back."""
        channel = self._loans.channel
        error: ForebayError | None = None
        done: list[int] = []
        back: list[int] = []
        try:
            if any(out.exchange for _, out in copies):
                await self._ladder.ready()
            batch = await self._publisher.publish([out for _, out in copies], COPY_PATIENCE)
            for (d, _), result in zip(copies, batch.results, strict=True):
                assert isinstance(d.receipt, int)
                if result is not None and result.ok:
                    done.append(d.receipt)
                else:
                    error = result.error if result is not None else None
                    back.append(d.receipt)
        except ForebayError as failure:
            # Also a SettingsError: a delay queue that exists with other arguments, or that we may not use.
            error = failure
            back = [d.receipt for d, _ in copies if isinstance(d.receipt, int)]
        if channel is None or self._loans.channel is not channel:
            return [d for d, _ in copies]
        self._loans.let_go(done, back)
        if error is not None:
            raise BrokerUnavailable(f"{len(back)} of {len(copies)} not settled; delivered again: {error}")
        return []

    # ---- moves of our own: down the ladder, to the dead letters

    def _start_move(self, tag: int, out: Outgoing | None) -> None:
        if out is None:
            self._loans.give_to_server(tag)
            return
        self._spawn(self._move(tag, out, self._loans.channel))

    async def _move(self, tag: int, out: Outgoing, channel: Channel | None) -> None:
        while self._loans.channel is channel and not self._closed:
            try:
                if out.exchange:
                    await self._ladder.ready()
                batch = await self._publisher.publish([out], COPY_PATIENCE)
                result = batch.results[0]
                if result is not None and result.ok:
                    if self._loans.channel is channel:
                        self._loans.let_go([tag], [])
                    return
            except ForebayError as error:
                self._unmoved.add(error=str(error))
            await asyncio.sleep(AGAIN)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._moves.add(task)
        task.add_done_callback(self._moved)
        return task

    def _moved(self, task: asyncio.Task[Any]) -> None:
        self._moves.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits; if nobody does, the message comes again

    # ---- close

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed(f"the subscription to {self._queue!r} is closed")

    async def close(self, timeout: float) -> None:
        """Hand back what is held, and what waits in the buffer. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._news.set()
        if self._moves:
            await asyncio.wait(self._moves, timeout=timeout / 2)
            for move in self._moves:
                move.cancel()
        channel = self._loans.channel
        self._detach()
        self._foreign.close()
        self._unmoved.close()
        if channel is not None:
            # Until the server has it: whoever subscribes next finds the messages.
            await asyncio.wait((channel.closed,), timeout=timeout / 2)
        self._task.cancel()
        await asyncio.wait((self._task,))
        if self.first.done() and not self.first.cancelled():
            self.first.exception()
