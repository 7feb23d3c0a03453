"""
A real sshd of our own for tests, on a free loopback port, that allows all that a server can allow.

So what a key may not do is refused for the key's own restrictions.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.postgres import free_port

PROGRAM = Path("/usr/sbin/sshd")

_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
# The folder is below one that all may write to.
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
AllowAgentForwarding yes
GatewayPorts yes
PermitTunnel yes
PermitTTY yes
PermitUserRC yes
X11Forwarding yes
X11UseLocalhost yes
LogLevel DEBUG1
# Debian's, and what would change our interpreter.
AcceptEnv LANG LC_* PYTHON* FOREBAY_*
Subsystem sftp /usr/lib/openssh/sftp-server
"""


class SshdNotInstalled(Exception):
    """No sshd on this machine."""


class Sshd:
    """Knows the keys that `authorize` names, for the user who runs the tests."""

    def __init__(self) -> None:
        if not PROGRAM.exists():
            raise SshdNotInstalled("no sshd found; on Debian: apt-get install openssh-server")
        self.user = getpass.getuser()
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-sshd-"))
        make_key(self.folder / "host_key")
        public = (self.folder / "host_key.pub").read_text().split()
        self.known_hosts = self.folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public[0]} {public[1]}\n")
        (self.folder / "authorized_keys").touch()
        (self.folder / "sshd_config").write_text(_CONFIG.format(port=self.port, folder=self.folder))
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text(errors="replace")

    def authorize(self, key: Path, options: str) -> None:
        """Let a key in, with these options before it in authorized_keys."""
        with (self.folder / "authorized_keys").open("a") as file:
            file.write(f"{options} {key.with_suffix('.pub').read_text()}")

    def command(self, key: Path, *arguments: str) -> list[str]:
        """`ssh` with this key; `arguments` are more options, the host, and a command."""
        return [
            "ssh", "-F", "none", "-i", str(key), "-p", str(self.port), "-l", self.user,
            "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={self.known_hosts}",
            *arguments,
        ]  # fmt: skip

    def ssh(
        self, key: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(key, *arguments), env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def start(self) -> Self:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it insists on it
        with (self.folder / "sshd.log").open("ab") as log:
            self._server = subprocess.Popen(
                [PROGRAM, "-D", "-e", "-f", self.folder / "sshd_config"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while not self._listens():
            assert self._server.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return self

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2):
                return True
        except OSError:
            return False

    def close(self) -> None:
        if self._server is not None and self._server.poll() is None:
            self._server.terminate()
            self._server.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_key(path: Path) -> Path:
    """A new key pair: `path` and `path`.pub."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return path
