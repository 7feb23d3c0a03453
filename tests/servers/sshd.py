"""
A real sshd of our own for tests, on a free loopback port, that allows all that a server can allow.

So what a key may not do is refused for the key's own restrictions.
"""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.servers.daemon import Daemon

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


class Sshd(Daemon):
    """Knows the keys that `authorize` names, for the user who runs the tests."""

    def __init__(self) -> None:
        if not PROGRAM.exists():
            raise SshdNotInstalled("no sshd found; on Debian: apt-get install openssh-server")
        self.user = getpass.getuser()
        super().__init__("sshd")
        make_key(self.folder / "host_key")
        public = (self.folder / "host_key.pub").read_text().split()
        self.known_hosts = self.folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public[0]} {public[1]}\n")
        (self.folder / "authorized_keys").touch()
        (self.folder / "sshd_config").write_text(_CONFIG.format(port=self.port, folder=self.folder))

    def authorize(self, key: Path, options: str) -> None:
        """Let a key in, with these options before it in authorized_keys."""
        with (self.folder / "authorized_keys").open("a") as file:
            file.write(f"{options} {key.with_suffix('.pub').read_text()}")

    def client(self, key: Path, *arguments: str) -> list[str]:
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
            self.client(key, *arguments), env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def start(self) -> Self:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it insists on it
        return super().start()

    def command(self) -> list[str | Path]:
        return [PROGRAM, "-D", "-e", "-f", self.folder / "sshd_config"]


def make_key(path: Path) -> Path:
    """A new key pair: `path` and `path`.pub."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return path
