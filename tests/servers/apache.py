"""An Apache httpd of our own for tests: the configuration of deploy/apache, or another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tests.servers.daemon import Daemon

SOURCE = Path(__file__).parents[2] / "deploy" / "apache"

_MODULES = [
    Path(p) for p in ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules", "/usr/local/apache2/modules")
]


class ApacheNotInstalled(Exception):
    """No Apache httpd on this machine."""


def find_apache() -> tuple[str, Path]:
    """The program, and the folder with its modules."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    program = shutil.which("apache2", path=path) or shutil.which("httpd", path=path)
    modules = next((folder for folder in _MODULES if (folder / "mod_proxy.so").exists()), None)
    if program is None or modules is None:
        raise ApacheNotInstalled("no Apache httpd found; on Debian: apt-get install apache2-bin")
    return program, modules


class Apache(Daemon):
    """
    httpd with a folder as its ServerRoot, in which httpd.conf is the maker's to write.

    `host` is the beginning of a configuration: where to listen, whom to be, where modules are.
    """

    def __init__(self, mpm: Literal["event", "prefork"] = "event") -> None:
        self.program, modules = find_apache()
        self.mpm = mpm
        super().__init__("apache")
        self.host = (
            f"Define modules {modules}\nListen 127.0.0.1:{self.port}\nServerName localhost\n"
            f"PidFile {self.folder}/pid\nDefaultRuntimeDir {self.folder}\nUser #65534\nGroup #65534\n"
        )

    def command(self) -> list[str | Path]:
        return [self.program, "-d", self.folder, "-f", "httpd.conf", "-D", "FOREGROUND", "-D", self.mpm]


def in_front_of(gateways: Sequence[int], mpm: Literal["event", "prefork"] = "event") -> Apache:
    """deploy/apache, balancing between gateways at these ports."""
    apache = Apache(mpm)
    shutil.copytree(SOURCE, apache.folder, dirs_exist_ok=True)
    (apache.folder / "site/host.conf").write_text(apache.host)
    (apache.folder / "site/log.conf").write_text(f"CustomLog {apache.folder}/access.log forebay\n")
    how = "retry=1 connectiontimeout=2 disablereuse=On"
    members = "".join(f"BalancerMember http://127.0.0.1:{port} {how}\n" for port in gateways)
    (apache.folder / "upstream/gateways.conf").write_text(members)
    return apache


PROXIED_FROM = "127.0.0.9"
"""The address that those see whom the forward proxy asks."""


def forward_proxy() -> Apache:
    """A forward proxy for everybody, and so for tests only."""
    apache = Apache()
    modules = ("mpm_event", "authz_core", "proxy", "proxy_http", "proxy_connect")
    load = "".join(f"LoadModule {name}_module ${{modules}}/mod_{name}.so\n" for name in modules)
    (apache.folder / "httpd.conf").write_text(
        f"{apache.host}{load}ServerLimit 1\nThreadsPerChild 32\nMaxRequestWorkers 32\n"
        f"ProxyRequests On\nAllowCONNECT 1-65535\nProxySourceAddress {PROXIED_FROM}\nErrorLog /dev/stderr\n"
    )
    return apache
