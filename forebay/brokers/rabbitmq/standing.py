"""How durable the queues are, as far as it is known: asked for in the background, answered from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from forebay.brokers.api import DURABILITIES, Durability
from forebay.brokers.rabbitmq.management import MAJORITY_OF_THREE, TIMEOUT, Management
from forebay.errors import BrokerUnavailable

log = structlog.get_logger()

REFRESH = 15.0
"""Seconds between two looks at the members of a queue."""

UNKNOWN: Durability = "synced"
"""What a quorum queue is at least: its confirmation comes after the disk."""


class Standing:
    """
    The durability of each queue that was used, by its name on the server.

    The last answer stands while nobody answers: members change by an operator's hand
    only. A queue that was never seen is `synced`.
    """

    def __init__(self, management: Management | None, replicas: int) -> None:
        self._management = management
        self._known: dict[str, Durability] = {}
        self._watched: dict[str, None] = {}
        self._silent = False
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.best: Durability = UNKNOWN
        """The most that can be reached; as configured, until the cluster was asked."""
        if management is not None:
            if replicas >= MAJORITY_OF_THREE:
                self.best = "replicated"
            self._task = asyncio.get_running_loop().create_task(self._run(), name="forebay-rabbitmq-standing")

    async def look_at_cluster(self) -> None:
        """A cluster that has too few nodes lowers `best`. Returns in time, whoever answers."""
        if self._management is None:
            return
        try:
            nodes = await self._management.nodes()
        except BrokerUnavailable as error:
            self._not_told(error)
            return
        if len(nodes) < MAJORITY_OF_THREE:
            self.best = UNKNOWN

    def watch(self, server_names: Iterable[str]) -> None:
        """From now on, these too."""
        if self._management is not None and not self._watched.keys() >= set(server_names):
            self._watched |= dict.fromkeys(server_names)
            self._look.set()

    def forget(self, server_name: str) -> None:
        """It was deleted: what comes in its place is unknown."""
        self._known.pop(server_name, None)

    def of(self, server_names: Iterable[str]) -> Durability:
        """Of a message that is, or will be, in all of these."""
        return min((self._known.get(name, UNKNOWN) for name in server_names), key=DURABILITIES.index)

    def expected(self, server_name: str) -> Durability:
        """What is known of a queue; of one just made, which nobody tells of yet, what can be reached."""
        return self._known.get(server_name, self.best)

    async def read_new(self, server_names: Iterable[str]) -> None:
        """Those not known yet, now, or soon; from now on they are watched. Returns in time."""
        names = [name for name in server_names if name not in self._known]
        self._watched |= dict.fromkeys(names)
        try:
            async with asyncio.timeout(TIMEOUT):
                await self.read(names)
        except TimeoutError:
            self._look.set()

    async def read(self, server_names: Iterable[str]) -> None:
        """Now, as many as are told."""
        if self._management is None:
            return
        try:
            for name in server_names:
                state = await self._management.queue(name)
                if state is None:
                    self._known.pop(name, None)
                    continue
                found = state.durability
                if self._known.get(name, found) != found:
                    log.warning("the durability of a queue changed", queue=name, durability=found)
                self._known[name] = found
        except BrokerUnavailable as error:
            self._not_told(error)
        else:
            self._silent = False

    def _not_told(self, error: BrokerUnavailable) -> None:
        if not self._silent:
            log.warning("the durability of queues is not known anew", reason=str(error))
        self._silent = True

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(REFRESH):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                await self.read(list(self._watched))
            except Exception:
                # Whatever it was: who stops looking would call a queue replicated for ever.
                log.exception("the durability of queues is not known anew")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._management is not None:
            await self._management.close()
