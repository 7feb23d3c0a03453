"""An HTTP service in the test's own process, which takes messages as a well-behaved one would."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self

from aiohttp import web

Answer = Callable[[web.Request, bytes], Awaitable[web.StreamResponse | None]]


async def ordinary(request: web.Request, body: bytes) -> web.StreamResponse | None:
    """Nothing special: the effect happens once for each id, and the answer is 204."""
    return None


class Receiver:
    """
    Keeps what it was sent; has the effect of each id once.

    `answer` may answer in its own way instead, and then there is no effect.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.effects: dict[str, bytes] = {}
        self.requests: list[tuple[web.Request, bytes]] = []
        self.answer: Answer = ordinary
        self.connections: set[object] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.port = 0
        self._host = host
        self._tls = tls
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{self._host}:{self.port}/take"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as before."""
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        await self.stop()
        try:
            yield
        finally:
            await self.start()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.method == "OPTIONS":
            return await self.answer(request, body) or web.Response(status=405)
        self.requests.append((request, body))
        self.connections.add(request.transport)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answered = await self.answer(request, body)
        finally:
            self.at_once -= 1
        if answered is not None:
            return answered
        message_id = request.headers["Idempotency-Key"]
        if message_id in self.effects:
            return web.Response(status=204, headers={"Idempotent-Replayed": "true"})
        self.effects[message_id] = body
        return web.Response(status=204)


def always(status: int, text: str = "", **headers: str) -> Answer:
    """The same answer for everything but a probe."""

    async def answer(request: web.Request, body: bytes) -> web.StreamResponse | None:
        if request.method == "OPTIONS":
            return None
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=text or body.decode("utf-8", "replace"), headers=named)

    return answer


async def hang(request: web.Request, body: bytes) -> web.StreamResponse | None:
    """No answer, to anything."""
    await asyncio.sleep(3_600)
    return None
