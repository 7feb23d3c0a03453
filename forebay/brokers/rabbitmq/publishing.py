"""The publishing connection: many messages in flight, each answered for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pika
import structlog
from pika import BasicProperties
from pika.exceptions import AMQPError

from forebay.brokers.api import Durability
from forebay.brokers.rabbitmq.confirms import Batch, Confirms
from forebay.brokers.rabbitmq.frames import SameWay
from forebay.brokers.rabbitmq.link import Channel, Connection, Link
from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.rabbitmq.wire import FRAME_MAX
from forebay.errors import BrokerUnavailable, NotSent, PublishRejected

log = structlog.get_logger()

CANARY = "forebay.canary"
"""A routing key that leads nowhere: the message is confirmed and dropped."""
CANARY_PATIENCE = 4.0

SILENT = 1.0
"""Seconds without any answer, while some are owed, after which one of several nodes is asked if it lives."""
HUNG = 3.0
"""Seconds that it has to confirm a canary then."""

RENEW_EVERY = 0.25
"""Seconds between two new channels while messages are refused."""


@dataclass(slots=True)
class Outgoing:
    """One message as it goes over the wire."""

    id: str
    exchange: str
    routing_key: str
    properties: bytes
    """As they stand in the header frame."""
    body: bytes
    refused: PublishRejected | None = None
    """Why it cannot be sent at all."""


def _same_way(messages: Sequence[Outgoing]) -> SameWay | None:
    """All of them, if all can be sent and go the same way."""
    exchange, routing_key = messages[0].exchange, messages[0].routing_key
    for m in messages:
        if m.refused is not None or m.exchange != exchange or m.routing_key != routing_key:
            return None
    return SameWay(
        exchange,
        routing_key,
        [m.id for m in messages],
        [m.properties for m in messages],
        [m.body for m in messages],
    )


def _each(messages: SameWay) -> list[Outgoing]:
    exchange, routing_key = messages.exchange, messages.routing_key
    each = zip(messages.ids, messages.properties, messages.bodies, strict=True)
    return [Outgoing(id_, exchange, routing_key, properties, body) for id_, properties, body in each]


class PublishLink:
    """
    Publishes, within bounds on what is unconfirmed.

    After each connect a canary is published first: a server in alarm says so only to
    those who publish. It still confirms that first message, with the word that it is
    blocked before it; 3.10 was seen to do so.

    A channel that was opened after a node was lost and before its queues had a new
    leader refuses every message to them until that node is back (3.10 was seen to do so
    for a minute and longer). So messages that are refused get a new channel, in case
    it is not the queue's limit.

    A node that hangs keeps its connections. Where there are others it is given up after
    some seconds, long before the heartbeat tells. On a node that lives, a channel may wait
    as long for a queue whose leader hangs; then the other queues get a new connection by it.
    """

    def __init__(
        self,
        hosts: Sequence[pika.ConnectionParameters],
        settings: RabbitMQSettings,
        on_returned: Callable[[str, str], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._on_returned = on_returned
        self._on_lost = on_lost
        self._channel: Channel | None = None
        self._confirms = Confirms(self._make_room)
        self._retired: dict[Channel, Confirms] = {}
        """Replaced channels that still wait for answers."""
        self._opened_at = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._several = len(hosts) > 1
        self._room = asyncio.Event()
        self._queue = asyncio.Lock()
        self.blocked: str | None = None
        self.frame_max = FRAME_MAX
        """What was agreed with the server last."""
        self.link = Link("publish", hosts, on_up=self._prepare, on_down=self._down)

    async def _prepare(self, connection: Connection) -> None:
        self.blocked = None
        self.frame_max = connection.params.frame_max
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        await self._open(connection)
        channel = self._channel
        assert channel is not None
        batch = self._send_canary()
        await asyncio.wait(
            (batch.done, channel.closed), timeout=CANARY_PATIENCE, return_when=asyncio.FIRST_COMPLETED
        )
        result = batch.results[0]
        if self.blocked is None and (result is None or not result.ok):
            raise BrokerUnavailable("RabbitMQ takes no messages: a first one was not confirmed")
        if self._several:
            self._watching = asyncio.get_running_loop().create_task(self._watch(connection))

    async def _watch(self, connection: Connection) -> None:
        seen = -1
        while connection.is_open:
            await asyncio.sleep(SILENT)
            confirms, before = self._confirms, seen
            seen = confirms.answers
            if not confirms.count or confirms.answers != before or self.blocked is not None:
                continue
            try:
                canary = self._send_canary()
            except AMQPError:
                return  # the connection is ending already
            await asyncio.wait((canary.done,), timeout=HUNG)
            if not canary.done.done() and self.blocked is None:
                connection.abort(f"the node hangs: it answered nothing for {SILENT + HUNG:g} s")
                return

    async def _open(self, connection: Connection) -> None:
        """A channel that confirms, for all that is published from now on."""
        patience = self._settings.connect_timeout
        channel = await Channel.open(connection, patience)
        confirms = Confirms(self._make_room)

        def on_answer(frame: Any) -> None:
            method = frame.method
            taken = isinstance(method, pika.spec.Basic.Ack)
            confirms.answered(method.delivery_tag, multiple=method.multiple, taken=taken)
            if not taken:
                self._renew(connection)

        def on_return(_: Any, method: Any, properties: Any, body: bytes) -> None:
            self._on_returned(method.exchange, method.routing_key)
            confirms.returned(properties.message_id or "", method.exchange, method.routing_key)

        # The first publish must come after the answer, or the two sides count differently.
        await channel.call("confirm_delivery", on_answer, timeout=patience)
        channel.raw.add_on_return_callback(on_return)
        channel.hear(confirms.taken)
        if self._channel is not None:
            self._retired[self._channel] = self._confirms
        self._channel, self._confirms = channel, confirms
        self._opened_at = time.monotonic()
        channel.closed.add_done_callback(lambda closed: self._channel_closed(connection, channel, closed))
        self._make_room()

    def _renew(self, connection: Connection) -> None:
        if self._renewing is None and time.monotonic() - self._opened_at > RENEW_EVERY:
            self._renewing = asyncio.get_running_loop().create_task(self._open_again(connection))

    async def _open_again(self, connection: Connection) -> None:
        try:
            await self._open(connection)
        except (BrokerUnavailable, AMQPError) as error:
            log.info("no new channel to RabbitMQ; the old one is kept", reason=str(error))
        finally:
            if self._renewing is asyncio.current_task():
                self._renewing = None

    def _channel_closed(
        self, connection: Connection, channel: Channel, closed: asyncio.Future[Exception]
    ) -> None:
        if channel is not self._channel and channel not in self._retired:
            return  # we closed it
        # A channel that the server closed took its confirmations along; a new connection starts clean.
        if connection.is_open and not closed.cancelled():
            log.error("RabbitMQ closed the publishing channel", reason=str(closed.result()))
            connection.close()

    def _send_canary(self) -> Batch:
        assert self._channel is not None
        batch = Batch([CANARY], "synced")
        self._channel.raw.basic_publish("", CANARY, b"", BasicProperties(message_id=CANARY), mandatory=False)
        self._confirms.sent(batch, 0, [0], "", CANARY)
        return batch

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self.blocked = str(frame.method.reason)
        log.warning("RabbitMQ takes no messages", reason=self.blocked)

    def _on_unblocked(self, *_: Any) -> None:
        self.blocked = None
        log.info("RabbitMQ takes messages again")

    def _down(self, reason: str) -> None:
        self._on_lost()
        self._channel = None
        for task in (self._renewing, self._watching):
            if task is not None:
                task.cancel()
        self._renewing = self._watching = None
        retired, self._retired = self._retired, {}
        for confirms in (self._confirms, *retired.values()):
            confirms.lost(reason)
        self._make_room()

    def _make_room(self) -> None:
        self._room.set()
        for channel, confirms in list(self._retired.items()):
            if not confirms.count:
                del self._retired[channel]
                channel.close()

    def check_up(self) -> None:
        """
        Raises:
            BrokerUnavailable: nothing can be published now.
        """
        if self.link.connection is None or self._channel is None:
            raise BrokerUnavailable(f"no connection to RabbitMQ: {self.link.reason}")
        if self.blocked is not None:
            raise BrokerUnavailable(f"RabbitMQ takes no messages: blocked by {self.blocked}")

    def _full(self, count: int, size: int) -> bool:
        """Whether there is no room for so many more messages of so many bytes together."""
        confirms = self._confirms
        open_, bytes_ = confirms.count, confirms.bytes
        for retired in self._retired.values():
            open_ += retired.count
            bytes_ += retired.bytes
        return open_ + count > self._settings.max_unconfirmed or (
            open_ > 0 and bytes_ + size > self._settings.max_unconfirmed_bytes
        )

    async def publish(
        self, messages: SameWay | Sequence[Outgoing], timeout: float, durability: Durability = "synced"
    ) -> Batch:
        """
        Send all of them and wait for the answers, `timeout` seconds at most.

        `durability` is what a confirmation means for them.

        Raises:
            BrokerUnavailable: nothing was sent.
        """
        deadline = time.monotonic() + timeout
        self.check_up()
        if not isinstance(messages, SameWay):
            messages = _same_way(messages) or messages
        if isinstance(messages, SameWay):
            batch = Batch(messages.ids, durability)
            sizes = [*map(len, messages.bodies)]
            if self._full(len(sizes), sum(sizes)):
                await self._send_each(batch, _each(messages), sizes, deadline)
            else:
                self._send(batch, messages, sizes)
        else:
            batch = Batch([m.id for m in messages], durability)
            await self._send_each(batch, messages, [len(m.body) for m in messages], deadline)
        if batch.open:
            left = max(0.0, deadline - time.monotonic())
            timer = asyncio.get_running_loop().call_later(
                left, batch.expire, f"no confirmation from RabbitMQ within {timeout:g} s"
            )
            try:
                await batch.done
            finally:
                timer.cancel()
        return batch

    def _send(self, batch: Batch, messages: SameWay, sizes: list[int]) -> None:
        """
        Raises:
            BrokerUnavailable: nothing was sent.
        """
        assert self._channel is not None
        try:
            self._channel.publish(messages)
        except AMQPError as error:
            raise BrokerUnavailable(f"no connection to RabbitMQ: {error!r}") from error
        self._confirms.sent(batch, 0, sizes, messages.exchange, messages.routing_key)

    async def _send_each(
        self, batch: Batch, messages: Sequence[Outgoing], sizes: Sequence[int], deadline: float
    ) -> None:
        """
        One by one, as there is room; what cannot be sent is settled as such.

        Raises:
            BrokerUnavailable: nothing was sent.
        """
        # One channel for all of them, or they could overtake each other.
        channel, confirms = self._channel, self._confirms
        assert channel is not None
        sent = 0
        for index, (m, size) in enumerate(zip(messages, sizes, strict=True)):
            if m.refused is not None:
                batch.settle(index, m.refused)
                continue
            if self._full(1, size) and not await self._wait_for_room(size, deadline):
                if not sent:
                    raise BrokerUnavailable(
                        f"no room to send in time: {self._confirms.count} messages are unconfirmed"
                    )
                batch.settle(index, NotSent("too many messages wait for their confirmation"))
                continue
            if self._channel is None or self.blocked is not None:
                if not sent:
                    self.check_up()
                batch.settle(
                    index,
                    NotSent(f"no connection to RabbitMQ: {self.blocked or self.link.reason}"),
                )
                continue
            try:
                channel.publish(SameWay(m.exchange, m.routing_key, [m.id], [m.properties], [m.body]))
            except AMQPError as error:
                if not sent:
                    raise BrokerUnavailable(f"no connection to RabbitMQ: {error!r}") from error
                batch.settle(index, NotSent(f"no connection to RabbitMQ: {error!r}"))
                continue
            confirms.sent(batch, index, [size], m.exchange, m.routing_key)
            sent += 1

    async def _wait_for_room(self, size: int, deadline: float) -> bool:
        """In turn: a large message is not overtaken for ever by small ones."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())), self._queue:
                while self._full(1, size) and self._channel is not None:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            return False
        return True

    async def ping(self, timeout: float) -> None:
        """
        Raises:
            BrokerUnavailable
        """
        self.check_up()
        try:
            batch = self._send_canary()
        except AMQPError as error:
            raise BrokerUnavailable(f"no connection to RabbitMQ: {error!r}") from error
        await asyncio.wait((batch.done,), timeout=timeout)
        result = batch.results[0]
        if result is None:
            raise BrokerUnavailable(f"RabbitMQ did not confirm a message within {timeout:g} s")
        if result.error is not None:
            raise BrokerUnavailable(str(result.error))

    async def close(self, timeout: float) -> None:
        await self.link.close(timeout)
