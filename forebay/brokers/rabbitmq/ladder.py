"""Delays out of fixed steps: a message hops from delay queue to delay queue until it is due."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pika import BasicProperties

from forebay.brokers.rabbitmq.link import Connection, Link
from forebay.brokers.rabbitmq.publishing import Outgoing
from forebay.brokers.rabbitmq.topology import PATIENCE, Topology, declare_ladder, look
from forebay.brokers.rabbitmq.wire import PERSISTENT
from forebay.errors import QueueNotFound

TOLERANCE = 1.02
"""A step may be longer than what is left by so much: two per cent late is better than one hop more."""


def step(delays: Sequence[float], left: float) -> float:
    """The longest of `delays` that is not longer than what is left, or the shortest."""
    return max((d for d in delays if d <= left * TOLERANCE), default=delays[0])


class Ladder:
    """
    Which delay queue comes next, and that they are there.

    One queue per step, with its time to live on the queue: messages leave at the head
    only, so different times in one queue would wait for each other. When its time is up
    the server moves a message to the queue that its routing key names.
    """

    def __init__(self, link: Link, topology: Topology, delays: Sequence[float]) -> None:
        self._link = link
        self._topology = topology
        self._delays = tuple(delays)
        self._declared = False
        self._lock = asyncio.Lock()

    async def ready(self) -> None:
        """
        Raises:
            SettingsError, BrokerUnavailable
        """
        if self._declared:
            return
        async with self._lock:
            if not self._declared:
                await declare_ladder(await self._link.up(PATIENCE), self._topology, self._delays)
                self._declared = True

    def forget(self) -> None:
        """After a lost connection: somebody may have deleted them."""
        self._declared = False

    async def holds_any(self, connection: Connection) -> bool:
        """
        Whether a message of any queue waits for its time.

        Raises:
            BrokerUnavailable
        """
        for rung in map(self._topology.rung, self._delays):
            try:
                if (await look(connection, rung, rung))[0] > 0:
                    return True
            except QueueNotFound:
                pass  # It is made when it is first needed.
        return False

    def exchange(self, delay: float) -> str:
        return self._topology.rung(step(self._delays, delay))

    def next_step(self, server_name: str, properties: Any, body: bytes, left: float) -> Outgoing:
        """One hop more, with everything as it is but what the server wrote on its way."""
        headers = {n: v for n, v in (properties.headers or {}).items() if not n.startswith("x-")}
        copy = BasicProperties(
            message_id=properties.message_id,
            content_type=properties.content_type,
            timestamp=properties.timestamp,
            delivery_mode=PERSISTENT,
            headers=headers,
        )
        encoded: bytes = b"".join(copy.encode())
        return Outgoing(properties.message_id or "", self.exchange(left), server_name, encoded, body)
