"""
A RabbitMQ of our own for tests: one node with fresh data in a temporary folder, on free loopback ports.

The server dies with its owner, however that ends: a guard process watches the owner
and kills what was started. The owner is the process that started the server, or, where
several test workers share one (`shared`), the process that started the workers.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.postgres import free_port

_USER = "forebay"

_ERLANG = "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"

_GUARD = """
import os, select, shutil, signal, sys
folder, owner = sys.argv[1], int(sys.argv[2])
try:
    select.select([os.pidfd_open(owner)], [], [])
except ProcessLookupError:
    pass
try:
    groups = [int(line) for line in open(folder + "/groups")]
except FileNotFoundError:
    groups = []
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
shutil.rmtree(folder, ignore_errors=True)
"""

_CONFIG = """\
listeners.tcp.default = 127.0.0.1:{port}
default_user = {user}
default_pass = {password}
loopback_users = none
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 600MB
raft.wal_max_size_bytes = 16777216
log.console = true
log.console.level = warning
log.file = false
"""


class RabbitMQNotInstalled(Exception):
    """No RabbitMQ server on this machine."""


def find_scripts() -> Path:
    """
    The folder with the server's own `rabbitmq-server` and `rabbitmqctl`.

    Not the ones on PATH: on Debian those change to the packaged service's user.
    """
    scripts = Path("/usr/lib/rabbitmq/bin")
    if (scripts / "rabbitmq-server").exists() and shutil.which("epmd"):
        return scripts
    raise RabbitMQNotInstalled("no RabbitMQ server found; on Debian: apt-get install rabbitmq-server")


class RabbitMQ:
    """One node. `start` after `kill` continues with the same data on the same port."""

    def __init__(self, *, owner: int | None = None) -> None:
        self._scripts = find_scripts()
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-rabbitmq-"))
        self.log = self.folder / "server.log"
        self.password = secrets.token_hex(8)
        self.port, self._distribution, self._epmd = free_port(), free_port(), free_port()
        self.node = f"forebay-{self.port}@localhost"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._server: subprocess.Popen[bytes] | None = None
        (self.folder / "rabbitmq.conf").write_text(
            _CONFIG.format(port=self.port, user=_USER, password=self.password)
        )
        (self.folder / "plugins").write_text("[].\n")
        self._guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(self.folder), str(owner or os.getpid())],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        # The port mapper of Erlang: one of our own, or the first node would leave a daemon behind.
        self._spawn(["epmd", "-port", str(self._epmd), "-address", "127.0.0.1"])

    @property
    def url(self) -> str:
        return f"amqp://{_USER}:{self.password}@127.0.0.1:{self.port}/"

    def start(self, *, timeout: float = 60.0) -> Self:
        """Start the node and return when it takes connections."""
        self._server = self._spawn([str(self._scripts / "rabbitmq-server")])
        deadline = time.monotonic() + timeout
        while not self._ready():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        """As if the process had crashed."""
        assert self._server is not None, "not started"
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait(10)
        deadline = time.monotonic() + 10
        while self._ready():
            assert time.monotonic() < deadline, "killed, and still answering"
            time.sleep(0.05)

    def pause(self) -> None:
        """It takes connections and answers nothing."""
        assert self._server is not None, "not started"
        os.killpg(self._server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._server is not None, "not started"
        os.killpg(self._server.pid, signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` says. It takes a second or two."""
        command = [str(self._scripts / "rabbitmqctl"), "-q", *arguments]
        done = subprocess.run(command, env=self._environment(), capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
        return done.stdout.decode()

    def close(self) -> None:
        """Kill the node and remove its folder."""
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(10)
        self._guard.kill()
        self._guard.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, env=self._environment(), cwd=self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._processes.append(process)
        (self.folder / "groups").write_text("".join(f"{p.pid}\n" for p in self._processes))
        return process

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "PATH": os.environ["PATH"],
            "HOME": folder,  # of the cookie
            "ERL_CRASH_DUMP_SECONDS": "0",
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": folder + "/none",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONFIG_FILE": folder + "/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder + "/plugins",
            "RABBITMQ_MNESIA_BASE": folder + "/data",
            "RABBITMQ_LOG_BASE": folder + "/log",
            "RABBITMQ_PID_FILE": folder + "/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
        }

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2) as s:
                s.settimeout(5)
                s.sendall(b"AMQP\x00\x00\x09\x01")
                return s.recv(1) == b"\x01"  # the first method frame
        except OSError:
            return False


_kept: list[RabbitMQ] = []
"""Shared servers outlive the test worker that started them; only their guard ends them."""


def shared(folder: Path, owner: int) -> str:
    """
    The URL of the one server that all test workers with this `folder` share; the first to ask starts it.

    It dies with the process `owner`.
    """
    with (folder / "rabbitmq.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = folder / "rabbitmq.json"
        if not found.exists():
            server = RabbitMQ(owner=owner)
            try:
                server.start()
            except BaseException:
                server.close()
                raise
            _kept.append(server)
            found.write_text(json.dumps(server.url))
        url: str = json.loads(found.read_text())
        return url
