"""Listening, serving and draining."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import uvicorn

from forebay.errors import SettingsError
from gateway.app import Gateway
from gateway.protocol import Protocol
from gateway.settings import GatewaySettings

log = structlog.get_logger()

BACKLOG = 2048

KEEP_ALIVE = 65
"""
Seconds that an idle connection is kept: longer than proxies keep theirs (nginx: 60).

Were it shorter, a proxy would now and then send a request into a connection that
we are closing, and could not know whether to send it again.
"""


def bind(settings: GatewaySettings) -> socket.socket:
    """
    The listening socket. Connections queue on it from now on.

    Raises:
        SettingsError: the port is busy or not ours to take, the host is no address of
            this machine, or it is beyond loopback and nobody would be authenticated.
    """
    if settings.keys_file is not None:
        raise SettingsError(
            "gateway.keys_file is set, but this release cannot check API keys yet;"
            " remove it, and put a proxy that authenticates in front of the gateway"
        )
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(
            f"gateway.host {settings.host!r} is no address of this machine ({error.strerror});"
            " choose one with --host or FOREBAY_GATEWAY__HOST, like 127.0.0.1"
        ) from error
    if not settings.insecure_no_auth and not ipaddress.ip_address(address[0]).is_loopback:
        raise SettingsError(
            f"gateway.host {settings.host!r} can be reached from other machines, and anyone there could post;"
            " listen on 127.0.0.1 behind a proxy that authenticates, or accept it with --insecure-no-auth"
            " (FOREBAY_GATEWAY__INSECURE_NO_AUTH=true)"
        )
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise SettingsError(_cannot_listen(settings, error)) from error
    sock.setblocking(False)
    return sock


def _cannot_listen(settings: GatewaySettings, error: OSError) -> str:
    choose = "choose another with --port or FOREBAY_GATEWAY__PORT"
    where = f"port {settings.port} on {settings.host}"
    if error.errno == errno.EADDRINUSE:
        holder = _holder(settings.port)
        return f"{where} is in use{f' by {holder}' if holder else ''}; {choose} (0 picks a free one)"
    if error.errno == errno.EACCES:
        return f"{where} may only be taken by root; {choose}, above 1023"
    return f"cannot listen on {where}: {error.strerror}; choose with --host and --port"


def _holder(port: int) -> str | None:
    """The process that listens on `port`, where /proc tells us."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        # Processes of other users, and those that end meanwhile, cannot be read.
        with contextlib.suppress(OSError):
            if inodes.intersection(os.readlink(fd) for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


class _Server(uvicorn.Server):
    """Uvicorn's server, leaving signals to whoever runs us, and telling when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _ignore() -> None:
    pass


async def serve(
    app: Gateway,
    settings: GatewaySettings,
    *,
    sock: socket.socket,
    stop: asyncio.Event,
    started: Callable[[], None] = _ignore,
) -> None:
    """
    Serve on `sock` in the current loop until `stop` is set, then drain and return.

    Draining: /readyz says 503 while requests are served for `drain_delay` more; no
    new connections; what is in flight is finished within `shutdown_timeout`; the
    broker is closed. Raises what the app's lifespan raises at its start.
    """
    server = _Server(
        uvicorn.Config(
            app,
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
    )
    try:
        async with app.router.lifespan_context(app):
            serving = asyncio.create_task(server.serve(sockets=[sock]), name="uvicorn")
            listening = asyncio.create_task(server.listening.wait(), name="listening")
            stopping = asyncio.create_task(stop.wait(), name="stop")
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
                server.should_exit = True
                await serving
    finally:
        sock.close()
    log.info("drained")
