"""RabbitMQ as one process sees it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pika

from forebay.brokers.api import (
    Capabilities,
    Depth,
    Durability,
    Finding,
    PublishResult,
    Subscription,
    refuse_ordered,
)
from forebay.brokers.naming import check_queue_name, dead_letter_queue
from forebay.brokers.rabbitmq import wire
from forebay.brokers.rabbitmq.examine import Facts, findings
from forebay.brokers.rabbitmq.frames import SameWay
from forebay.brokers.rabbitmq.ladder import Ladder
from forebay.brokers.rabbitmq.link import Channel, Connection, Link
from forebay.brokers.rabbitmq.management import Management
from forebay.brokers.rabbitmq.publishing import Outgoing, PublishLink
from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.brokers.rabbitmq.standing import Standing
from forebay.brokers.rabbitmq.subscription import RabbitMQSubscription
from forebay.brokers.rabbitmq.topology import PATIENCE, Topology, declare_queue, look
from forebay.brokers.rabbitmq.url import read_url
from forebay.brokers.wire import to_micros
from forebay.errors import (
    BrokerClosed,
    BrokerUnavailable,
    MessageTooLarge,
    PublishRejected,
    PublishUnconfirmed,
    SettingsError,
)
from forebay.message import Alike, Message

PING_TIMEOUT = 2.0
MOVED_BY = 200.0
"""
Seconds after which the server tries again to move a message that a full queue had refused (3 minutes, by
`dead_letter_worker_publisher_confirm_timeout`): so long it may be counted nowhere.
"""
COUNTED_EVERY = 10.0
"""Seconds; the server counts what consumers hold every five, and its management may tell the count before."""
CLOSE_TIMEOUT = 3.0


class RabbitMQBroker:
    """
    Two connections: one publishes, one consumes and declares.

    A server in alarm stops reading from connections that publish; consumers must go on,
    or the alarm would never end.
    """

    def __init__(self, url: str, settings: RabbitMQSettings) -> None:
        self._hosts = hosts = read_url(url, settings)
        self._settings = settings
        self._topology = Topology(settings)
        self._management = _management(settings, hosts[0])
        self._standing = Standing(self._management, settings.replicas)
        self._rungs = [self._topology.rung(delay) for delay in settings.delays]
        self._consumer = Link("consume", hosts, on_up=self._consumer_up, on_down=self._down)
        self._publisher = PublishLink(hosts, settings, self._returned, lambda: self._ladder.forget())
        self._ladder = Ladder(self._consumer, self._topology, settings.delays)
        self._identity = ""
        self._known: set[str] = set()
        """Queues that were seen, by their names on the server."""
        self._subscriptions: set[RabbitMQSubscription] = set()
        self._closed = False

    @staticmethod
    @contextlib.asynccontextmanager
    async def open(url: str, settings: RabbitMQSettings | None = None) -> AsyncIterator[RabbitMQBroker]:
        """
        Connect to one of the hosts.

        Raises:
            SettingsError: the URL is not readable.
            BrokerUnavailable: no host took both connections in time.
        """
        settings = settings or RabbitMQSettings()
        broker = RabbitMQBroker(url, settings)
        try:
            up = broker._both_up(2 * settings.connect_timeout)
            await asyncio.gather(up, broker._standing.look_at_cluster())
            yield broker
        finally:
            await broker.close()

    async def _both_up(self, timeout: float) -> None:
        await asyncio.gather(self._consumer.up(timeout), self._publisher.link.up(timeout))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            durability=self._standing.best,
            ordering="one_subscription",
            bounded=True,
            max_body_bytes=self._settings.max_body_bytes,
            retry_delays=self._settings.delays,
        )

    async def _consumer_up(self, connection: Connection) -> None:
        properties = connection.server_properties or {}
        name = str(properties.get("cluster_name", "RabbitMQ"))
        if _is_of_a_node(name):
            # Each server that nobody named is called so, on every machine of that name.
            name = " ".join(sorted(f"{host.host}:{host.port}" for host in self._hosts))
        vhost = connection.params.virtual_host
        self._identity = f"RabbitMQ {name} vhost {vhost} prefix {self._settings.prefix!r}"
        version = str(properties.get("version", ""))
        if _too_old(version):
            raise BrokerUnavailable(f"this is RabbitMQ {version}; Forebay needs 3.10 or later")

    def _down(self, _: str) -> None:
        self._ladder.forget()

    def _returned(self, exchange: str, server_name: str) -> None:
        if exchange:
            # A delay queue is gone, not the queue to which it leads.
            self._ladder.forget()
            return
        self._known.discard(server_name)
        self._standing.forget(server_name)

    @property
    def identity(self) -> str:
        """
        The cluster's name; of a cluster without one, the hosts of the URL.

        Until somebody names a cluster, each of its nodes calls it after itself.
        """
        return self._identity

    # ---- publish

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        self._check_open()
        if not messages:
            return []
        deadline = time.monotonic() + timeout
        # Before anything else that waits: a server that takes nothing is told at once.
        self._publisher.check_up()
        now = time.time()
        kinds = [messages.common] if isinstance(messages, Alike) else messages
        delayed = any(m.not_before is not None and m.not_before.timestamp() > now for m in kinds)
        name = self._topology.queue(queue)
        if name not in self._known or delayed:
            try:
                async with asyncio.timeout(timeout):
                    await self._prepare(queue, name, delayed)
            except TimeoutError:
                raise BrokerUnavailable(f"RabbitMQ did not answer within {timeout:g} s") from None
        outgoing: SameWay | Sequence[Outgoing] | None = None
        if isinstance(messages, Alike) and not delayed:
            outgoing = self._outgoing_alike(name, messages)
        if outgoing is None:
            outgoing = [self._outgoing(name, m, now) for m in messages]
        durability = self._standing.of((name, *self._rungs) if delayed else (name,))
        batch = await self._publisher.publish(outgoing, max(0.0, deadline - time.monotonic()), durability)
        return [r or _unknown(id_) for id_, r in zip(batch.ids, batch.results, strict=True)]

    async def _prepare(self, queue: str, name: str, delayed: bool) -> None:
        if name not in self._known:
            await look(await self._consumer.up(PATIENCE), queue, name)
            self._known.add(name)
            self._standing.watch((name, *self._rungs))
        if delayed:
            await self._ladder.ready()

    def _outgoing_alike(self, name: str, messages: Alike) -> SameWay | None:
        """All of them, if nothing is to be said of any."""
        if max(map(len, messages.bodies)) > self._settings.max_body_bytes:
            return None
        try:
            properties = wire.firsts(messages)
            wire.check(max(properties, key=len), self._publisher.frame_max)
        except ValueError:
            return None
        return SameWay("", name, messages.ids, properties, messages.bodies)

    def _outgoing(self, name: str, m: Message, now: float) -> Outgoing:
        limit = self._settings.max_body_bytes
        body = m.body
        if len(body) > limit:
            return Outgoing(m.id, "", name, b"", b"", MessageTooLarge(len(body), limit))
        exchange = ""
        try:
            if m.not_before is not None and (left := m.not_before.timestamp() - now) > 0:
                exchange = self._ladder.exchange(left)
                properties = wire.properties(m, due=to_micros(m.not_before))
            else:
                properties = wire.first(m)
            wire.check(properties, self._publisher.frame_max)
        except ValueError as error:
            return Outgoing(m.id, "", name, b"", b"", PublishRejected(str(error)))
        return Outgoing(m.id, exchange, name, properties, body)

    async def declare(self, queue: str) -> Durability:
        self._check_open()
        check_queue_name(queue)
        connection = await self._consumer.up(PATIENCE)
        channel = await Channel.open(connection, PATIENCE)
        try:
            # The dead-letter queue first: the other one points to it.
            for name in (dead_letter_queue(queue), queue):
                server_name = self._topology.queue(name)
                await declare_queue(channel, server_name, self._topology.arguments(name))
                self._known.add(server_name)
        finally:
            channel.close()
        await self._ladder.ready()
        await self._standing.read_new((self._topology.queue(queue), *self._rungs))
        return self._standing.expected(self._topology.queue(queue))

    async def declared_queues(self) -> list[str] | None:
        """Told by the management API only: queues with a name of ours that have dead letters."""
        self._check_open()
        if self._management is None:
            return None
        names = set(await self._management.queue_names())
        ours = [self._topology.origin(n) for n in names if n.startswith(self._settings.prefix)]
        return sorted(
            name for name in ours if _is_ours(name) and self._topology.queue(dead_letter_queue(name)) in names
        )

    # ---- consume

    @contextlib.asynccontextmanager
    async def subscribe(
        self, queue: str, *, prefetch: int, ordered: bool = False
    ) -> AsyncIterator[Subscription]:
        self._check_open()
        refuse_ordered(ordered, "RabbitMQ")
        subscription = RabbitMQSubscription(
            link=self._consumer,
            publisher=self._publisher,
            ladder=self._ladder,
            queue=queue,
            server_name=self._topology.queue,
            prefetch=prefetch,
            idle_hold=self._settings.idle_hold,
        )
        self._subscriptions.add(subscription)
        try:
            await subscription.first
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.close(CLOSE_TIMEOUT)

    async def depth(self, queue: str) -> Depth:
        """
        What waits is what the server says now; the rest what it counted last, up to ten seconds ago.

        What was sent to a consumer does not wait any more, received or not. Which queue the
        messages on the delay queues belong to is not told, but whether there are any.
        """
        self._check_open()
        connection = await self._consumer.up(PATIENCE)
        name = self._topology.queue(queue)
        waiting, _ = await look(connection, queue, name)
        delayed = await self._ladder.holds_any(connection)
        in_hand = size = None
        lag = MOVED_BY if self._management is None else COUNTED_EVERY
        unknown = "RabbitMQ tells no ages"
        try:
            state = None if self._management is None else await self._management.queue(name)
            delayed = delayed or await self._moving()
        except BrokerUnavailable as error:
            unknown = f"{error}; {unknown}"
            lag = MOVED_BY
        else:
            if self._management is None:
                unknown = (
                    f"AMQP tells only what waits, the rest needs broker.rabbitmq.management_url; {unknown}"
                )
            elif state is not None:
                in_hand = state.unacknowledged
                size = None if delayed else state.bytes
        if delayed:
            unknown += "; the delay queues are those of all queues"
        return Depth(
            waiting=waiting,
            scheduled=None if delayed else 0,
            in_hand=in_hand,
            bytes=size,
            oldest_age=None,
            lag=lag,
            unknown=unknown,
        )

    async def _moving(self) -> bool:
        """
        Whether a message has left a delay queue and not arrived: its queue is full, or has no leader.

        AMQP counts it nowhere.
        """
        if self._management is None:
            return False
        states = await asyncio.gather(*(self._management.queue(rung) for rung in self._rungs))
        return any(state is not None and state.on_the_way for state in states)

    # ---- the rest

    async def examine(self, queues: Sequence[str]) -> list[Finding]:
        self._check_open()
        connection = await self._consumer.up(PATIENCE)
        properties = connection.server_properties or {}
        cluster_name = str(properties.get("cluster_name", ""))
        facts = Facts(
            version=str(properties.get("version", "")),
            cluster_name=cluster_name,
            named=not _is_of_a_node(cluster_name),
            hosts=len(self._hosts),
            blocked=self._publisher.blocked,
        )
        if self._management is None:
            return findings(replace(facts, unmanaged="how many nodes hold a queue, AMQP does not tell"))
        names = [self._topology.queue(n) for queue in queues for n in (queue, dead_letter_queue(queue))]
        try:
            facts = replace(
                facts,
                nodes=await self._management.nodes(),
                flags=await self._management.feature_flags(),
                queues={name: await self._management.queue(name) for name in (*names, *self._rungs)},
            )
        except BrokerUnavailable as error:
            facts = replace(facts, unmanaged=str(error))
        return findings(facts)

    async def ping(self) -> None:
        self._check_open()
        await self._publisher.ping(PING_TIMEOUT)

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerClosed("the connection to RabbitMQ was closed")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*[s.close(CLOSE_TIMEOUT) for s in self._subscriptions])
        await asyncio.gather(
            self._consumer.close(CLOSE_TIMEOUT), self._publisher.close(CLOSE_TIMEOUT), self._standing.close()
        )


def _management(settings: RabbitMQSettings, host: pika.ConnectionParameters) -> Management | None:
    if settings.management_url is None:
        return None
    return Management(
        settings.management_url.get_secret_value(),
        user=host.credentials.username,
        password=host.credentials.password,
        vhost=host.virtual_host,
        tls=settings.tls,
    )


def _is_ours(name: str) -> bool:
    try:
        check_queue_name(name)
    except SettingsError:
        return False
    return True


def _is_of_a_node(cluster_name: str) -> bool:
    """Whether a cluster's name may be what its node at hand calls it, because it was given none."""
    return "@" in cluster_name


def _too_old(version: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < (3, 10)


def _unknown(message_id: str) -> PublishResult:
    return PublishResult(message_id=message_id, error=PublishUnconfirmed("no answer from RabbitMQ"))
