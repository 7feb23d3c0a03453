"""`--workers N`: several processes that share one listening socket."""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

import structlog
import uvloop

from forebay import collector
from forebay.errors import ForebayError, SettingsError
from gateway.settings import GatewaySettings
from gateway.sharing import ABSENT, Share

log = structlog.get_logger()

USAGE, STARTUP_FAILED = 2, 3
"""Exit codes of a worker that would fail the same way each time: it is not restarted."""

RESTART_PAUSE = 1.0
"""Seconds between two starts of one worker, at the least."""

MEMORY = "/dev/shm"  # noqa: S108  # a directory of our own is made in it
"""
Where the workers' figures are kept, if it is there.

They are files mapped into memory. Were they on a disk, the first figure to need a
new page while it is full would kill the worker (SIGBUS), rather than be refused.
"""

_spawn = multiprocessing.get_context("spawn")


def run_workers(factory: str, settings: GatewaySettings, sock: socket.socket) -> int:
    """
    Run `settings.workers` processes until SIGTERM or SIGINT; returns the exit code.

    `factory` is "module:function"; called in each worker, it returns the app. A
    worker that dies is replaced; one that cannot start stops them all, with its
    exit code. Workers end when this process does, however it ends.
    """
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="forebay-metrics-", dir=memory) as directory:
        return _Supervisor(factory, settings, sock, directory).run()


class _Worker:
    def __init__(self, process: SpawnProcess, leash: Connection) -> None:
        self.process = process
        self.leash = leash
        """Open as long as this process lives; its other end tells the worker."""
        self.started_at = time.monotonic()


class _Supervisor:
    def __init__(self, factory: str, settings: GatewaySettings, sock: socket.socket, directory: str) -> None:
        self._factory = factory
        self._settings = settings
        self._sock = sock
        self._directory = directory
        self._held = _spawn.RawArray("i", [ABSENT] * settings.workers)
        """How many connections each worker has."""
        self._workers: list[_Worker] = []
        self._stopping = False
        self._code = 0

    def run(self) -> int:
        # prometheus_client reads it when a worker imports it.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = self._directory
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)

        def on_signal(number: int, frame: FrameType | None) -> None:
            self._stopping = True
            os.write(wake_write, b"x")

        before = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._workers = [self._start(place) for place in range(self._settings.workers)]
            while not self._stopping:
                wait([wake_read, *(w.process.sentinel for w in self._workers)])
                self._replace_dead()
            return self._drain()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
            os.close(wake_read)
            os.close(wake_write)
            self._sock.close()

    def _start(self, place: int) -> _Worker:
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(
            target=work,
            args=(self._factory, self._settings, self._sock, Share(self._held, place), theirs),
            daemon=False,
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _replace_dead(self) -> None:
        from gateway.metrics import reap

        for place, worker in enumerate(self._workers):
            code = worker.process.exitcode
            if code is None or self._stopping:
                continue
            if code in (USAGE, STARTUP_FAILED):
                self._code = code
                self._stopping = True
                return
            log.warning("a worker died; starting another", pid=worker.process.pid, code=code)
            worker.leash.close()
            Share(self._held, place).leave()
            reap(self._directory, worker.process.pid or 0)
            time.sleep(max(0.0, worker.started_at + RESTART_PAUSE - time.monotonic()))
            if not self._stopping:
                self._workers[place] = self._start(place)

    def _drain(self) -> int:
        # The workers have it as their own. Held open here, it would let clients connect
        # that no worker accepts any more.
        self._sock.close()
        for worker in self._workers:
            if worker.process.exitcode is None:
                worker.process.terminate()
        deadline = time.monotonic() + self._settings.drain_delay + self._settings.shutdown_timeout + 10
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                log.error("a worker did not drain in time; killing it", pid=worker.process.pid)
                worker.process.kill()
                worker.process.join()
            # SIGTERM itself ends only a worker that was still starting, and held nothing.
            if worker.process.exitcode not in (0, -signal.SIGTERM):
                self._code = self._code or 1
        return self._code


def work(
    factory: str, settings: GatewaySettings, sock: socket.socket, share: Share, leash: Connection
) -> None:
    """The body of one worker process."""
    # Ctrl-C goes to the whole group; the supervisor hears it and tells us in its way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module, _, name = factory.partition(":")
    try:
        make: Callable[[], object] = getattr(importlib.import_module(module), name)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(make, settings, sock, share, leash))
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(USAGE)
    except ForebayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(STARTUP_FAILED)


async def _serve(
    make: Callable[[], object],
    settings: GatewaySettings,
    sock: socket.socket,
    share: Share,
    leash: Connection,
) -> None:
    from gateway.app import Gateway
    from gateway.server import serve

    app = make()
    if not isinstance(app, Gateway):
        raise SettingsError(f"the worker's factory returned {type(app).__name__}, not the gateway's app")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(leash.fileno(), stop.set)
    collector.spare()
    await serve(app, settings, sock=sock, stop=stop, share=share)
    loop.remove_reader(leash.fileno())
