"""A broker that may not be there yet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog

from forebay.brokers.api import Broker, Capabilities, Depth, Durability, Finding, PublishResult, Subscription
from forebay.errors import BrokerError, BrokerUnavailable, SettingsError
from forebay.message import Message

log = structlog.get_logger()

PAUSE = (0.25, 5.0)
"""Seconds after a first failure to open it, and the most that this grows to."""


class LateBroker:
    """
    Opens a broker in the background, again and again, and is that broker from then on.

    Until then everything raises BrokerUnavailable, with the reason. `prepare` is called with it when it
    is open and before anybody can use it; if that raises, it is closed and opened again.
    """

    def __init__(
        self,
        opener: Callable[[], AbstractAsyncContextManager[Broker]],
        prepare: Callable[[Broker], Awaitable[None]],
        *,
        name: str,
        max_body_bytes: int,
    ) -> None:
        self._opener = opener
        self._prepare = prepare
        self._name = name
        self._expected = Capabilities(
            durability="replicated",
            ordering="none",
            bounded=False,
            max_body_bytes=max_body_bytes,
            retry_delays=None,
        )
        self._broker: Broker | None = None
        self._reason = "it was not opened yet"
        self._wrong: SettingsError | None = None
        self._attempted = asyncio.Event()
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"open-{name}")

    async def first_attempt(self, patience: float) -> bool:
        """
        Wait that long for it; whether it is open.

        Raises:
            SettingsError: it can never be opened like this.
        """
        try:
            async with asyncio.timeout(patience):
                await self._attempted.wait()
        except TimeoutError:
            pass
        if self._wrong is not None:
            raise self._wrong
        return self._broker is not None

    @property
    def reason(self) -> str:
        return self._reason

    async def _run(self) -> None:
        wait = PAUSE[0]
        while not self._closing.is_set():
            try:
                async with self._opener() as broker:
                    await self._prepare(broker)
                    self._broker = broker
                    self._attempted.set()
                    await self._closing.wait()
                    return
            except (BrokerError, SettingsError, OSError) as error:
                if isinstance(error, SettingsError):
                    self._wrong = error
                say = log.debug if str(error) == self._reason else log.warning
                self._reason = str(error)
                say("a broker cannot be opened, trying again", outlet=self._name, reason=self._reason)
                self._attempted.set()
            except Exception as error:
                # A bug of a driver; it must not keep the broker away until the gateway is restarted.
                log.exception("opening a broker failed unexpectedly, trying again", outlet=self._name)
                self._reason = f"opening it failed unexpectedly ({type(error).__name__})"
                self._attempted.set()
            try:
                async with asyncio.timeout(wait * random.uniform(0.5, 1.0)):
                    await self._closing.wait()
            except TimeoutError:
                wait = min(wait * 2, PAUSE[1])

    def _there(self) -> Broker:
        if self._broker is None:
            raise BrokerUnavailable(f"{self._name} is not there: {self._reason}")
        return self._broker

    # ---- a Broker

    @property
    def capabilities(self) -> Capabilities:
        """Until it is there, what it may turn out to have."""
        return self._expected if self._broker is None else self._broker.capabilities

    @property
    def identity(self) -> str:
        return "" if self._broker is None else self._broker.identity

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        return await self._there().publish(queue, messages, timeout=timeout)

    async def declare(self, queue: str) -> Durability:
        return await self._there().declare(queue)

    async def declared_queues(self) -> list[str] | None:
        return await self._there().declared_queues()

    @asynccontextmanager
    async def subscribe(
        self, queue: str, *, prefetch: int, ordered: bool = False
    ) -> AsyncIterator[Subscription]:
        async with self._there().subscribe(queue, prefetch=prefetch, ordered=ordered) as subscription:
            yield subscription

    async def depth(self, queue: str) -> Depth:
        return await self._there().depth(queue)

    async def examine(self, queues: Sequence[str]) -> list[Finding]:
        return await self._there().examine(queues)

    async def ping(self) -> None:
        await self._there().ping()

    async def close(self) -> None:
        self._closing.set()
        # Opening waits for a server that may not answer; an open one is closed in its own few seconds.
        if self._broker is None:
            self._task.cancel()
        await asyncio.wait([self._task])
