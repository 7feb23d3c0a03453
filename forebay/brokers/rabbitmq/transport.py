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
from pika.adapters.utils.nbio_interface import AbstractIOReference


class _Stream(asyncio.BaseProtocol):
    """What pika gives as a protocol, as asyncio wants it. pika is told of the transport in the same turn."""

    def __init__(self, inner: Any, on_done: Callable[[Any], None]) -> None:
        self._inner = inner
        self._on_done = on_done
        self.told = False
        self.cancelled = False
        self.data_received: Callable[[bytes], None] = inner.data_received
        self.eof_received: Callable[[], bool] = inner.eof_received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.cancelled:
            return
        self.told = True
        self._inner.connection_made(transport)
        self._on_done((transport, self._inner))

    def connection_lost(self, error: BaseException | None) -> None:
        if self.told:
            self._inner.connection_lost(error)


class _Opening(AbstractIOReference):  # type: ignore[misc]  # pika has no types
    """Can be cancelled until pika was told."""

    def __init__(self, stream: _Stream, task: asyncio.Task[None]) -> None:
        self._stream = stream
        self._task = task

    def cancel(self) -> bool:
        if self._stream.told:
            return False
        self._stream.cancelled = True
        return self._task.cancel()


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

        def on_end(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                on_done(error)

        stream = _Stream(protocol_factory(), on_done)
        task = self._loop.create_task(self._connect(stream, sock))
        task.add_done_callback(on_end)
        return _Opening(stream, task)

    async def _connect(self, stream: _Stream, sock: socket.socket) -> None:
        try:
            await self._loop.create_connection(lambda: stream, sock=sock)
        except BaseException:
            sock.close()
            raise
