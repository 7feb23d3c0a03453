"""
A PostgreSQL of our own for tests: a fresh cluster in a temporary folder, on a free loopback port.

The server dies with the process that started it, however that ends: a guard process
holds the other end of a pipe and stops the server when the pipe closes.
"""

from __future__ import annotations

import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psycopg
from psycopg import sql

_USER = "forebay"

_GUARD = """
import os, select, shutil, signal, sys
pids = [int(line) for line in sys.stdin]
try:
    server = os.pidfd_open(pids[-1])
    signal.pidfd_send_signal(server, signal.SIGQUIT)
    select.select([server], [], [], 10)
except (IndexError, ProcessLookupError):
    pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""

_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


class PostgresNotInstalled(Exception):
    """No PostgreSQL server binaries on this machine."""


def find_binaries() -> Path:
    """
    The folder with `initdb` and `postgres`, of the newest version installed.

    PATH is asked last: on Debian it has wrappers for the packaged clusters only.
    """
    packaged = sorted(
        (p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        key=lambda bin: float(bin.parent.name),
    )
    if packaged:
        return packaged[-1]
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    raise PostgresNotInstalled("no PostgreSQL server found; on Debian: apt-get install postgresql")


def free_port() -> int:
    """
    A port that nobody listens on, below the range that outgoing connections take theirs from.

    So it is still ours when the server is stopped for a while and started again.
    """
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000")


class Postgres:
    """
    One cluster. `start` after `stop` continues with the same data on the same port.

    `durable=False` turns fsync off: for tests that do not care what a power cut leaves.
    `settings` are added to the server's configuration.
    """

    def __init__(
        self, *, durable: bool = True, settings: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self._bin = find_binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-postgres-", dir=folder))
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self.password = secrets.token_hex(8)
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        # initdb and postgres refuse to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        self._guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._init(durable, settings or {})

    @property
    def version(self) -> str:
        done = subprocess.run([self._bin / "postgres", "--version"], capture_output=True, check=True)
        return done.stdout.decode().strip()

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int:
        assert self._server is not None, "not started"
        return self._server.pid

    def url(self, database: str = "postgres", *, user: str = _USER, password: str | None = None) -> str:
        return f"postgresql://{user}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """A superuser's connection in autocommit mode, to look at and to break things."""
        return psycopg.connect(self.url(database), autocommit=True)

    def create_database(self, name: str | None = None) -> str:
        """Create an empty database; return its URL. Without a name, one that nobody else has."""
        name = name or f"test_{secrets.token_hex(6)}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def start(self, *, timeout: float = 30.0) -> Self:
        """Start the server and return when it takes connections."""
        assert not self.running, "already started"
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True, user=self._user, group=self._user, extra_groups=self._groups(),
            )  # fmt: skip
        assert self._guard.stdin is not None
        self._guard.stdin.write(b"%d\n" % self._server.pid)
        self._guard.stdin.flush()
        deadline = time.monotonic() + timeout
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)
        return self

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast", *, timeout: float = 30.0) -> None:
        """Stop the server: "fast" ends sessions in order, "immediate" is a crash of the server."""
        if self._server is None:
            return
        if self.running:
            self._server.send_signal(_SIGNALS[mode])
            try:
                self._server.wait(timeout)
            except subprocess.TimeoutExpired:
                self._server.send_signal(signal.SIGQUIT)
                self._server.wait(timeout)
        self._server = None

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop("immediate")
        assert self._guard.stdin is not None
        if not self._guard.stdin.closed:
            self._guard.stdin.close()
        # Hundreds of databases take their time to delete on a busy disk.
        self._guard.wait(180)

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _init(self, durable: bool, settings: Mapping[str, str]) -> None:
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)  # the folder itself is for its owner only
        done = subprocess.run(
            [
                self._bin / "initdb", "-D", self.data, "--username", _USER, "--pwfile", secret,
                "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync",
            ],
            capture_output=True, cwd=self.folder,
            user=self._user, group=self._user, extra_groups=self._groups(),
        )  # fmt: skip
        if done.returncode != 0:
            self.close()
            raise RuntimeError(f"initdb failed: {done.stderr.decode()}")
        configured = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "60",
            "shared_buffers": "128MB",
            "fsync": "on" if durable else "off",
            "full_page_writes": "on" if durable else "off",
            "log_timezone": "UTC",
            "timezone": "UTC",
            **settings,
        }
        with (self.data / "postgresql.conf").open("a") as file:
            for name, value in configured.items():
                file.write(f"{name} = '{value}'\n")

    def _groups(self) -> list[int] | None:
        return None if self._user is None else []

    def _ready(self) -> bool:
        # What pg_ctl waits for: the eighth line of postmaster.pid.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready" and int(lines[0]) == self.pid
