"""RabbitMQs of our own for tests: one node or a cluster, in a temporary folder, on free loopback ports."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.servers.cluster import Cluster, Node, shared_cluster
from tests.servers.postgres import free_port

_USER = "forebay"

_ERLANG = "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"

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


_STILLBORN = b"{incompatible_feature_flags,"
"""
In the log of a node that came out of its pause while another one was starting, and asked that one too early.

It stays without a listener until it is started again (seen with 3.10.8).
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


class RabbitMQNode(Node):
    """One node."""

    poll = 0.1
    _site: RabbitMQCluster

    def __init__(self, site: RabbitMQCluster, number: int, ports: Mapping[str, int]) -> None:
        super().__init__(site, f"node{number}")
        self._scripts = find_scripts()
        self.port, self.management_port = ports["amqp"], ports["management"]
        self._distribution = ports["distribution"]
        self.server_name = f"forebay-{self.port}@localhost"
        """What the servers call it."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    def command(self) -> list[str]:
        return [str(self._scripts / "rabbitmq-server")]

    def launch(self) -> None:
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".before"))
        super().launch()

    def stuck(self) -> bool:
        return _STILLBORN in self.log.read_bytes()

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
            "RABBITMQ_NODENAME": self.server_name,
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONFIG_FILE": folder + "/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": folder + "/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder + "/plugins",
            "RABBITMQ_MNESIA_BASE": folder + "/data",
            "RABBITMQ_LOG_BASE": folder + "/log",
            "RABBITMQ_PID_FILE": folder + "/server.pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
        }


class RabbitMQCluster(Cluster[RabbitMQNode]):
    """
    Nodes that form one cluster, with pause_minority; on one machine, with one port mapper of their own.

    `settings` are lines of rabbitmq.conf, `advanced` is a term of advanced.config. Every node
    has the management plugin.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        settings: Mapping[str, str] | None = None,
        advanced: str = "[]",
        owner: int | None = None,
    ) -> None:
        find_scripts()
        kinds = ("amqp", "distribution", "management")
        description = {
            "password": secrets.token_hex(8),
            "epmd": free_port(),
            "nodes": [{kind: free_port() for kind in kinds} for _ in range(nodes)],
        }
        super().__init__("rabbitmq", description, owner)
        folder = self.folder
        (folder / ".erlang.cookie").write_text(secrets.token_hex(16))
        (folder / ".erlang.cookie").chmod(0o400)
        for node in self.nodes:
            (node.folder / "plugins").write_text("[rabbitmq_management].\n")
            lines = {**_SETTINGS, **self._formation(), **(settings or {})}
            lines |= {
                "listeners.tcp.default": node.address,
                "management.tcp.port": str(node.management_port),
                "default_user": _USER,
                "default_pass": self.password,
            }
            (node.folder / "advanced.config").write_text(f"{advanced}.\n")
            (node.folder / "rabbitmq.conf").write_text("".join(f"{n} = {v}\n" for n, v in lines.items()))
        # The port mapper of Erlang: one of our own, or the first node would leave a daemon behind.
        command = ["epmd", "-port", str(self._epmd), "-address", "127.0.0.1"]
        self.spawn(command, folder / "epmd.log", self.environment())

    def make_nodes(self, description: Mapping[str, Any]) -> list[RabbitMQNode]:
        self.user = _USER
        self.password: str = description["password"]
        self._epmd: int = description["epmd"]
        return [RabbitMQNode(self, number, ports) for number, ports in enumerate(description["nodes"], 1)]

    def _formation(self) -> dict[str, str]:
        if len(self.nodes) == 1:
            return {}
        return {
            "cluster_partition_handling": "pause_minority",
            "cluster_formation.peer_discovery_backend": "classic_config",
            **{
                f"cluster_formation.classic_config.nodes.{number}": node.server_name
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

    def whole(self) -> str:
        if len(self.nodes) == 1 or all(self._knows_all(node) for node in self.nodes):
            return ""
        return "the nodes are not one cluster"

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
                try:
                    leader = asked.ask(path).get("leader")
                except OSError:
                    continue
                for node in self.nodes:
                    if node.server_name == leader and node.running:
                        return node
            assert time.monotonic() < deadline, f"no leader of {queue}"
            time.sleep(0.1)

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` says on the first node that runs."""
        return next(node for node in self.nodes if node.running).ctl(*arguments)

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),  # of the cookie
            "ERL_CRASH_DUMP_SECONDS": "0",
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }


class RabbitMQ(RabbitMQCluster):
    """One node, and what it is asked for most."""

    def __init__(self, *, settings: Mapping[str, str] | None = None, advanced: str = "[]") -> None:
        super().__init__(1, settings=settings, advanced=advanced)

    @property
    def port(self) -> int:
        return self.nodes[0].port

    def kill(self) -> None:
        self.nodes[0].kill()


def shared(folder: Path, owner: int, nodes: int) -> RabbitMQCluster:
    """The one cluster of that size that all test workers with this `folder` share; it dies with `owner`."""
    return shared_cluster(
        f"rabbitmq-{nodes}", folder, lambda: RabbitMQCluster(nodes, owner=owner), RabbitMQCluster.attach
    )
