"""Keep-alive HTTP/1.1 for one POST at a time: no more than a load needs, for it shares the machine."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
import time
from collections.abc import Callable
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

NO_ANSWER, TIMED_OUT, NOT_SENT = 0, 1, 2
"""Stand for a status where there is none: the connection failed, time was up, we had no socket left."""

IDLE = 1.0
"""Seconds after which an unused connection is let go: long before a server does, so that they never meet."""

Ended = Callable[[int, bytes], None]
"""Told once: the status and the body of the answer, or a stand-in for a status and nothing."""


class Pool:
    """Connections to one server; the one used last is used first."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.host, self.port, self.tls = host, port, tls
        self._idle: list[Connection] = []

    def get(self) -> Connection:
        now = time.monotonic()
        while self._idle and now - self._idle[0].since > IDLE:
            self._idle.pop(0).close()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return Connection(self)

    def put(self, connection: Connection) -> None:
        connection.since = time.monotonic()
        self._idle.append(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class Connection(asyncio.Protocol):
    """One connection; it connects when it is first asked to send."""

    def __init__(self, pool: Pool) -> None:
        self.since = 0.0
        """When it was last put back."""
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._request = b""
        self._answer = bytearray()
        self._ended: Ended | None = None

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, ended: Ended) -> None:
        self._ended = ended
        if self._transport is not None:
            self._transport.write(request)
            return
        self._request = request
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def give_up(self, status: int) -> None:
        """End the request that is open, and the connection with it."""
        if self._connecting is not None:
            self._connecting.cancel()
        self._finish(status, b"")
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self, self._pool.host, self._pool.port, ssl=self._pool.tls)
        except OSError as error:
            # No socket left is our own failure, not the server's, and must not be counted as that.
            ours = error.errno in (errno.EMFILE, errno.EADDRNOTAVAIL)
            self._finish(NOT_SENT if ours else NO_ANSWER, b"")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._connecting = cast("asyncio.Transport", transport), None
        self._transport.write(self._request)
        self._request = b""

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, blank, body = bytes(self._answer).partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not blank or length is None or len(body) < int(length[1]):
            return
        self._answer.clear()
        if b"\r\nconnection: close" in head.lower():
            self.close()
        self._finish(int(head[9:12]), body)
        if self.usable:
            self._pool.put(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._finish(NO_ANSWER, b"")

    def _finish(self, status: int, body: bytes) -> None:
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended(status, body)
