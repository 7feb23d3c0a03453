"""Lines of a file or a pipe, as exact bytes, read beside a running event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from typing import NamedTuple

_CHUNK = 1 << 18


class Line(NamedTuple):
    number: int
    """From 1, counting empty lines, so that it is the number an editor shows."""
    body: bytes
    """Without its line ending; nothing else is touched."""


class Feed:
    """
    Hands out the lines of a file descriptor, to any number of tasks; empty lines are left out.

    A thread reads ahead by a few chunks at most. It is a daemon: at a terminal or a
    quiet pipe it may sit in `read` for ever, and must not keep the program from ending.
    """

    def __init__(self, fd: int, *, first: int = 1) -> None:
        self._fd = fd
        self._first = first
        self._lines: deque[Line] = deque()
        self._number = 0
        self._rest = b""
        self._ended = False
        self._filling = asyncio.Lock()
        self._chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue(4)
        self._loop = asyncio.get_running_loop()
        self.bytes_read = 0
        """Of the lines handed out so far, for a progress bar."""
        threading.Thread(target=self._read, name="forebay-feed", daemon=True).start()

    async def next(self) -> Line | None:
        """The next line, or None after the last one or `stop`."""
        while not self._lines:
            if self._ended:
                return None
            async with self._filling:
                if not self._lines and not self._ended:
                    self._fill(await self._chunks.get())
        line = self._lines.popleft()
        self.bytes_read += len(line.body) + 1
        return line

    def stop(self) -> None:
        """Hand out nothing more."""
        self._ended = True
        self._lines.clear()
        if self._chunks.empty():
            self._chunks.put_nowait(b"")

    def _fill(self, chunk: bytes | OSError) -> None:
        if self._ended:
            return
        if isinstance(chunk, OSError):
            raise chunk
        if chunk:
            *lines, self._rest = (self._rest + chunk).split(b"\n")
        else:
            lines, self._rest = [self._rest], b""
            self._ended = True
        for line in lines:
            self._number += 1
            body = line.removesuffix(b"\r")
            if body and self._number >= self._first:
                self._lines.append(Line(self._number, body))

    def _read(self) -> None:
        try:
            while True:
                try:
                    chunk: bytes | OSError = os.read(self._fd, _CHUNK)
                except OSError as error:
                    chunk = error
                asyncio.run_coroutine_threadsafe(self._chunks.put(chunk), self._loop).result()
                if not chunk or isinstance(chunk, OSError):
                    return
        except Exception:  # noqa: S110
            # The loop is gone: nobody wants more lines.
            pass
