"""Delays out of fixed steps: a message hops from delay queue to delay queue until it is due."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pika import BasicProperties

from forebay.brokers.rabbitmq.link import Link
from forebay.brokers.rabbitmq.publishing import Outgoing
from forebay.brokers.rabbitmq.topology import PATIENCE, Topology, declare_ladder
from forebay.brokers.rabbitmq.wire import PERSISTENT

TOLERANCE = 1.02
"""A step may be longer than what is left by so much: two per cent late is better than one hop more."""


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

    def step(self, delay: float) -> float:
        """The longest that is not longer than the delay, or the shortest."""
        return max((d for d in self._delays if d <= delay * TOLERANCE), default=self._delays[0])

    def exchange(self, delay: float) -> str:
        return self._topology.rung(self.step(delay))

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
