"""Application B: an HTTP service in a thread of its own that can be down, slow or failing, and counts."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiohttp import web

from tests.servers.receiver import Receiver

T = TypeVar("T")


class Service:
    """
    Has the effect of each id once, and answers 201 with what it made of it.

    `delay` is how long it takes, in seconds; while `failing` it answers 500 and does nothing; while
    `dying` it has the effect, and ends the connection without an answer.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.delay = 0.0
        self.failing = False
        self.dying = False
        self.effects: dict[str, bytes] = {}
        """By id, in the order in which they happened."""
        self.asked: Counter[str] = Counter()
        """How often a request of each id came that was not answered 500."""
        self.failures = 0
        self.paths: set[tuple[str, str]] = set()
        self.callers: set[str | None] = set()
        """The addresses from which it was called."""
        self._receiver = Receiver(tls=tls)
        self._receiver.answer = self._answer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="service", daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._receiver.port}"

    def start(self) -> None:
        """Be there, at the same address as before."""
        self._run(self._receiver.start)

    def stop(self) -> None:
        """Connections to it are refused."""
        self._run(self._receiver.stop)

    def _run(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(begin(), self._loop).result(30)

    async def _answer(self, request: web.Request, body: bytes) -> web.StreamResponse | None:
        if request.method == "OPTIONS":
            return None
        if self.failing:
            self.failures += 1
            return web.Response(status=500)
        if self.delay:
            await asyncio.sleep(self.delay)
        self.callers.add(request.remote)
        id = request.headers["Idempotency-Key"]
        self.asked[id] += 1
        known = id in self.effects
        if not known:
            self.effects[id] = body
            self.paths.add((request.method, request.raw_path))
        if self.dying and request.transport is not None:
            request.transport.abort()
        headers = {"Idempotent-Replayed": "true"} if known else {}
        return web.Response(status=201, text=f"made of {body.decode()}", headers=headers)
