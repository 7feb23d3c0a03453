"""How workers share the connections that come in on one socket: each holds about as many as the others."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Callable, MutableSequence

import structlog

log = structlog.get_logger()

ABSENT = -1
"""Stands for the connections of a worker that takes none."""

MARGIN = 4
"""Connections that a worker may hold beyond those of the one with the fewest, and still take another."""

LOOK_AGAIN = 0.001
"""Seconds after which a worker that left a connection to others looks whether they have it."""

PATIENCE = 0.02
"""
Seconds that connections are left to the others, at the most; then one is taken at each look.

The one with the fewest may be stopped, or in the middle of something long.
"""

OUT_OF_FILES = 1.0
"""Seconds without accepting, for a process that cannot."""


class Share:
    """
    One worker's place among all.

    What each of them holds stands in memory that all of them see; each writes its own number.
    """

    def __init__(self, held: MutableSequence[int], place: int) -> None:
        self._held = held
        self._place = place

    def holds(self, connections: int) -> None:
        """Tell the others."""
        self._held[self._place] = connections

    def leave(self) -> None:
        """No more are taken here."""
        self._held[self._place] = ABSENT

    @property
    def ahead(self) -> bool:
        """Whether another worker ought to take the next connection."""
        return self._held[self._place] > min(n for n in self._held if n != ABSENT) + MARGIN


class Listener:
    """
    Accepts one connection in a turn of the event loop, unless another worker has fewer.

    Uvloop's own would do, were it not for bursts: whoever wakes first takes nearly all of one, and the
    others stay idle.
    """

    def __init__(
        self,
        sock: socket.socket,
        share: Share,
        protocol: Callable[[], asyncio.Protocol],
        *,
        connected: Callable[[], int],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`connected` tells how many connections have reached their protocol, and not ended."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._share = share
        self._protocol = protocol
        self._connected = connected
        self._tls = tls
        self._arriving: set[asyncio.Task[object]] = set()
        self._waiting = select.poll()
        self._waiting.register(sock, select.POLLIN)
        self._timer: asyncio.TimerHandle | None = None
        self._left_until = 0.0
        """When a connection that was left to the others is taken here after all."""
        self._closed = False
        self.tell()
        self._listen()

    def tell(self) -> None:
        """Let the other workers know how many connections are here; to be called when one has ended."""
        if not self._closed:
            self._share.holds(self._connected() + len(self._arriving))

    def close(self) -> None:
        """Take no more. Does nothing the second time."""
        if not self._closed:
            self._closed = True
            self._share.leave()
            self._loop.remove_reader(self._sock)
            if self._timer is not None:
                self._timer.cancel()

    async def arrived(self, timeout: float) -> None:
        """Wait until what was accepted has reached its protocol."""
        if self._arriving:
            await asyncio.wait(self._arriving, timeout=timeout)

    def _listen(self) -> None:
        self._loop.add_reader(self._sock, self._look)

    def _pause(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, then)

    def _look(self) -> None:
        """There is a connection; or there was one, and another worker has it."""
        if self._share.ahead:
            self._left_until = self._loop.time() + PATIENCE
            self._pause(LOOK_AGAIN, self._look_again)
        else:
            self._accept()

    def _look_again(self) -> None:
        """Whether the others have what was left to them."""
        if not self._share.ahead or not self._waiting.poll(0):
            self._listen()
            return
        self._pause(LOOK_AGAIN, self._look_again)
        if self._loop.time() >= self._left_until:
            self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("cannot accept connections", error=str(error))
            self._pause(OUT_OF_FILES, self._listen)
            return
        connection.setblocking(False)
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        )
        self._arriving.add(task)
        task.add_done_callback(self._arrived)
        self.tell()

    def _arrived(self, task: asyncio.Task[object]) -> None:
        self._arriving.discard(task)
        if not task.cancelled():
            task.exception()  # of a client that does not speak TLS; uvloop has closed its connection
        self.tell()
