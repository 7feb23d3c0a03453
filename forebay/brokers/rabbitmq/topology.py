"""What the queues are called on the server, what they are made with, and making sure they are there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pika.exceptions import ChannelClosedByBroker

from forebay.brokers.naming import dead_letter_queue, is_dead_letter_queue
from forebay.brokers.rabbitmq.link import Channel, Connection
from forebay.brokers.rabbitmq.settings import RabbitMQSettings
from forebay.errors import BrokerUnavailable, QueueNotFound, SettingsError

NOT_FOUND = 404
PRECONDITION_FAILED = 406

DELIVERY_LIMIT = 1000
"""
A net under messages that kill their consumer again and again; the server moves them to the dead letters.

Set, because without it 4.x drops them after 20, and older servers put what is handed
back at the end of the queue.
"""
PATIENCE = 10.0


class Topology:
    """Names and arguments. A queue's arguments are for ever: they must not vary from start to start."""

    def __init__(self, settings: RabbitMQSettings) -> None:
        self._settings = settings

    def queue(self, name: str) -> str:
        return self._settings.prefix + name

    def origin(self, server_name: str) -> str:
        return server_name.removeprefix(self._settings.prefix)

    def rung(self, delay: float) -> str:
        """The delay queue, and the exchange before it."""
        return f"{self._settings.prefix}forebay.delay.{delay:g}s"

    def arguments(self, name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-quorum-initial-group-size": self._settings.replicas,
            "x-queue-leader-locator": "balanced",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-overflow": "reject-publish",
            "x-max-length-bytes": self._settings.max_bytes,
        }
        if is_dead_letter_queue(name):
            # Nothing behind it: what is there may be handed back for ever, and is never dropped for it.
            return arguments | {"x-delivery-limit": 2**31 - 1}
        return arguments | {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.queue(dead_letter_queue(name)),
            "x-dead-letter-strategy": "at-least-once",
        }

    def rung_arguments(self, delay: float) -> dict[str, Any]:
        # No routing key for the way home: the message's own is used, which names its queue.
        return {
            "x-queue-type": "quorum",
            "x-quorum-initial-group-size": self._settings.replicas,
            "x-queue-leader-locator": "balanced",
            "x-message-ttl": max(1, round(delay * 1000)),
            "x-overflow": "reject-publish",
            "x-max-length-bytes": self._settings.max_bytes,
            "x-dead-letter-exchange": "",
            "x-dead-letter-strategy": "at-least-once",
        }


async def declare_queue(channel: Channel, name: str, arguments: dict[str, Any]) -> None:
    """
    Raises:
        SettingsError: it is there, made with other arguments, or we may not.
        BrokerUnavailable
    """
    try:
        await channel.call("queue_declare", name, durable=True, arguments=arguments, timeout=PATIENCE)
    except ChannelClosedByBroker as refused:
        if refused.reply_code == PRECONDITION_FAILED:
            raise SettingsError(_other_arguments(name, refused.reply_text)) from refused
        raise refusal(name, refused) from refused


def _other_arguments(name: str, text: str) -> str:
    found = re.search(r"inequivalent arg '([^']+)'.*?received (.*?) but current is (.*)", text)
    what = f"{found[1]} is {found[3]} there and {found[2]} here" if found else text
    return (
        f"the queue {name!r} exists on RabbitMQ with other arguments: {what}."
        " The arguments of a queue cannot be changed: set broker.rabbitmq back to what it was made with,"
        " choose another broker.rabbitmq.prefix, or delete the queue when it is empty"
    )


def refusal(name: str, refused: ChannelClosedByBroker) -> Exception:
    if refused.reply_code == 403:
        return SettingsError(f"RabbitMQ does not allow this user to use {name!r}: {refused.reply_text}")
    return BrokerUnavailable(f"RabbitMQ refused {name!r}: {refused.reply_code} {refused.reply_text}")


async def declare_ladder(connection: Connection, topology: Topology, delays: Sequence[float]) -> None:
    """The delay queues, each behind an exchange, so that the routing key is free to name the way home."""
    channel = await Channel.open(connection, PATIENCE)
    try:
        for delay in delays:
            rung = topology.rung(delay)
            await declare_queue(channel, rung, topology.rung_arguments(delay))
            await channel.call("exchange_declare", rung, "fanout", durable=True, timeout=PATIENCE)
            await channel.call("queue_bind", rung, rung, timeout=PATIENCE)
    except ChannelClosedByBroker as refused:
        raise refusal(rung, refused) from refused
    finally:
        channel.close()


async def look(connection: Connection, queue: str, server_name: str) -> tuple[int, int]:
    """
    How many messages wait in a queue, and how many consumers it has.

    Raises:
        QueueNotFound, BrokerUnavailable
    """
    channel = await Channel.open(connection, PATIENCE)
    try:
        frame = await channel.call("queue_declare", server_name, passive=True, timeout=PATIENCE)
        return frame.method.message_count, frame.method.consumer_count
    except ChannelClosedByBroker as refused:
        if refused.reply_code == NOT_FOUND:
            raise QueueNotFound(queue) from refused
        raise refusal(server_name, refused) from refused
    finally:
        channel.close()
