"""
RabbitMQs of our own for tests: one node or a cluster, in a temporary folder, on free loopback ports.

The nodes die with their owner, however that ends: a guard process watches the owner
and kills what was started. The owner is the process that started them, or, where
several test workers share them (`shared`), the process that started the workers.
"""

from __future__ import annotations

import base64
import contextlib
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
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

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

_SETTINGS = {
    "loopback_users": "none",
    "disk_free_limit.absolute": "50MB",
    "vm_memory_high_watermark.absolute": "600MB",
    "raft.wal_max_size_bytes": "16777216",
    "log.console": "true",
    "log.console.level": "warning",
    "log.file": "false",
    "management.tcp.ip": "127.0.0.1",
}


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


class RabbitMQNode:
    """
    One node. `start` after `kill` continues with the same data on the same port.

    What is known of a node is in its folder, so that each process that shares it can kill and start it.
    """

    def __init__(self, site: RabbitMQCluster, folder: Path, ports: Mapping[str, int]) -> None:
        self._site = site
        self._scripts = find_scripts()
        self.folder = folder
        self.log = folder / "server.log"
        self.port, self.management_port = ports["amqp"], ports["management"]
        self._distribution = ports["distribution"]
        self.name = f"forebay-{self.port}@localhost"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def running(self) -> bool:
        """Started, and not killed since; a paused node is running."""
        return self._alive(self._pid())

    def start(self, *, timeout: float = 120.0) -> Self:
        """Start the node and return when it takes connections."""
        self.launch()
        self.await_ready(timeout)
        return self

    def launch(self) -> None:
        """Start it and wait for nothing."""
        assert not self.running, f"{self.name} is running"
        pid = self._site.spawn([str(self._scripts / "rabbitmq-server")], self.log, self.environment())
        (self.folder / "pid").write_text(str(pid))

    def await_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.ready():
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """As if the process had crashed."""
        pid = self._pid()
        assert self._alive(pid), f"{self.name} is not running"
        _kill(pid)
        deadline = time.monotonic() + 10
        while self._alive(pid) or self.ready():
            assert time.monotonic() < deadline, "killed, and still there"
            time.sleep(0.02)

    def pause(self) -> None:
        """Its connections stay, and nothing answers."""
        os.killpg(self._pid(), signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._pid(), signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` says. It takes a second or two."""
        command = [str(self._scripts / "rabbitmqctl"), "-q", *arguments]
        done = subprocess.run(command, env=self.environment(), capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
        return done.stdout.decode()

    def ask(self, path: str) -> Any:
        """What the management API answers below `/api/`; needs its plugin."""
        login = base64.b64encode(f"{_USER}:{self._site.password}".encode()).decode()
        request = urllib.request.Request(
            f"{self.management_url}/api/{path}", headers={"Authorization": f"Basic {login}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2) as s:
                s.settimeout(5)
                s.sendall(b"AMQP\x00\x00\x09\x01")
                return s.recv(1) == b"\x01"  # the first method frame
        except OSError:
            return False

    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return self._site.environment() | {
            "RABBITMQ_CONF_ENV_FILE": folder + "/none",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONFIG_FILE": folder + "/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder + "/plugins",
            "RABBITMQ_MNESIA_BASE": folder + "/data",
            "RABBITMQ_LOG_BASE": folder + "/log",
            "RABBITMQ_PID_FILE": folder + "/server.pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
        }

    def _pid(self) -> int:
        try:
            return int((self.folder / "pid").read_text())
        except FileNotFoundError:
            return 0

    @staticmethod
    def _alive(pid: int) -> bool:
        # Killed by a process that is not its parent, it stays as a zombie until that one looks.
        try:
            return pid > 0 and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False


class RabbitMQCluster:
    """
    Nodes that form one cluster, with pause_minority; on one machine, with one port mapper of their own.

    `settings` are lines of rabbitmq.conf. Every node has the management plugin.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        settings: Mapping[str, str] | None = None,
        owner: int | None = None,
    ) -> None:
        find_scripts()
        folder = Path(tempfile.mkdtemp(prefix="forebay-rabbitmq-"))
        kinds = ("amqp", "distribution", "management")
        self._join(
            folder,
            {
                "password": secrets.token_hex(8),
                "epmd": free_port(),
                "nodes": [{kind: free_port() for kind in kinds} for _ in range(nodes)],
            },
        )
        (folder / ".erlang.cookie").write_text(secrets.token_hex(16))
        (folder / ".erlang.cookie").chmod(0o400)
        for node in self.nodes:
            node.folder.mkdir()
            (node.folder / "plugins").write_text("[rabbitmq_management].\n")
            lines = {**_SETTINGS, **self._formation(), **(settings or {})}
            lines |= {
                "listeners.tcp.default": node.address,
                "management.tcp.port": str(node.management_port),
                "default_user": _USER,
                "default_pass": self.password,
            }
            (node.folder / "rabbitmq.conf").write_text("".join(f"{n} = {v}\n" for n, v in lines.items()))
        self._guard: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(folder), str(owner or os.getpid())],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        # The port mapper of Erlang: one of our own, or the first node would leave a daemon behind.
        command = ["epmd", "-port", str(self._epmd), "-address", "127.0.0.1"]
        self.spawn(command, folder / "epmd.log", self.environment())

    @classmethod
    def attach(cls, description: Mapping[str, Any]) -> Self:
        """The cluster of another process, from its `describe`."""
        self = cls.__new__(cls)
        self._guard = None
        self._join(Path(description["folder"]), description)
        return self

    def describe(self) -> dict[str, Any]:
        """What `attach` needs, in JSON's types."""
        return {"folder": str(self.folder), **self._description}

    def _join(self, folder: Path, description: Mapping[str, Any]) -> None:
        self.folder = folder
        self._description = description
        self.user = _USER
        self.password: str = description["password"]
        self._epmd: int = description["epmd"]
        self.nodes = [
            RabbitMQNode(self, folder / f"node{number}", ports)
            for number, ports in enumerate(description["nodes"], 1)
        ]

    def _formation(self) -> dict[str, str]:
        if len(self.nodes) == 1:
            return {}
        return {
            "cluster_partition_handling": "pause_minority",
            "cluster_formation.peer_discovery_backend": "classic_config",
            **{
                f"cluster_formation.classic_config.nodes.{number}": node.name
                for number, node in enumerate(self.nodes, 1)
            },
        }

    @property
    def url(self) -> str:
        return self.url_of(*self.nodes)

    @property
    def management_url(self) -> str:
        """Without a login: it is that of `url`."""
        return "http://" + ",".join(f"127.0.0.1:{node.management_port}" for node in self.nodes)

    def url_of(self, *nodes: RabbitMQNode) -> str:
        return f"amqp://{self.user}:{self.password}@{','.join(n.address for n in nodes)}/"

    def start(self, *, timeout: float = 120.0) -> Self:
        """Start what does not run, and return when all take connections and are one cluster."""
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            if not node.running:
                node.launch()
        for node in self.nodes:
            node.await_ready(deadline - time.monotonic())
        while len(self.nodes) > 1 and not all(self._knows_all(node) for node in self.nodes):
            assert time.monotonic() < deadline, f"the nodes are not one cluster: {self.ctl('cluster_status')}"
            time.sleep(0.1)
        return self

    def _knows_all(self, node: RabbitMQNode) -> bool:
        try:
            running = node.ask("nodes?columns=name,running")
        except OSError:
            return False  # its AMQP listener comes first
        return len([n for n in running if n["running"]]) == len(self.nodes)

    def leader_of(self, queue: str) -> RabbitMQNode:
        """Where the leader of a quorum queue is, by the queue's name on the server."""
        path = f"queues/{quote('/', '')}/{quote(queue, '')}"
        deadline = time.monotonic() + 20
        while True:
            # After a kill it is the old one, or none, until the members have chosen.
            for asked in self.nodes:
                if asked.running:
                    leader = asked.ask(path).get("leader")
                    for node in self.nodes:
                        if node.name == leader and node.running:
                            return node
                    break
            assert time.monotonic() < deadline, f"no leader of {queue}"
            time.sleep(0.1)

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` says on the first node that runs."""
        return next(node for node in self.nodes if node.running).ctl(*arguments)

    def close(self) -> None:
        """Kill the nodes and remove their folder."""
        for line in (self.folder / "groups").read_text().splitlines():
            _kill(int(line))
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def spawn(self, command: list[str], log: Path, environment: Mapping[str, str]) -> int:
        """Start a process in a group of its own, which ends with the owner; its pid."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, env=environment, cwd=self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        _children[process.pid] = process
        with (self.folder / "groups").open("a") as groups:
            groups.write(f"{process.pid}\n")
        return process.pid

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),  # of the cookie
            "ERL_CRASH_DUMP_SECONDS": "0",
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    @contextlib.contextmanager
    def shared_with_others(self) -> Iterator[None]:
        """While in this context, no other test worker has it `alone`."""
        yield from self._locked(fcntl.LOCK_SH)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While in this context, all nodes are ours to kill; afterwards they run again."""
        with contextlib.contextmanager(self._locked)(fcntl.LOCK_EX):
            try:
                yield
            finally:
                for node in self.nodes:
                    if node.running:
                        node.resume()
                self.start()

    def _locked(self, how: int) -> Iterator[None]:
        with (self.folder / "use.lock").open("w") as lock:
            fcntl.flock(lock, how)
            yield


class RabbitMQ(RabbitMQCluster):
    """One node, and what it is asked for most."""

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(1, settings=settings)

    @property
    def port(self) -> int:
        return self.nodes[0].port

    def kill(self) -> None:
        self.nodes[0].kill()


_children: dict[int, subprocess.Popen[bytes]] = {}
"""What this process started and has not seen the end of. Shared nodes outlive it: their guard ends them."""


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if group in _children:
        _children.pop(group).wait(10)


def shared(folder: Path, owner: int, nodes: int) -> RabbitMQCluster:
    """
    The one cluster of that size that all test workers with this `folder` share; the first to ask starts it.

    It dies with the process `owner`.
    """
    with (folder / f"rabbitmq-{nodes}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = folder / f"rabbitmq-{nodes}.json"
        if not found.exists():
            cluster = RabbitMQCluster(nodes, owner=owner)
            try:
                cluster.start()
            except BaseException:
                cluster.close()
                raise
            _kept.append(cluster)
            found.write_text(json.dumps(cluster.describe()))
            return cluster
        return RabbitMQCluster.attach(json.loads(found.read_text()))


_kept: list[RabbitMQCluster] = []
"""Their guards are not waited for."""
