"""Listening and serving."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable

import structlog
import uvicorn

from forebay.admin.app import Admin
from forebay.admin.settings import AdminSettings
from forebay.errors import SettingsError
from forebay.http_server import Server, address_of, is_loopback, listen

log = structlog.get_logger()

SHUTDOWN = 10
"""Seconds that requests in flight may take after a stop."""


def bind(settings: AdminSettings) -> socket.socket:
    """
    The listening socket.

    Raises:
        SettingsError: it cannot be had, or it is beyond loopback and there is no token.
    """
    _, _, address = address_of(settings.host, settings.port, section="admin")
    if not settings.named() and not is_loopback(address):
        raise SettingsError(
            f"admin.host {settings.host!r} can be reached from other machines, and no token is set; set one:"
            f" FOREBAY_ADMIN__TOKEN={secrets.token_hex(24)}, or in forebay.toml token under [admin]"
        )
    return listen(settings.host, settings.port, section="admin")


def _ignore() -> None:
    pass


async def serve(
    app: Admin, *, sock: socket.socket, stop: asyncio.Event, started: Callable[[], None] = _ignore
) -> None:
    """Serve on `sock` in the current loop until `stop` is set; redrives are left to the next process."""
    server = Server(
        uvicorn.Config(
            app, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=SHUTDOWN,
        )
    )  # fmt: skip
    try:
        async with app.router.lifespan_context(app):
            serving = asyncio.create_task(server.serve(sockets=[sock]), name="admin-uvicorn")
            listening = asyncio.create_task(server.listening.wait(), name="admin-listening")
            stopping = asyncio.create_task(stop.wait(), name="admin-stop")
            try:
                await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
                if server.listening.is_set():
                    started()
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                listening.cancel()
                stopping.cancel()
                server.should_exit = True
                await serving
    finally:
        sock.close()
