"""`forebay` as a user starts it: a real process, in a folder of its own."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

DEADLINE = 20.0

COMMAND = [sys.executable, "-m", "forebay.cli.main"]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without FOREBAY_*: what the tester has set must not be what is tested."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FOREBAY_", "_FOREBAY_"))}
    return clean | {"NO_COLOR": "1"} | dict(more or {})


def forebay(*args: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    return subprocess.run(
        [*COMMAND, *args], cwd=cwd, env=environment(env),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip


class Running:
    """A command that goes on, with what it has printed so far. Killed at the end of the block."""

    def __init__(self, *args: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *args], cwd=cwd, env=environment(env), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        self.output = ""
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)

    def until(self, pattern: str) -> re.Match[str]:
        """The first line printed from now on that matches."""
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"nothing like {pattern!r} in:\n{self.output}") from None
            self.output += line
            if found := re.search(pattern, line):
                return found

    def url(self) -> str:
        """Where it listens, once it says so."""
        return self.until(r"http://127\.0\.0\.1:\d+")[0]

    def end(self, number: int) -> int:
        """Send a signal and wait; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)
