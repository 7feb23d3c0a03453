"""Threads of a sink's own, for calls that block."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from forebay.errors import SinkUnavailable

T = TypeVar("T")


class SinkThreads:
    """
    Runs blocking calls in a few threads of its own, first come, first served.

    Cancelling a call abandons it: it still runs to its end in its thread, and what
    it then does to the destination is harmless because a sink's effect happens
    once per message id. Calls that are cancelled before they began are not made.

    The threads are daemons: a destination that hangs for ever must not keep the
    process from ending (ThreadPoolExecutor waits for its threads at exit).
    """

    def __init__(self, name: str, count: int = 1, *, at_end: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._count = count
        self._at_end = at_end
        self._threads: list[threading.Thread] = []
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """
        What `function(*args)` returns or raises, in one of the threads.

        Raises:
            SinkUnavailable: the system has no thread for it; it was not called.
        """
        if self._closed:
            raise RuntimeError(f"{self._name} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def tell(set_outcome: Callable[[Any], None], outcome: object) -> None:
            if not future.done():
                set_outcome(outcome)

        def call() -> None:
            if future.cancelled():
                return
            set_outcome: Callable[[Any], None]
            outcome: object
            try:
                set_outcome, outcome = future.set_result, function(*args)
            except BaseException as error:
                set_outcome, outcome = future.set_exception, error
            try:
                loop.call_soon_threadsafe(tell, set_outcome, outcome)
            except RuntimeError:
                pass  # The loop was closed meanwhile: nobody is waiting any more.

        if len(self._threads) < self._count:
            self._start_one()
        self._calls.put(call)
        return await future

    def _start_one(self) -> None:
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # "can't start new thread"
            if not self._threads:
                raise SinkUnavailable(f"{self._name}: {error}; out of memory or of processes") from error
        else:
            self._threads.append(thread)

    def close(self) -> None:
        """Let the threads end after what was given to them. Idempotent; does not wait."""
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # Holds the batch and its result; not while waiting for the next one.
        self._at_end()
