"""A TCP proxy that can fall silent or cut its connections: a network that fails, for one test at a time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self


class Conversation(Protocol):
    """Follows what is said on one connection, to know when the server confirms a message."""

    def asked(self, data: bytes) -> bool:
        """Read what the client sends; never a confirmation."""
        ...

    def answered(self, data: bytes) -> bool:
        """Read what the server sends; whether the end of a confirmation is in it."""
        ...


class Proxy:
    """
    Passes everything on to a port of this machine. Has a thread of its own, for any event loop to use.

    While `stalled`, connections are taken and nothing is passed on; afterwards
    everything arrives that was sent meanwhile, as from a process that was stopped.

    With a `conversation` it understands what it passes on, and can cut a connection when
    the server has confirmed a message and before the client hears of it.
    """

    def __init__(self, target: int, *, conversation: Callable[[], Conversation] | None = None) -> None:
        self._target = target
        self._conversation = conversation
        self._cut_next_confirm = False
        self._was_cut = threading.Event()
        self._away = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        self._loop.call_soon_threadsafe(self._flowing.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._flowing.set)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """While in this context every connection is reset, those that are there too."""
        self._loop.call_soon_threadsafe(self._go_away)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._come_back)

    def cut(self) -> None:
        """End all connections at once, with a reset."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def cut_before_confirm(self) -> None:
        """Cut the next connection on which the server confirms a message, before the confirmation."""
        assert self._conversation is not None, "made without a conversation"
        self._was_cut.clear()
        self._cut_next_confirm = True

    @property
    def was_cut(self) -> bool:
        """Whether a connection was cut since `cut_before_confirm`."""
        return self._was_cut.is_set()

    def _go_away(self) -> None:
        self._away = True
        self._abort_all()

    def _come_back(self) -> None:
        self._away = False

    def _abort_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._abort_all()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        back: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            if self._away:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(back)
            said = self._conversation() if self._conversation is not None else None
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass_on(reader, back, said.asked if said else None))
                tasks.create_task(self._pass_on(there, writer, said.answered if said else None))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # one side is gone, so the other goes as well
        finally:
            for side in (writer, back):
                if side is not None:
                    self._writers.discard(side)
                    side.transport.abort()
            self._tasks.discard(task)

    async def _pass_on(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        confirms: Callable[[bytes], bool] | None,
    ) -> None:
        while data := await source.read(65_536):
            await self._flowing.wait()
            if confirms is not None and confirms(data) and self._cut_next_confirm:
                self._cut_next_confirm = False
                self._was_cut.set()
                raise ConnectionResetError("cut before a confirmation")
            target.write(data)
            await target.drain()
        raise ConnectionResetError("the other side ended")
