"""The admin API served by a real uvicorn on a free port, over an engine with a consumer at once behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx2

from forebay.admin.app import Admin, create_app
from forebay.admin.server import bind, serve
from forebay.admin.settings import AdminSettings
from forebay.brokers.api import Broker, Depth
from forebay.errors import BrokerUnavailable, QueueNotFound
from forebay.storage.database import Database
from tests.unit.dead_letters.world import Consumed
from tests.waiting import until

TOKEN = "a-token-of-the-tests-0123456789"
ANN = "another-token-of-ann-0123456789"


class Sink(Consumed):
    """A broker whose messages are consumed at once."""

    identity = "sink"

    async def depth(self, queue: str) -> Depth:
        if queue != "orders":
            raise QueueNotFound(queue)
        return Depth(waiting=1, scheduled=0, in_hand=0, bytes=2, oldest_age=0.5)


@dataclass
class Served:
    app: Admin
    port: int
    client: httpx2.AsyncClient
    sink: Sink
    database: Database

    async def ok(self, method: str, path: str, **more: Any) -> Any:
        """The JSON of an answer that is no error."""
        answer = await self.client.request(method, f"/admin/v1{path}", **more)
        assert answer.status_code < 300, answer.text
        return answer.json()

    async def refused(self, method: str, path: str, status: int, **more: Any) -> dict[str, Any]:
        """The problem of an answer that must be one."""
        answer = await self.client.request(method, f"/admin/v1{path}", **more)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        found: dict[str, Any] = answer.json()
        assert found["type"].startswith("/problems/")
        assert found["detail"]
        return found


@asynccontextmanager
async def served(
    database: Database, sink: Sink | None = None, *, down: bool = False
) -> AsyncIterator[Served]:
    sink = sink or Sink(database)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Broker]:
        if down:
            raise BrokerUnavailable("connection refused")
        yield cast("Broker", sink)

    app = create_app(
        database=lambda: database,
        broker=opened,
        tokens={"admin": TOKEN, "ann": ANN},
        queues=["orders"],
    )
    sock = bind(AdminSettings(port=0))
    port = sock.getsockname()[1]
    stop, started = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve(app, sock=sock, stop=stop, started=started.set))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if serving.done():
        await serving
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{port}"
    async with httpx2.AsyncClient(base_url=url, timeout=10, headers=headers) as client:
        try:
            if not down:
                await until(lambda: app.parts is not None and app.parts.line.broker is not None)
            yield Served(app, port, client, sink, database)
        finally:
            stop.set()
    await serving
