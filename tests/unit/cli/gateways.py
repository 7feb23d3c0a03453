"""A gateway that remembers what it was sent and misbehaves as told, for commands run as real processes."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

Verdict = Callable[["ScriptedGateway", str, bytes], int]


def take_all(_gateway: ScriptedGateway, _key: str, _body: bytes) -> int:
    return 202


class ScriptedGateway:
    """
    Takes messages and remembers them by idempotency key.

    The verdict sees each request and names the answer's status; 0 breaks the
    connection after the message was stored, -1 never answers.
    """

    def __init__(self, verdict: Verdict = take_all) -> None:
        self.verdict = verdict
        self.messages: dict[str, bytes] = {}
        self.requests: list[tuple[str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.url = ""
        self._at_once = 0
        self._closing = asyncio.Event()

    def ids(self) -> dict[str, str]:
        """The id of each remembered message, with the digest of its body."""
        return {_id(key): hashlib.sha256(body).hexdigest() for key, body in self.messages.items()}

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._answer(request)
        finally:
            self._at_once -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        key, body = request.headers["Idempotency-Key"], await request.read()
        self.requests.append((key, body))
        self.headers.append(dict(request.headers))
        status = self.verdict(self, key, body)
        if status in (0, 202):
            duplicate = key in self.messages
            self.messages.setdefault(key, body)
        if status == 0:
            assert request.transport is not None
            request.transport.abort()
        if status == -1:
            await self._closing.wait()
        if status != 202:
            return web.json_response(
                {"type": "about:blank", "detail": f"said {status}"}, status=status or 500
            )
        answer = {"id": _id(key), "queue": request.match_info["queue"], "durability": "synced"}
        return web.json_response(answer | {"duplicate": duplicate}, status=202)

    @contextmanager
    def running(self) -> Iterator[ScriptedGateway]:
        """Serve on a free port, in a thread of its own."""
        ready, loop = threading.Event(), asyncio.new_event_loop()

        async def serve() -> None:
            app = web.Application(client_max_size=1 << 30)
            app.router.add_post("/v1/queues/{queue}/messages", self._handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            try:
                await asyncio.Event().wait()
            finally:
                self._closing.set()
                await runner.cleanup()

        def work() -> None:
            try:
                loop.run_until_complete(serving)
            except asyncio.CancelledError:
                pass
            loop.close()

        serving = loop.create_task(serve())
        thread = threading.Thread(target=work)
        thread.start()
        assert ready.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(serving.cancel)
            thread.join(10)


def _id(key: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, key))
