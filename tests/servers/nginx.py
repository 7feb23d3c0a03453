"""
An nginx of our own for tests: the configuration of deploy/nginx, on a free loopback port.

Master and workers are a process group of their own; `stop` ends it by its pid.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.postgres import free_port

SOURCE = Path(__file__).parents[2] / "deploy" / "nginx"


class NginxNotInstalled(Exception):
    """No nginx on this machine."""


def find_nginx() -> str:
    # Debian has it where only root's PATH leads.
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise NginxNotInstalled("no nginx found; on Debian: apt-get install nginx")
    return found


def configuration(folder: Path, port: int) -> Path:
    """A copy of deploy/nginx in `folder` that listens on `port` and logs into a file beside it."""
    conf = folder / "conf"
    shutil.copytree(SOURCE, conf)
    (conf / "site/listen.conf").write_text(f"listen 127.0.0.1:{port} backlog=2048;\n")
    (conf / "site/log.conf").write_text(f"access_log {folder}/access.log forebay;\n")
    return conf


class Nginx:
    """
    In front of `gateways`, each a port of this machine or HOST:PORT.

    `files` are more files of the configuration, by their path in it.
    """

    def __init__(
        self,
        gateways: Sequence[int | str],
        *,
        port: int | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self._nginx = find_nginx()
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-nginx-"))
        # Its workers are another user than root, who may not enter what mkdtemp makes.
        self.folder.chmod(0o711)
        self.conf = configuration(self.folder, self.port)
        for name, text in (files or {}).items():
            (self.conf / name).parent.mkdir(parents=True, exist_ok=True)
            (self.conf / name).write_text(text)
        self.gateways: list[str] = []
        self._render(gateways)
        self._master: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The master's; it takes SIGHUP and SIGQUIT."""
        assert self._master is not None, "nginx was not started"
        return self._master.pid

    @property
    def upstream(self) -> Path:
        """The file with the gateways in rotation."""
        return self.conf / "upstream/gateways.conf"

    @property
    def error_log(self) -> str:
        return (self.folder / "error.log").read_text(errors="replace")

    @property
    def access_log(self) -> str:
        return (self.folder / "access.log").read_text(errors="replace")

    def start(self) -> Self:
        """Start it, and return when it takes connections."""
        command = [
            self._nginx, "-p", f"{self.folder}/", "-c", str(self.conf / "nginx.conf"),
            "-e", "stderr", "-g", "daemon off;",
        ]  # fmt: skip
        with (self.folder / "error.log").open("ab") as log:
            self._master = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._runs_until(deadline), self.error_log
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return bool(self.workers())
        return False

    def _runs_until(self, deadline: float) -> bool:
        return self._master is not None and self._master.poll() is None and time.monotonic() < deadline

    def workers(self) -> set[int]:
        """Pids of the workers that take connections; those that only finish are not among them."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return {int(pid) for pid in children if b"worker process is" not in _title(int(pid))}

    def set_gateways(self, gateways: Sequence[int | str]) -> None:
        """These are in rotation from now on; those that are not get nothing new."""
        if self._render(gateways):
            self.reload()

    def add(self, *gateways: int | str) -> None:
        self.set_gateways([*self.gateways, *gateways])

    def remove(self, *gateways: int | str) -> None:
        gone = {_address(g) for g in gateways}
        self.set_gateways([g for g in self.gateways if g not in gone])

    def reload(self) -> None:
        """Read the configuration anew, and return when the old workers take nothing any more."""
        old = self.workers()
        subprocess.run([self.conf / "reload", self.folder], check=True, timeout=60)
        deadline = time.monotonic() + 20
        while not self.workers() or self.workers() & old:
            assert self._runs_until(deadline), self.error_log
            time.sleep(0.01)

    def stop(self) -> None:
        """Answer what is there, and end."""
        if self._master is not None and self._master.poll() is None:
            os.kill(self.pid, signal.SIGQUIT)
            self._master.wait(60)

    def close(self) -> None:
        """End at once, and remove everything."""
        if self._master is not None and self._master.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._master.wait(10)
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

    def _render(self, gateways: Sequence[int | str]) -> bool:
        addresses = sorted(_address(g) for g in gateways)
        if addresses == self.gateways:
            return False
        new = self.upstream.with_suffix(".new")
        new.write_text("".join(f"server {address} max_fails=0;\n" for address in addresses))
        new.replace(self.upstream)
        self.gateways = addresses
        return True


def _address(gateway: int | str) -> str:
    return f"127.0.0.1:{gateway}" if isinstance(gateway, int) else gateway


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b"worker process is gone"
