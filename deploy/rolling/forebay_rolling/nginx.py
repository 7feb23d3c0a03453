"""The rotation of plain processes: the include of nginx's upstream, and who still works with an older one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forebay_rolling.config import Nginx
from forebay_rolling.errors import CheckFailed
from forebay_rolling.state import replace

TAKES_OVER = 10.0
"""Seconds that nginx has to start workers with the new list."""
PAUSE = 0.05

_SERVER = re.compile(r"^\s*server\s+([^\s;]+)", re.MULTILINE)


class Rotation:
    """The addresses that nginx sends requests to."""

    def __init__(self, settings: Nginx) -> None:
        self._settings = settings
        # There while the list may be another one than nginx has.
        self._unread = settings.upstream.with_name(f".{settings.upstream.name}.unread")

    def addresses(self) -> list[str]:
        try:
            text = self._settings.upstream.read_text()
        except FileNotFoundError:
            return []
        # A server that is `down` is there so that the file may be empty otherwise.
        return [a for a in _SERVER.findall(text) if f"server {a} down;" not in text]

    def change(self, addresses: list[str]) -> None:
        """
        Send requests to these; return when no worker is left that knows another list.

        One that is held up by a long request longer than `let_go` is not waited for: the gateway
        that it is connected to finishes the request when it is stopped.

        Raises:
            CheckFailed: nginx does not take it; the old list is in place again.
        """
        try:
            # One of a deployer that was killed would have nginx close each connection, for ever.
            self._closing.unlink(missing_ok=True)
            if addresses != self.addresses():
                with self._connections_end():
                    self._change(addresses)
        except OSError as error:
            raise CheckFailed(f"cannot change who is in rotation: {error}") from error

    def settle(self) -> None:
        """
        Have nginx read what a deployer wrote that was killed before nginx had it.

        Raises:
            CheckFailed: nginx does not.
        """
        if not self._unread.exists():
            return
        try:
            with self._connections_end():
                self._reload()
            self._unread.unlink(missing_ok=True)
        except OSError as error:
            raise CheckFailed(f"cannot have nginx read {self._settings.upstream}: {error}") from error

    @property
    def _closing(self) -> Path:
        return self._settings.pid.with_name("closing")

    @contextmanager
    def _connections_end(self) -> Iterator[None]:
        """
        For a reload: each answer says that it was its connection's last.

        nginx closes the idle connections of its old workers, also those that a request is just coming
        in by. So there should be none.
        """
        self._closing.touch()
        try:
            time.sleep(self._settings.closing)
            yield
        finally:
            self._closing.unlink(missing_ok=True)

    def _change(self, addresses: list[str]) -> None:
        file = self._settings.upstream
        before = file.read_text() if file.exists() else None
        options = self._settings.server_options
        lines = [f"server {address}{' ' if options else ''}{options};\n" for address in addresses]
        self._unread.touch()
        # An upstream without any server is an error to nginx.
        replace(file, "".join(lines or ["server 127.0.0.1:1 down;\n"]))
        try:
            self._reload()
        except CheckFailed:
            if before is not None:
                replace(file, before)
            self._unread.unlink(missing_ok=True)
            raise
        self._unread.unlink(missing_ok=True)

    def _reload(self) -> None:
        master = self._master()
        old = _children(master)
        if self._settings.reload:
            try:
                done = subprocess.run(
                    self._settings.reload,
                    stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                raise CheckFailed(f"nginx.reload failed: {error}") from error
            if done.returncode != 0:
                raise CheckFailed(f"nginx.reload failed: {done.stderr.decode(errors='replace')[-500:]}")
        else:
            try:
                os.kill(master, signal.SIGHUP)
            except OSError as error:
                raise CheckFailed(
                    f"cannot signal nginx (pid {master}): {error.strerror};"
                    " set nginx.reload to a command that may"
                ) from error
        deadline = time.monotonic() + TAKES_OVER
        while not _children(master) - old:
            if time.monotonic() > deadline:
                raise CheckFailed(
                    f"nginx did not take the new {self._settings.upstream};"
                    " `nginx -t` and its error log say why"
                )
            time.sleep(PAUSE)
        deadline = time.monotonic() + self._settings.let_go
        while _children(master) & old and time.monotonic() < deadline:
            time.sleep(PAUSE)

    def _master(self) -> int:
        try:
            return int(self._settings.pid.read_text())
        except (OSError, ValueError) as error:
            raise CheckFailed(f"nginx does not run: no pid in {self._settings.pid} ({error})") from error


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= {int(child) for child in task.read_text().split()}
        except OSError:
            continue
    if not found and not Path(f"/proc/{pid}").exists():
        raise CheckFailed(f"nginx does not run: there is no process {pid}")
    return found
