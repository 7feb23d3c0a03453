"""
The processes of one demo and the folder that they live in: gone when the demo is, however that ends.

A guard, a process of its own, holds the other end of a pipe. When the pipe closes (the demo has ended, was
interrupted twice, was killed) it ends what still runs and removes the folder.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_GUARD = """
import os, shutil, signal, sys, time
running = {}
for line in sys.stdin:
    pid, number = map(int, line.split())
    if number:
        running[pid] = number
    else:
        running.pop(pid, None)
for pid, number in reversed(running.items()):
    try:
        os.kill(-pid if number == signal.SIGKILL else pid, number)
    except OSError:
        pass
for pid in running:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except OSError:
            break
        time.sleep(0.05)
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


def free_port() -> int:
    """
    A port that nobody listens on, below the range that outgoing connections take theirs from.

    So it is still ours when the server is killed and started again.
    """
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise DemoError("no free port between 20000 and 32000; end some servers and try again")


def until(condition: Callable[[], object], *, within: float, failed: Callable[[], str]) -> None:
    """
    Return when the condition holds.

    Raises:
        DemoError: it did not within so many seconds; the text is what `failed` says.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(failed())
        time.sleep(0.03)


class Member:
    """One process, in a session of its own: Ctrl-C at the terminal does not reach it."""

    def __init__(self, name: str, child: subprocess.Popen[str], log: Path, end_by: int) -> None:
        self.name = name
        self.pid = child.pid
        self._child = child
        self._log = log
        self._end_by = end_by

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def stdin(self) -> IO[str]:
        assert self._child.stdin is not None
        return self._child.stdin

    @property
    def stdout(self) -> IO[str]:
        assert self._child.stdout is not None
        return self._child.stdout

    def end(self, by: int | None = None, *, within: float = 15.0) -> None:
        """Send the signal that ends it (SIGKILL to all its processes, unless it has another one)."""
        number = self._end_by if by is None else by
        try:
            os.kill(-self.pid if number == signal.SIGKILL else self.pid, number)
        except ProcessLookupError:
            pass
        try:
            self._child.wait(within)
        except subprocess.TimeoutExpired:
            os.kill(-self.pid, signal.SIGKILL)
            self._child.wait(within)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def wait(self, within: float) -> None:
        """
        Return when it has ended by itself.

        Raises:
            DemoError: it has not, or with an exit code that is not 0.
        """
        try:
            code = self._child.wait(within)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{self.name} does not end:\n{self.last_words()}") from None
        if code != 0:
            raise DemoError(f"{self.name} ended with {code}:\n{self.last_words()}")

    def until(self, condition: Callable[[], object], *, within: float) -> None:
        """
        Return when the condition holds.

        Raises:
            DemoError: the process ended first, or time was up; with its last words.
        """
        until(
            lambda: condition() or not self.running,
            within=within,
            failed=lambda: f"{self.name} is not ready after {within:g} s:\n{self.last_words()}",
        )
        if not self.running:
            raise DemoError(f"{self.name} has ended:\n{self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])


class Crew:
    """Starts processes and keeps their folder; a context manager that leaves nothing behind."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._closed = False
        self._lock = threading.RLock()
        """Ctrl-C closes the crew in one thread while another one starts or ends processes."""
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-demo-"))
        try:
            self.folder.chmod(0o711)  # a database server that runs as another user must get through
            self._guard = subprocess.Popen(
                [sys.executable, "-c", _GUARD, str(self.folder)],
                stdin=subprocess.PIPE, start_new_session=True, text=True,
            )  # fmt: skip
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
        end_by: int = signal.SIGKILL,
        talk: bool = False,
    ) -> Member:
        """
        Start a process; what it prints goes to NAME.log, or with `talk` comes by its `stdout`.

        Raises:
            DemoError: the program cannot be started.
        """
        log = self.folder / f"{name.replace(' ', '-')}.log"
        with self._lock:
            if self._closed:
                raise DemoError("the demo is over")
            try:
                with log.open("ab") as output:
                    child = subprocess.Popen(
                        command, env=env, cwd=cwd or self.folder, text=True, start_new_session=True,
                        stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
                        stdout=subprocess.PIPE if talk else output, stderr=output,
                        user=user, group=user, extra_groups=None if user is None else [],
                    )  # fmt: skip
            except OSError as error:
                raise DemoError(f"{name} cannot be started: {error.strerror}: {error.filename}") from error
            member = Member(name, child, log, end_by)
            self._members.append(member)
            self._tell_guard(member.pid, end_by)
        return member

    def end(self, member: Member, by: int | None = None) -> None:
        with self._lock:
            if member not in self._members:
                return
            self._members.remove(member)
        member.end(by)
        if not self._closed:
            self._tell_guard(member.pid, 0)

    def run(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        within: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        """
        Run a command to its end.

        Raises:
            DemoError: it failed, or took too long.
        """
        member = self.start(name, command, env=env, cwd=cwd, user=user)
        try:
            member.wait(within)
        finally:
            self.end(member)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for member in reversed(self._members[:]):
            self.end(member)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell_guard(self, pid: int, number: int) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{pid} {int(number)}\n")
        self._guard.stdin.flush()
