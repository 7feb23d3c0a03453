"""/livez, /readyz and /metrics of a process that only consumes."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from consumers.status import QueueStatus
from forebay.errors import SettingsError


@asynccontextmanager
async def serve_health(
    host: str, port: int, snapshot: Callable[[], Sequence[QueueStatus]], registry: CollectorRegistry
) -> AsyncIterator[int]:
    """
    Answer while the context is open; gives the port, which is another one if `port` is 0.

    Ready means that every worker has reached its broker once and none is stuck. A
    paused one is ready: an orchestrator that restarted it would only make it forget
    that the destination is down.

    Raises:
        SettingsError: the port cannot be listened on.
    """

    async def livez(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        queues = snapshot()
        # No queue yet: the process still waits for its database or its broker.
        ready = bool(queues) and not any(q.stalled or q.state == "starting" for q in queues)
        status = 200 if ready else 503
        if "verbose" not in request.query:
            return web.Response(
                text="ready\n" if ready else "not ready; see /readyz?verbose\n", status=status
            )
        body = {"ready": ready, "queues": [asdict(q) | {"stalled": q.stalled} for q in queues]}
        return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([
        web.get("/livez", livez),
        web.get("/readyz", readyz),
        web.get("/metrics", metrics),
    ])  # fmt: skip
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {host}:{port} for health checks ({_why(error)}); choose another with"
                " --port or FOREBAY_CONSUMER__HEALTH_PORT (consumer.health_port; 0 picks a free one)"
            ) from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _why(error: OSError) -> str:
    """The system's words; asyncio's own text repeats the address."""
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror or str(error)
