"""One connection that is made again whenever it is lost, and calls on its channels that can be awaited."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pika
import structlog
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import AMQPError, ChannelClosedByBroker, ChannelWrongStateError, StreamLostError
from pika.frame import decode_frame

from forebay.brokers.rabbitmq.answers import Answers, Hearer
from forebay.brokers.rabbitmq.frames import Frames, SameWay
from forebay.brokers.rabbitmq.inbox import Inbox, Taker, frame_end
from forebay.brokers.rabbitmq.transport import Services
from forebay.errors import BrokerClosed, BrokerUnavailable

log = structlog.get_logger()

# What it says about lost connections we say ourselves, once and with the reason.
logging.getLogger("pika").setLevel(logging.CRITICAL)

BACKOFF = (0.1, 5.0)
"""Seconds after the first time that every host was tried, and the most that this grows to; with jitter."""

AT_ONCE = 0.05
"""Seconds within which the clients of a lost node come to the others: not all in the same instant."""


def pause(failures: int, hosts: int) -> float:
    """Seconds before the next attempt, after so many without a connection that lasted."""
    rounds, within = divmod(failures, hosts)
    if rounds == 0 or within:
        return random.uniform(0, AT_ONCE)
    ceiling: float = min(BACKOFF[1], BACKOFF[0] * 2 ** min(rounds - 1, 60))
    return ceiling * random.uniform(0.5, 1.0)


class Connection(AsyncioConnection):  # type: ignore[misc]  # pika has no types
    """
    pika's connection, writing once per turn of the event loop instead of three times per message.

    Deliveries to `inbox`, and the `answers` to what is published, are read by hand; a connection
    has one of them. It overrides methods that are pika's own affair. Should a later pika not call
    them, frames are written and read as pika does it, only slower.
    """

    _frame_buffer: bytes

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._gathered: list[bytes] = []
        self.inbox = Inbox()
        self.answers = Answers()
        super().__init__(*args, **kwargs)

    def write(self, frames: Sequence[bytes]) -> None:
        """Send frames, whole or in pieces, at the end of this turn."""
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._write_gathered)
        self._gathered += frames

    _output_marshaled_frames = write

    def _write_gathered(self) -> None:
        frames, self._gathered = self._gathered, []
        data = b"".join(frames)
        self.bytes_sent += len(data)
        self.frames_sent += len(frames)
        transport = self._transport
        if transport is not None and not self.is_closed:
            self._adapter_emit_data(data)

    def _on_data_available(self, data: bytes) -> None:
        reader = self.inbox or self.answers
        if not reader:
            super()._on_data_available(data)
            return
        if self._frame_buffer:
            data = self._frame_buffer + data
            self._frame_buffer = b""
        at = 0
        while True:
            begun, (at, unfinished) = at, reader.read(data, at)
            self.bytes_received += at - begun  # what pika's heartbeats look at
            end = frame_end(data, at)
            if unfinished or not 0 <= end <= len(data):
                break
            _, value = decode_frame(data[at:end])
            self.bytes_received += end - at
            at = end
            self._process_frame(value)
        self._frame_buffer = data[at:]

    def abort(self, why: str) -> None:
        """Cut the connection without a word to the server."""
        if self._opened and self._transport is not None:
            # As pika does it when heartbeats are missed; it wants a reason for those who listen.
            self._terminate_stream(StreamLostError(why))
        elif not (self.is_closed or self.is_closing):
            self.close()  # still connecting: this ends the attempt


class Channel:
    """A channel whose calls can be awaited. `closed` is done when it is gone; its result is the reason."""

    def __init__(self, raw: Any, closed: asyncio.Future[Exception]) -> None:
        self.raw = raw
        self.closed = closed
        self._connection: Connection = raw.connection
        self._frames = Frames(raw.channel_number, raw.connection.params.frame_max)

    @classmethod
    async def open(cls, connection: Connection, timeout: float) -> Channel:
        """
        Raises:
            BrokerUnavailable
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = loop.create_future()
        closed: asyncio.Future[Exception] = loop.create_future()

        def on_open(raw: Any) -> None:
            if not opened.done():
                opened.set_result(raw)
            elif raw.is_open:
                raw.close()

        def on_close(_: Any, reason: Exception) -> None:
            connection.inbox.remove(raw.channel_number)
            connection.answers.remove(raw.channel_number)
            if not closed.done():
                closed.set_result(reason)

        try:
            raw = connection.channel(on_open_callback=on_open)
            raw.add_on_close_callback(on_close)
        except AMQPError as error:
            raise BrokerUnavailable(f"no channel to RabbitMQ: {error!r}") from error
        await _first(opened, closed, timeout, "opening a channel")
        return cls(raw, closed)

    async def call(self, method: str, *args: Any, timeout: float, **kwargs: Any) -> Any:
        """
        The answer to an AMQP method, by its name in pika.

        Raises:
            ChannelClosedByBroker: the server refused; the channel is gone.
            BrokerUnavailable
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def on_answer(frame: Any) -> None:
            if not answer.done():
                answer.set_result(frame)

        try:
            getattr(self.raw, method)(*args, callback=on_answer, **kwargs)
        except AMQPError as error:
            raise BrokerUnavailable(f"the channel to RabbitMQ is closed: {error!r}") from error
        return await _first(answer, self.closed, timeout, method)

    def on_delivery(self, consumer_tag: str, take: Taker) -> None:
        """Let `take` have the deliveries of a consumer; those that pika reads all the same go its own way."""
        self._connection.inbox.add(self.raw.channel_number, consumer_tag, take)

    def no_delivery(self) -> None:
        """From now on deliveries go pika's own way, which hands back those of a cancelled consumer."""
        self._connection.inbox.remove(self.raw.channel_number)

    def hear(self, hearer: Hearer) -> None:
        """From now on `hearer` is told what the server has taken; what it refused goes pika's own way."""
        self._connection.answers.add(self.raw.channel_number, hearer)

    def publish(self, messages: SameWay) -> None:
        """
        Send messages, mandatory; what `basic_publish` does, at a small part of the cost.

        Raises:
            ChannelWrongStateError: it is not open (any more); nothing was sent.
        """
        if not self.raw.is_open:
            raise ChannelWrongStateError("the channel is not open")
        self._connection.write(self._frames.publish(messages))

    def close(self) -> None:
        if self.raw.is_open:
            self.raw.close()


