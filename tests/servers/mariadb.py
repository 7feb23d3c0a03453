"""
A MariaDB of our own for tests: a fresh data folder in a temporary place, on a free loopback port.

The server dies with the process that started it, however that ends, as `tests.servers.postgres` has it.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pymysql

from tests.servers.postgres import free_port

_USER = "forebay"

_GUARD = """
import os, select, shutil, signal, sys
pids = [int(line) for line in sys.stdin]
try:
    server = os.pidfd_open(pids[-1])
    signal.pidfd_send_signal(server, signal.SIGKILL)
    select.select([server], [], [], 10)
except (IndexError, ProcessLookupError):
    pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


class MariaDBNotInstalled(Exception):
    """No MariaDB server binaries on this machine."""


def _binary(*names: str) -> str:
    for name in names:
        for folder in (None, "/usr/sbin", "/usr/libexec"):
            if (found := shutil.which(name, path=folder)) is not None:
                return found
    raise MariaDBNotInstalled("no MariaDB server found; on Debian: apt-get install mariadb-server")


class MariaDB:
    """
    One server. `start` after `stop` continues with the same data on the same port.

    `durable=False` leaves flushing to the operating system: for tests that do not care
    what a power cut leaves. `settings` are added to the server's options.
    """

    def __init__(
        self, *, durable: bool = True, settings: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self._mariadbd = _binary("mariadbd")
        self._install = _binary("mariadb-install-db", "mysql_install_db")
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-mariadb-", dir=folder))
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        # Two that are installed at once would meet in the machine's own folder.
        self._environment = {**os.environ, "TMPDIR": str(self.folder)}
        self.password = secrets.token_hex(8)
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        # It refuses to run as root.
        self._user = "mysql" if os.geteuid() == 0 else None
        self._guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._options = {
            "datadir": str(self.data),
            "port": str(self.port),
            "bind-address": "127.0.0.1",
            "socket": str(self.folder / "socket"),
            "pid-file": str(self.folder / "pid"),
            "init-file": str(self.folder / "init.sql"),
            "skip-name-resolve": "ON",
            "max-connections": "60",
            "innodb-buffer-pool-size": "128M",
            "innodb-flush-log-at-trx-commit": "1" if durable else "2",
            "performance-schema": "OFF",
            "default-time-zone": "+03:00",  # ours must not depend on it
            **(settings or {}),
        }
        self._init()

    @property
    def version(self) -> str:
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT version()")
            return f"MariaDB {cursor.fetchall()[0][0]}"

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int:
        assert self._server is not None, "not started"
        return self._server.pid

    def url(self, database: str = "mysql", *, user: str = _USER, password: str | None = None) -> str:
        return f"mysql://{user}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str | None = None) -> pymysql.connections.Connection[Any]:
        """A superuser's connection in autocommit mode, to look at and to break things."""
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=_USER, password=self.password, database=database,
            autocommit=True, connect_timeout=10,
        )  # fmt: skip

    def execute(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run `statements` as a superuser; return the rows of the last one."""
        with self.connect(database) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def create_database(self, name: str | None = None) -> str:
        """Create an empty database; return its URL. Without a name, one that nobody else has."""
        name = name or f"test_{secrets.token_hex(6)}"
        # As most servers have it; our tables must not depend on it.
        self.execute(f"CREATE DATABASE `{name}` CHARACTER SET latin1")
        return self.url(name)

    def start(self, *, timeout: float = 60.0) -> Self:
        """Start the server and return when it takes connections."""
        assert not self.running, "already started"
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [self._mariadbd, "--no-defaults", *(f"--{k}={v}" for k, v in self._options.items())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=self._environment,
                start_new_session=True, user=self._user, group=self._user, extra_groups=self._groups(),
            )  # fmt: skip
        assert self._guard.stdin is not None
        self._guard.stdin.write(b"%d\n" % self._server.pid)
        self._guard.stdin.flush()
        deadline = time.monotonic() + timeout
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"MariaDB did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)
        return self

    def stop(self, mode: Literal["fast", "immediate"] = "fast", *, timeout: float = 30.0) -> None:
        """Stop the server: "fast" ends sessions in order, "immediate" is a crash of the server."""
        if self._server is None:
            return
        if self.running:
            self._server.send_signal(signal.SIGTERM if mode == "fast" else signal.SIGKILL)
            try:
                self._server.wait(timeout)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait(timeout)
        self._server = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile it answers nothing, and its port still takes connections."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            # Each of its threads stops when it next could.
            tasks = [Path(task, "stat") for task in Path(f"/proc/{self.pid}/task").iterdir()]
            deadline = time.monotonic() + 10
            while not all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in tasks):
                assert time.monotonic() < deadline, "it does not stop"
                time.sleep(0.01)
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop("immediate")
        assert self._guard.stdin is not None
        if not self._guard.stdin.closed:
            self._guard.stdin.close()
        self._guard.wait(180)

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _init(self) -> None:
        init = self.folder / "init.sql"
        init.write_text(
            f"CREATE USER IF NOT EXISTS '{_USER}'@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO '{_USER}'@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        done = subprocess.run(
            [
                self._install, "--no-defaults", f"--datadir={self.data}", "--skip-test-db",
                "--auth-root-authentication-method=normal",
            ],
            capture_output=True, cwd=self.folder, env=self._environment,
            user=self._user, group=self._user, extra_groups=self._groups(),
        )  # fmt: skip
        if done.returncode != 0:
            self.close()
            raise RuntimeError(f"mariadb-install-db failed: {(done.stdout + done.stderr).decode()}")

    def _groups(self) -> list[int] | None:
        return None if self._user is None else []

    def _ready(self) -> bool:
        try:
            self.connect().close()
        except pymysql.OperationalError:
            return False
        return True
