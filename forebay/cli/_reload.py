"""`forebay dev --reload`: start again when code changes, with the door held open meanwhile."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger()

DRAIN_DEADLINE = 60.0
"""Longer than gateway and consumer may take to drain; after it the process is killed."""


def run_and_reload(sock: socket.socket, *, watch: Path | None) -> None:
    """
    Run this same command line in a child process; replace the child when files change.

    The listening socket is ours and outlives the child: connections that arrive
    between two children wait in its backlog, so that no request is refused. The old
    child drains before the new one starts, as it does on SIGTERM.
    """
    asyncio.run(_Reloader(sock, watch).run())


class _Reloader:
    def __init__(self, sock: socket.socket, config: Path | None) -> None:
        self._sock = sock
        self._config = config
        self._stop = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        async with asyncio.TaskGroup() as tasks:
            changed = asyncio.Event()
            watcher = tasks.create_task(self._watch(changed.set))
            while not self._stop.is_set():
                changed.clear()
                await self._one_child(changed)
            watcher.cancel()

    async def _one_child(self, changed: asyncio.Event) -> None:
        """Run a child until files change or we are stopped; one that failed is kept for its message."""
        args = [a for a in sys.argv[1:] if a != "--reload"]
        fd = self._sock.fileno()
        # A group of its own: Ctrl-C at the terminal is passed on once, by us. Its stdin is a pipe
        # that we never write to: when we die without a word, its end tells the child to stop.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "forebay.cli.main", *args, "--listen-fd", str(fd),
            pass_fds=[fd], process_group=0, stdin=asyncio.subprocess.PIPE,
        )  # fmt: skip
        ended = asyncio.create_task(child.wait())
        waits = [asyncio.create_task(changed.wait()), asyncio.create_task(self._stop.wait())]
        await asyncio.wait([ended, *waits], return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not self._stop.is_set():
            log.warning("ended; waiting for a change of the code", exit_code=ended.result())
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        elif not ended.done():
            child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(asyncio.shield(ended), DRAIN_DEADLINE)
            except TimeoutError:
                child.kill()
        await ended
        for wait in waits:
            wait.cancel()

    async def _watch(self, changed: Callable[[], None]) -> None:
        from watchfiles import PythonFilter, awatch

        folders = {Path.cwd()} | ({self._config.resolve().parent} if self._config else set())
        extra = [self._config.name] if self._config else []
        async for changes in awatch(*folders, watch_filter=PythonFilter(extra_extensions=extra)):
            log.info("changed, starting again", files=sorted(Path(name).name for _, name in changes)[:5])
            changed()