async def _first(
    answer: asyncio.Future[Any], closed: asyncio.Future[Exception], timeout: float, what: str
) -> Any:
    await asyncio.wait((answer, closed), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    if answer.done():
        return answer.result()
    answer.cancel()
    if not closed.done():
        raise BrokerUnavailable(f"RabbitMQ did not answer within {timeout:g} s ({what})")
    reason = closed.result()
    if isinstance(reason, ChannelClosedByBroker):
        raise reason
    raise BrokerUnavailable(f"the connection to RabbitMQ was lost ({what}): {reason!r}")


class Link:
    """
    Keeps one connection to one of the hosts. `on_up` prepares it; only then the link is up.

    When `on_up` fails, or the connection ends, the other hosts are tried at once; after
    each time that all were tried there is a pause.
    """

    def __init__(
        self,
        name: str,
        hosts: Sequence[pika.ConnectionParameters],
        *,
        on_up: Callable[[Connection], Awaitable[None]],
        on_down: Callable[[str], None],
    ) -> None:
        self.name = name
        self._hosts = list(hosts)
        random.shuffle(self._hosts)
        self._on_up = on_up
        self._on_down = on_down
        self.connection: Connection | None = None
        """The connection while the link is up."""
        self.reason = "not connected yet"
        """Why the link is down."""
        self._changed = asyncio.Event()
        self._closing = False
        self._raw: Connection | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"forebay-rabbitmq-{name}")

    async def up(self, timeout: float) -> Connection:
        """
        The connection; waits for it if need be.

        Raises:
            BrokerUnavailable, BrokerClosed
        """
        if self.connection is not None:
            return self.connection
        try:
            async with asyncio.timeout(timeout):
                while self.connection is None:
                    if self._closing:
                        raise BrokerClosed("the connection to RabbitMQ was closed")
                    await self._changed.wait()
        except TimeoutError:
            raise BrokerUnavailable(f"RabbitMQ cannot be reached: {self.reason}") from None
        return self.connection

    async def _run(self) -> None:
        failures = 0
        told: set[str] = set()
        turn = 0
        while not self._closing:
            host = self._hosts[turn % len(self._hosts)]
            turn += 1
            closed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
            began = asyncio.get_running_loop().time()
            try:
                raw = await self._connect(host, closed)
                if raw is not None:
                    await self._on_up(raw)
                    if raw.is_open:
                        log.info("connected to RabbitMQ", host=host.host, port=host.port, purpose=self.name)
                        self.connection = raw
                        self._notify()
                    reason = reason_text(await closed)
                else:
                    reason = f"{host.host}:{host.port}: {reason_text(closed.result())}"
            except Exception as error:
                # Whatever it is: a link that stops trying would never come back.
                if not isinstance(error, (BrokerUnavailable, AMQPError)):
                    log.exception("cannot connect to RabbitMQ", purpose=self.name)
                reason = f"{host.host}:{host.port}: {reason_text(error)}"
                if self._raw is not None:
                    self._raw.abort(reason)
            was_up = self.connection is not None
            self.connection = self._raw = None
            self.reason = reason
            self._on_down(reason)
            self._notify()
            if self._closing:
                return
            if was_up and asyncio.get_running_loop().time() - began > BACKOFF[1]:
                failures = 0
            # Once for each host and reason: the next tries follow at once, and then every few seconds.
            say = log.debug if reason in told and not was_up else log.warning
            told = {reason} if was_up else told | {reason}
            say("no connection to RabbitMQ", reason=reason, purpose=self.name)
            await asyncio.sleep(pause(failures, len(self._hosts)))
            failures += 1

    async def _connect(
        self, host: pika.ConnectionParameters, closed: asyncio.Future[Exception]
    ) -> Connection | None:
        opened = asyncio.get_running_loop().create_future()

        def on_open(raw: Connection) -> None:
            if not opened.done():
                opened.set_result(None)

        def on_end(_: Connection, reason: Exception) -> None:
            if not closed.done():
                closed.set_result(reason)

        loop = asyncio.get_running_loop()
        raw = Connection(host, on_open, on_end, on_end, custom_ioloop=Services(loop))
        self._raw = raw
        await asyncio.wait((opened, closed), return_when=asyncio.FIRST_COMPLETED)
        return raw if opened.done() and not closed.done() else None

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self, timeout: float) -> None:
        """Say goodbye, or cut the connection when nobody answers. Idempotent."""
        self._closing = True
        self._notify()
        raw = self._raw
        if raw is not None and raw.is_open:
            raw.close()
            await asyncio.wait((self._task,), timeout=timeout)
            if not self._task.done():
                raw.abort("no answer to closing it")
                await asyncio.wait((self._task,), timeout=0.5)
        elif raw is not None:
            raw.abort("closed while connecting")
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))
        self.connection = None
        self._on_down("the broker was closed")


def reason_text(reason: BaseException) -> str:
    """pika's reasons often have no text, or wrap the one that has."""
    inner = getattr(reason, "exceptions", None)
    if inner:
        return reason_text(inner[-1])
    cause = getattr(reason, "exception", None) or (reason.args[0] if reason.args else None)
    if isinstance(cause, BaseException):
        return reason_text(cause)
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or repr(reason)
