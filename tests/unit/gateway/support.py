"""A broker that does as it is told, and a gateway served by a real uvicorn on a free port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson
from prometheus_client import CollectorRegistry

from forebay.brokers.api import Broker, Capabilities, Depth, Durability, Finding, PublishResult
from forebay.errors import BrokerError, QueueNotFound
from forebay.message import Message
from gateway.app import Gateway, create_app
from gateway.forward.endpoint import Target
from gateway.outlets.opening import Elsewhere
from gateway.queues import QueueRegistry
from gateway.schemas import Schema
from gateway.server import bind, serve
from gateway.settings import GatewaySettings
from gateway.sharing import Share
from gateway.sources.settings import SourceSettings

FAST_LANE = True
"""Whether gateways have it, if nothing is said."""

Failure = BrokerError | Callable[[Message], PublishResult]


class ScriptedBroker:
    """
    Keeps what is published, unless told to fail or to stall.

    `failures` are used up, one per publish. While `gate` is cleared, publishes wait:
    nothing they carry is kept before it opens.
    """

    def __init__(self, durability: Durability = "synced", max_body_bytes: int = 900_000) -> None:
        self.capabilities = Capabilities(
            durability=durability,
            ordering="none",
            bounded=True,
            max_body_bytes=max_body_bytes,
            retry_delays=None,
        )
        self.queues: dict[str, list[Message]] = {}
        self.publishes: list[tuple[str, list[Message]]] = []
        self.failures: list[Failure] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.began = asyncio.Event()
        self.ping_error: BrokerError | None = None
        self.closed = False
        self.running = 0
        self.most_running = 0

    @property
    def messages(self) -> list[Message]:
        return [message for queue in self.queues.values() for message in queue]

    async def declare(self, queue: str) -> Durability:
        self.queues.setdefault(queue, [])
        return self.capabilities.durability

    async def declared_queues(self) -> list[str] | None:
        return list(self.queues)

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        if queue not in self.queues:
            raise QueueNotFound(queue)
        self.publishes.append((queue, list(messages)))
        failure = self.failures.pop(0) if self.failures else None
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.began.set()
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if isinstance(failure, BrokerError):
            raise failure
        if failure is not None:
            return [failure(message) for message in messages]
        self.queues[queue] += messages
        return [PublishResult(message_id=m.id, durability=self.capabilities.durability) for m in messages]

    def subscribe(self, queue: str, *, prefetch: int, ordered: bool = False) -> Any:
        raise NotImplementedError("the gateway never subscribes")

    async def depth(self, queue: str) -> Depth:
        if self.ping_error is not None:
            raise self.ping_error
        return Depth(
            waiting=len(self.queues.get(queue, ())), scheduled=None, in_hand=None, bytes=None, oldest_age=None
        )

    @property
    def identity(self) -> str:
        return "scripted"

    async def examine(self, queues: Sequence[str]) -> list[Finding]:
        return []

    async def ping(self) -> None:
        if self.ping_error is not None:
            raise self.ping_error

    async def close(self) -> None:
        self.closed = True


def _is_a_broker(broker: ScriptedBroker) -> Broker:
    return broker


@dataclass
class Running:
    """A served gateway."""

    app: Gateway
    broker: ScriptedBroker
    port: int
    client: httpx2.AsyncClient
    stop: asyncio.Event
    served: asyncio.Task[None]
    registry: CollectorRegistry
    connections: list[RawConnection] = field(default_factory=list)

    async def post(
        self, body: bytes = b"{}", *, queue: str = "orders", headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        return await self.client.post(f"/v1/queues/{queue}/messages", content=body, headers=headers)

    async def raw(self, data: bytes) -> RawAnswer:
        """Send bytes on a fresh connection and read one answer."""
        connection = await self.connect()
        await connection.send(data)
        return await connection.answer()

    async def connect(self) -> RawConnection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.connections.append(RawConnection(reader, writer))
        return self.connections[-1]


@dataclass
class RawAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = orjson.loads(self.body)
        return document


@dataclass
class RawConnection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, timeout: float = 5.0) -> RawAnswer:
        async with asyncio.timeout(timeout):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(fields.get("content-length", "0")))
        return RawAnswer(int(head[0].split()[1]), fields, body)

    async def closed(self, timeout: float = 5.0) -> bool:
        """Whether the other side ends the connection within `timeout`."""
        async with asyncio.timeout(timeout):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def running(
    broker: ScriptedBroker | None = None,
    *,
    queues: QueueRegistry | None = None,
    database: Any = None,
    elsewhere: Elsewhere | None = None,
    broker_opener: Callable[[], AbstractAsyncContextManager[Broker]] | None = None,
    sources: Mapping[str, SourceSettings] | None = None,
    schemas: Mapping[str, Schema] | None = None,
    targets: Mapping[str, Target] | None = None,
    share: Share | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    broker = broker or ScriptedBroker()
    registry = CollectorRegistry()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        try:
            yield broker
        finally:
            await broker.close()

    own = GatewaySettings(port=0, **({"fast_lane": FAST_LANE} | settings))
    app = create_app(
        broker=broker_opener or opened,
        settings=own,
        queues=queues or QueueRegistry(["orders", "clicks"]),
        database=database,
        elsewhere=elsewhere,
        sources=sources,
        schemas=schemas,
        targets=targets,
        registry=registry,
    )
    sock = bind(own)
    port = sock.getsockname()[1]
    stop, started = asyncio.Event(), asyncio.Event()
    served = asyncio.create_task(serve(app, own, sock=sock, stop=stop, started=started.set, share=share))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({served, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if served.done():
        await served
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        try:
            gateway = Running(app, broker, port, client, stop, served, registry)
            yield gateway
        finally:
            broker.gate.set()
            for connection in gateway.connections:
                connection.close()
                with contextlib.suppress(ConnectionError):
                    await connection.writer.wait_closed()
            stop.set()
    await gateway.served


def request(
    body: bytes = b"", *, headers: str = "", path: str = "/v1/queues/orders/messages", length: bool = True
) -> bytes:
    """A POST as bytes."""
    if length:
        headers += f"Content-Length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode("latin-1") + body
