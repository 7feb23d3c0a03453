"""A PostgreSQL and a RabbitMQ of the demo's own, where the machine has them: made, killed, started again."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from forebay.demo.crew import Crew, Member, free_port

_SQL_BIN = "/usr/lib/postgresql"
_RABBIT_BIN = "/usr/lib/rabbitmq/bin"


class Part(Protocol):
    """A database or a broker that can be made to fail, and be there again with all that it held."""

    label: str
    """What it is: "PostgreSQL 15"."""
    fate: str
    """What failing means here: "killed", "locked", "cut off"."""
    url: str
    """As the settings of Forebay take it."""

    def start(self) -> None: ...

    def fail(self) -> None: ...

    def mend(self) -> None:
        """Return when it takes work again."""
        ...


class Missing(Exception):
    """This machine lacks a server, or the right to run it; the text says which."""


class PostgreSQL:
    """A fresh cluster on a free loopback port, durable as by default."""

    fate = "killed"

    def __init__(self, crew: Crew) -> None:
        """
        Raises:
            Missing: there is none to run.
        """
        self._bin = _postgresql()
        if find_spec("psycopg") is None:
            raise Missing("there is a PostgreSQL, but not its driver (pip install 'forebay[demo]')")
        self._user = _another_user() if os.geteuid() == 0 else None
        self._crew = crew
        self._folder = crew.folder / "postgresql"
        self._data = self._folder / "data"
        self._port = free_port()
        self._password = secrets.token_hex(16)
        self._server: Member | None = None
        version = subprocess.run(
            [self._bin / "postgres", "--version"], capture_output=True, text=True, check=True
        )
        self.label = f"PostgreSQL {version.stdout.split()[2].partition('.')[0]}"
        self.url = f"postgresql://forebay:{self._password}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        self._folder.mkdir()
        secret = self._folder / "password"
        secret.write_text(self._password)
        if self._user is not None:
            shutil.chown(self._folder, self._user)
            shutil.chown(secret, self._user)
        self._folder.chmod(0o700)
        self._crew.run(
            "initdb",
            [
                self._bin / "initdb", "-D", self._data, "--username", "forebay", "--pwfile", secret,
                "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync",
            ],
            cwd=self._folder, user=self._user, within=60,
        )  # fmt: skip
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(
                f"listen_addresses = '127.0.0.1'\nport = {self._port}\nunix_socket_directories = ''\n"
                "max_connections = 60\nshared_buffers = '32MB'\n"
            )
        self.mend()

    def fail(self) -> None:
        # What PostgreSQL calls an immediate shutdown: every process of it ends at once, as in a crash, and
        # the next start recovers from the log. SIGKILL to the first one alone would leave the others.
        assert self._server is not None
        self._crew.end(self._server, signal.SIGQUIT)
        self._server = None

    def mend(self) -> None:
        self._server = self._crew.start(
            self.label, [self._bin / "postgres", "-D", self._data],
            cwd=self._folder, user=self._user, end_by=signal.SIGQUIT,
        )  # fmt: skip
        self._server.until(self._ready, within=60)

    def _ready(self) -> bool:
        # What pg_ctl waits for: the eighth line of postmaster.pid; and it must be of this server.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        assert self._server is not None
        return len(lines) >= 8 and lines[7].strip() == "ready" and int(lines[0]) == self._server.pid


def _postgresql() -> Path:
    # PATH is asked last: on Debian it has wrappers for the packaged clusters only.
    packaged = sorted(Path(_SQL_BIN).glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    on_path = shutil.which("initdb")
    if packaged:
        return packaged[-1].parent
    if on_path is None:
        raise Missing("no PostgreSQL on this machine")
    return Path(on_path).resolve().parent


def _another_user() -> str:
    """Whom PostgreSQL can run as: it refuses to be root."""
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise Missing("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`")


class RabbitMQ:
    """One node on a free loopback port, with a port mapper and a cookie of its own."""

    label = "RabbitMQ"
    fate = "killed"

    def __init__(self, crew: Crew) -> None:
        """
        Raises:
            Missing: there is none to run.
        """
        self._script = _rabbitmq()
        self._crew = crew
        self._folder = crew.folder / "rabbitmq"
        self._port, self._distribution, self._mapper = free_port(), free_port(), free_port()
        self._node: Member | None = None
        self._password = secrets.token_hex(16)
        self.url = f"amqp://forebay:{self._password}@127.0.0.1:{self._port}/"

    def start(self) -> None:
        self._folder.mkdir(mode=0o700)
        cookie = self._folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        (self._folder / "plugins").write_text("[].\n")
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{self._port}\n"
            f"default_user = forebay\ndefault_pass = {self._password}\n"
            "disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 600MB\n"
            "log.console = true\nlog.console.level = warning\nlog.file = false\n"
        )
        # A port mapper of ours, or the node would start one that outlives it.
        command = ["epmd", "-port", str(self._mapper), "-address", "127.0.0.1"]
        self._crew.start("epmd", command, env=self._environment())
        self.mend()

    def fail(self) -> None:
        assert self._node is not None
        self._crew.end(self._node)
        self._node = None

    def mend(self) -> None:
        self._node = self._crew.start(self.label, [self._script], env=self._environment())
        self._node.until(self._ready, within=90)

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), 2) as s:
                s.settimeout(5)
                s.sendall(b"AMQP\x00\x00\x09\x01")
                return s.recv(1) == b"\x01"  # the first method frame
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        folder = str(self._folder)
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": folder,  # of the cookie
            "ERL_CRASH_DUMP_SECONDS": "0",
            "ERL_EPMD_PORT": str(self._mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": folder + "/none",
            "RABBITMQ_NODENAME": f"forebay-demo-{self._port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONFIG_FILE": folder + "/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": folder + "/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder + "/plugins",
            "RABBITMQ_MNESIA_BASE": folder + "/data",
            "RABBITMQ_LOG_BASE": folder + "/log",
            "RABBITMQ_PID_FILE": folder + "/server.pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }


def _rabbitmq() -> Path:
    if shutil.which("epmd") is None:
        raise Missing("no RabbitMQ on this machine")
    # Not Debian's script on PATH, which changes to the packaged service's user.
    packaged = Path(_RABBIT_BIN, "rabbitmq-server")
    if packaged.exists():
        return packaged
    on_path = shutil.which("rabbitmq-server")
    if on_path is None:
        raise Missing("no RabbitMQ on this machine")
    return Path(on_path).resolve()
