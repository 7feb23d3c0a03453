"""
The event loop's own transport under pika.

pika's reads until the socket has no more, and watches for room to write before each write:
four system calls for two, and ten Python functions for one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from pika.adapters.asyncio_connection import _AsyncioIOServicesAdapter


class _Stream(asyncio.BaseProtocol):
    """What pika gives as a protocol, as asyncio wants it. pika is told of the transport in the same turn."""

    def __init__(self, inner: Any, on_done: Callable[[Any], None]) -> None:
        self._inner = inner
        self._on_done = on_done
        self.data_received: Callable[[bytes], None] = inner.data_received
        self.eof_received: Callable[[], bool] = inner.eof_received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)
        self._on_done((transport, self._inner))

    def connection_lost(self, error: BaseException | None) -> None:
        self._inner.connection_lost(error)


class Services(_AsyncioIOServicesAdapter):  # type: ignore[misc]  # pika has no types
    """pika's way to the event loop. Connections with TLS have pika's own transport."""

    _loop: asyncio.AbstractEventLoop

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        on_done: Callable[[Any], None],
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> Any:
        """As pika's interface says; what is returned can be cancelled."""
        if ssl_context is not None:
            return super().create_streaming_connection(
                protocol_factory, sock, on_done, ssl_context, server_hostname
            )

        def on_failure(result: Any) -> None:
            if isinstance(result, BaseException):
                on_done(result)

        stream = _Stream(protocol_factory(), on_done)
        return self._schedule_and_wrap_in_io_ref(self._connect(stream, sock), on_failure)

    async def _connect(self, stream: _Stream, sock: socket.socket) -> None:
        try:
            await self._loop.create_connection(lambda: stream, sock=sock)
        except BaseException:
            sock.close()
            raise
