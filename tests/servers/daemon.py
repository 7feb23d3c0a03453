"""
A server of our own for tests: one program in the foreground, with a folder and a free loopback port.

Its processes are a group of their own, which `close` ends by its number.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.postgres import free_port

STARTS = 30.0
"""Seconds within which it must take connections."""


class Daemon:
    """Started by entering the context; `name` is for its folder and what is said of it."""

    def __init__(self, name: str, *, port: int | None = None) -> None:
        self.name = name
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"forebay-{name}-"))
        # Its children may be another user than root, who may not enter what mkdtemp makes.
        self.folder.chmod(0o711)
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str | Path]:
        """What starts it, in the foreground."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process's that was started."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it said on standard output and error."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> Self:
        """Start it, and return when it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until(self.answers)
        return self

    def answers(self) -> bool:
        """Whether it takes connections now."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def wait_until(self, so: Callable[[], bool]) -> None:
        """Return when it is so; fail with the log when the program ends first, or it takes too long."""
        deadline = time.monotonic() + STARTS
        while not so():
            assert self.running, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def kill(self) -> None:
        """Gone, with its connections; it can be started again."""
        if self._process is not None and self.running:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(10)

    def close(self) -> None:
        """End it at once, and remove everything."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
