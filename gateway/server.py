"""Listening, serving and draining."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, cast

import structlog
import uvicorn

from forebay.errors import SettingsError
from forebay.http_server import BACKLOG, Server, address_of, is_loopback, listen
from forebay.stopping import cut_short_by
from gateway.app import Gateway
from gateway.connections import Connections, most_connections
from gateway.keys_file import read
from gateway.protocol import Protocol
from gateway.settings import GatewaySettings
from gateway.sharing import Listener, Share
from gateway.tls import certificate

log = structlog.get_logger()

KEEP_ALIVE = 65
"""
Seconds that an idle connection is kept: longer than proxies keep theirs (nginx: 60).

Were it shorter, a proxy would now and then send a request into a connection that
we are closing, and could not know whether to send it again.
"""

ARRIVAL = 0.1
"""Seconds that the end waits for connections that were accepted just before it."""


def bind(settings: GatewaySettings) -> socket.socket:
    """
    The listening socket. Connections queue on it from now on.

    Raises:
        SettingsError: the port is busy or not ours to take, the host is no address of
            this machine, it is beyond loopback and nobody would be authenticated, or the
            keys or the certificate cannot be used.
    """
    if settings.keys_file is not None:
        # Here as well as in each process that serves: wrong keys are told before anything starts.
        usable = [key for key in read(settings.keys_file).keys if not key.expired(datetime.now(UTC))]
        if not usable:
            log.warning(
                "there is no valid API key, so every request is answered 401;"
                " `forebay api-keys create NAME` makes one",
                file=str(settings.keys_file),
            )
    _, _, address = address_of(settings.host, settings.port, section="gateway")
    if settings.keys_file is None and not settings.insecure_no_auth and not is_loopback(address):
        raise SettingsError(
            f"gateway.host {settings.host!r} can be reached from other machines, and anyone there could post;"
            " make an API key with `forebay api-keys create NAME --file keys.json` and set gateway.keys_file"
            " (FOREBAY_GATEWAY__KEYS_FILE=keys.json), listen on 127.0.0.1 behind a proxy that authenticates,"
            " or accept it with --insecure-no-auth (FOREBAY_GATEWAY__INSECURE_NO_AUTH=true)"
        )
    certificate(settings)
    return listen(settings.host, settings.port, section="gateway")


def _ignore() -> None:
    pass


class _Worker(Server):
    """A server that shares its socket with those of other processes."""

    def __init__(self, config: uvicorn.Config, share: Share, connections: Connections) -> None:
        super().__init__(config)
        self._share = share
        self._connections = connections
        self._listeners: list[Listener] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        config = self.config

        def protocol() -> Protocol:
            return Protocol(config=config, server_state=self.server_state, app_state=self.lifespan.state)

        for sock in sockets or []:
            listener = Listener(
                sock, self._share, protocol, connected=self._connections.__len__, tls=config.ssl
            )
            self._connections.on_end = listener.tell
            self._listeners.append(listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self._listeners:
            listener.close()
            # Only what has reached its protocol is told of the end.
            await listener.arrived(ARRIVAL)
        await super().shutdown(sockets)


async def serve(
    app: Gateway,
    settings: GatewaySettings,
    *,
    sock: socket.socket,
    stop: asyncio.Event,
    started: Callable[[], None] = _ignore,
    share: Share | None = None,
) -> None:
    """
    Serve on `sock` in the current loop until `stop` is set, then drain and return.

    `share` is this process's, if others serve on the same socket.

    Draining: /readyz says 503 while requests are served for `drain_delay` more; no
    new connections; what is in flight is finished within `shutdown_timeout`; the
    broker is closed. Raises what the app's lifespan raises at its start. A stop
    before it has started ends the start.
    """
    served = certificate(settings)
    config = uvicorn.Config(
        app,
        ssl_context_factory=None if served is None else lambda *_: served.context,
        http=Protocol,
        ws="none",
        # Run here instead, so that what it raises reaches the caller as it is.
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout),
    )
    # Uvicorn's own is a plain set, without an end.
    connections = Connections(most_connections(settings.max_connections))
    server = Server(config) if share is None else _Worker(config, share, connections)
    server.server_state.connections = cast(Any, connections)
    try:
        async with AsyncExitStack() as stack:
            try:
                async with cut_short_by(stop):
                    await stack.enter_async_context(app.router.lifespan_context(app))
            except TimeoutError:
                if stop.is_set():
                    return  # It was still waiting for its broker, and has served nobody.
                raise
            serving = asyncio.create_task(server.serve(sockets=[sock]), name="uvicorn")
            listening = asyncio.create_task(server.listening.wait(), name="listening")
            stopping = asyncio.create_task(stop.wait(), name="stop")
            renewing = None if served is None else asyncio.create_task(served.watch(), name="certificate")
            try:
                await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
                if server.listening.is_set():
                    started()
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not serving.done():
                    log.info("draining", delay=settings.drain_delay)
                    app.drain()
                    await asyncio.wait({serving}, timeout=settings.drain_delay)
            finally:
                listening.cancel()
                stopping.cancel()
                if renewing is not None:
                    renewing.cancel()
                server.should_exit = True
                await serving
    finally:
        sock.close()
    log.info("drained")
