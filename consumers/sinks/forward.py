"""The sink `broker`: each message is published again, to another queue here or on another broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from consumers.sinks.outside import Outside
from consumers.sinks.settings import ForwardSettings
from forebay.brokers.api import Broker, Delivery, PublishResult
from forebay.errors import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    MessageRejected,
    MessageTooLarge,
    PublishUnconfirmed,
    QueueFull,
    QueueNotFound,
    SettingsError,
    SinkMisconfigured,
    SinkUnavailable,
)
from forebay.message import Message
from forebay.sinks import WriteResult
from forebay.storage.database import Database

HOPS = "forebay-hops"
"""
The header that counts how often a message was forwarded. A producer may send one of this
name, as Forebay-Meta-Forebay-Hops, and harms nothing but its own message.
"""
PING_TIMEOUT = 3.0
"""Seconds within which a broker that confirmed nothing must answer something, or it is down."""

BrokerOpener = Callable[[], AbstractAsyncContextManager[Broker]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Brokers:
    """What there is to publish to. The wiring fills it in: drivers are not known here."""

    url: str
    """The URL of the broker in use."""
    current: BrokerOpener
    """The broker in use; whoever opened it closes it."""
    other: Callable[[str], BrokerOpener]
    """
    One more broker, by its URL.

    Raises:
        SettingsError: no driver reads the URL.
    """
    source: Broker | None = None
    """The broker that is consumed; None: nothing is consumed, only looked at."""
    looking: bool = False
    """Whether it is only to be probed: then nothing is made, no queue and no file."""
    drains: bool = False
    """Whether that is an old one, from which a queue may well be forwarded to its namesake on the new one."""


class ForwardSink:
    """
    Publishes batches with the messages' own ids, keys, headers and bodies.

    A message that waited for its time has done so: it is not delayed again. What it
    says about its expiry stays true. Each time one is forwarded is counted in it, so
    that two queues that forward to each other end with a dead letter and not never.
    """

    def __init__(
        self,
        queue: str,
        target: str,
        settings: ForwardSettings,
        opener: BrokerOpener,
        database: Database | None,
        *,
        source: Broker | None,
        looking: bool = False,
    ) -> None:
        self.destination = f"forward:{queue}"
        self._target = target
        self._settings = settings
        self._link = _Link(opener, None if looking else target, settings.timeout)
        self._from = None if source is None else (source.identity, queue)
        self._outside = Outside(self.destination, database, self._forward)

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        return await self._outside.write(batch)

    async def probe(self) -> None:
        await self._outside.probe()
        broker = await self._broker()
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await broker.ping()
        except (BrokerError, TimeoutError) as error:
            raise self._unavailable(error) from error

    async def close(self) -> None:
        await self._outside.close()
        await self._link.close()

    async def _broker(self) -> Broker:
        try:
            broker = await self._link.broker()
        except (BrokerError, TimeoutError) as error:
            raise self._unavailable(error) from error
        except SettingsError as error:
            raise SinkMisconfigured(str(error)) from error
        if self._from == (broker.identity, self._target):
            raise SinkMisconfigured(
                f"queue {self._target!r} is forwarded to itself: forward.broker_url is another URL of the"
                " same broker; name another queue in forward.queue"
            )
        return broker

    async def _forward(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        broker = await self._broker()
        results = [WriteResult(message_id=d.message.id) for d in batch]
        messages: list[Message] = []
        tried: list[int] = []
        for i, delivery in enumerate(batch):
            if (hops := _hops(delivery.message)) >= self._settings.max_hops:
                results[i].error = MessageRejected(
                    f"forwarded {hops} times (forward.max_hops); do queues forward to each other?",
                    error_class="forwarding-loop",
                )
            else:
                tried.append(i)
                messages.append(_next(delivery.message, hops + 1))
        for i, published in zip(tried, await self._publish(broker, messages), strict=True):
            results[i].error = self._error_of(published)
        if any(isinstance(r.error, PublishUnconfirmed) for r in results):
            await self._whose_fault(broker, results)
        return results

    async def _publish(self, broker: Broker, messages: list[Message]) -> list[PublishResult]:
        if not messages:
            return []
        try:
            return await broker.publish(self._target, messages, timeout=self._settings.timeout)
        except BrokerUnavailable as error:
            raise self._unavailable(error) from error
        except (QueueNotFound, BrokerClosed) as error:
            # Somebody deleted it, or the connection ended for good: declared, opened again the next time.
            await self._link.close()
            raise self._unavailable(error) from error

    def _error_of(self, published: PublishResult) -> Exception | None:
        match published.error:
            case MessageTooLarge() as error:
                return MessageRejected(str(error), error_class="MessageTooLarge")
            case QueueFull() as error:
                return SinkUnavailable(f"queue {self._target!r} is full: {error}")
            case error:
                return error

    async def _whose_fault(self, broker: Broker, results: list[WriteResult]) -> None:
        """A message without a confirmation is a failed attempt, unless the broker answers nothing at all."""
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await broker.ping()
        except (BrokerError, TimeoutError) as error:
            for result in results:
                if isinstance(result.error, PublishUnconfirmed):
                    result.error = self._unavailable(error)

    def _unavailable(self, error: Exception) -> SinkUnavailable:
        why = str(error) or "no answer in time"
        return SinkUnavailable(f"queue {self._target!r} cannot be published to: {why}")


def _hops(message: Message) -> int:
    text = message.headers.get(HOPS, "")
    return int(text[:6]) if text.isascii() and text.isdigit() else 0


def _next(message: Message, hops: int) -> Message:
    headers = {_text(name): _text(value) for name, value in message.headers.items()}
    return replace(
        message,
        key=None if message.key is None else _text(message.key),
        headers={**headers, HOPS: str(hops)},
        content_type=_text(message.content_type),
        not_before=None,
    )


def _text(text: str) -> str:
    """`text`, with lone surrogates, which no broker can carry, written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class _Link:
    """
    The broker, opened when it is first needed, with the queue, if any, declared; and again after `close`.

    A task of its own holds it open: what opens it may belong to the task that does so.
    """

    def __init__(self, opener: BrokerOpener, queue: str | None, timeout: float) -> None:
        self._opener = opener
        self._queue = queue
        self._timeout = timeout
        self._opened: asyncio.Future[Broker] | None = None
        self._held: asyncio.Task[None] | None = None
        self._enough = asyncio.Event()

    async def broker(self) -> Broker:
        """
        Raises:
            BrokerError, TimeoutError: it cannot be reached now.
            SettingsError: it cannot be opened as the settings say.
        """
        if self._held is None or self._held.done():
            self._enough = asyncio.Event()
            self._opened = asyncio.get_running_loop().create_future()
            self._held = asyncio.create_task(self._hold(self._opened, self._enough))
        assert self._opened is not None
        async with asyncio.timeout(self._timeout):
            return await asyncio.shield(self._opened)

    async def close(self) -> None:
        """Idempotent."""
        if self._held is None:
            return
        held, self._held = self._held, None
        self._enough.set()
        if self._opened is not None and not self._opened.done():
            held.cancel()
        await asyncio.wait({held})

    async def _hold(self, opened: asyncio.Future[Broker], enough: asyncio.Event) -> None:
        try:
            async with self._opener() as broker:
                if self._queue is not None:
                    await broker.declare(self._queue)
                opened.set_result(broker)
                await enough.wait()
        except Exception as error:
            if not opened.done():
                opened.set_exception(error)
                opened.exception()  # Whoever asked may have gone.
