"""Which queues this gateway takes messages for."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from forebay.brokers.api import Durability
from forebay.brokers.naming import check_queue_name
from forebay.errors import BrokerUnavailable, SettingsError

log = structlog.get_logger()

MAX_FIRST_USE = 500
"""Queues that requests may bring into being: a client that makes up names must not fill the broker."""


DECLARE_TIMEOUT = 5.0


class Declares(Protocol):
    async def declare(self, queue: str) -> Durability: ...

    async def declared_queues(self) -> list[str] | None: ...


class QueueRegistry:
    """
    The declared queues. In development, a queue is declared by its first message.

    `on_declared` is called with each queue that was not among `names`: the consumer
    of the same process then takes it on.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        declare_on_first_use: bool = False,
        on_declared: Callable[[str], None] | None = None,
    ) -> None:
        self._names = {check_queue_name(name): None for name in names}
        self.declare_on_first_use = declare_on_first_use
        self._on_declared = on_declared
        self._first_uses = 0
        self._lock = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def nearest(self, name: str, allowed: Callable[[str], bool] = lambda _: True) -> str | None:
        """The declared queue, of those allowed, that `name` may be a slip of."""
        names = [own for own in self._names if allowed(own)]
        return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.75)), None)

    async def declare_all(self, broker: Declares) -> dict[str, Durability]:
        """
        Declare every queue and tell what each reaches; with first use allowed, take on earlier ones.

        Raises:
            BrokerUnavailable.
        """
        reached = {name: await broker.declare(name) for name in self._names}
        if self.declare_on_first_use:
            for name in await broker.declared_queues() or []:
                if name not in self._names and _allowed(name):
                    self._take_on(name)
        return reached

    async def first_use(self, broker: Declares, name: str) -> bool:
        """
        Declare a queue that a message was sent to; False if this gateway does not do that.

        Raises:
            BrokerUnavailable.
        """
        if not self.declare_on_first_use or not _allowed(name):
            return False
        async with self._lock:
            if name in self._names:
                return True
            if self._first_uses >= MAX_FIRST_USE:
                return False
            try:
                async with asyncio.timeout(DECLARE_TIMEOUT):
                    await broker.declare(name)
            except TimeoutError:
                raise BrokerUnavailable("the broker did not declare the queue in time") from None
            self._first_uses += 1
            nearest = self.nearest(name)
            self._take_on(name)
        if nearest:
            log.warning("queue declared on first use; is it a slip?", queue=name, did_you_mean=nearest)
        else:
            log.info("queue declared on first use", queue=name)
        return True

    def _take_on(self, name: str) -> None:
        self._names[name] = None
        if self._on_declared is not None:
            self._on_declared(name)


def _allowed(name: str) -> bool:
    try:
        check_queue_name(name)
    except SettingsError:
        return False
    return True
