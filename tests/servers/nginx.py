"""An nginx of our own for tests: the configuration of deploy/nginx, on a free loopback port."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.daemon import Daemon

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


class Nginx(Daemon):
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
        super().__init__("nginx", port=port)
        self.conf = configuration(self.folder, self.port)
        for name, text in (files or {}).items():
            (self.conf / name).parent.mkdir(parents=True, exist_ok=True)
            (self.conf / name).write_text(text)
        self.gateways: list[str] = []
        self._render(gateways)

    @property
    def upstream(self) -> Path:
        """The file with the gateways in rotation."""
        return self.conf / "upstream/gateways.conf"

    @property
    def access_log(self) -> str:
        return (self.folder / "access.log").read_text(errors="replace")

    def command(self) -> list[str | Path]:
        return [
            self._nginx, "-p", f"{self.folder}/", "-c", self.conf / "nginx.conf",
            "-e", "stderr", "-g", "daemon off;",
        ]  # fmt: skip

    def answers(self) -> bool:
        return super().answers() and bool(self.workers())

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
        self.wait_until(lambda: bool(self.workers()) and not self.workers() & old)

    def stop(self) -> None:
        """Answer what is there, and end."""
        if self._process is not None and self.running:
            os.kill(self.pid, signal.SIGQUIT)
            self._process.wait(60)

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
