"""
A Kafka of our own for tests: one node or a cluster (KRaft), from its published jars, on free loopback ports.

The jars are fetched once, with Maven, into a folder of the user.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiokafka.protocol.coordination import FindCoordinatorRequest_v0
from aiokafka.protocol.metadata import MetadataRequest_v5

from tests.servers.cluster import Cluster, Node, shared_cluster
from tests.servers.postgres import free_port

VERSION = "4.4.0"
LOG4J = "2.25.5"

_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"

_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>local</groupId><artifactId>kafka-jars</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{VERSION}</version></dependency>
<dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
<version>{LOG4J}</version></dependency>
</dependencies></project>
"""

_LOG4J = """\
status = error
appender.c.type = Console
appender.c.name = C
appender.c.layout.type = PatternLayout
appender.c.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = INFO
rootLogger.appenderRef.c.ref = C
"""


class KafkaNotInstalled(Exception):
    """No Java, or no Maven to fetch Kafka with."""


def find_java() -> str:
    """A Java of version 17 or later, from JAVA_HOME, PATH or where Debian keeps them."""
    home = os.environ.get("JAVA_HOME")
    candidates = [f"{home}/bin/java"] if home else []
    candidates += [found] if (found := shutil.which("java")) else []
    candidates += [str(p) for p in sorted(Path("/usr/lib/jvm").glob("*/bin/java"))]
    for java in candidates:
        if not Path(java).exists():
            continue
        done = subprocess.run([java, "-version"], capture_output=True, text=True)
        version = re.search(r' version "(\d+)', done.stderr)
        if version and int(version[1]) >= 17:
            return java
    raise KafkaNotInstalled("no Java 17 found; on Debian: apt-get install openjdk-17-jre-headless")


def find_jars() -> Path:
    """The folder with Kafka's jars; fetched when it is not there, by one process at a time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forebay"
    jars = cache / f"kafka-{VERSION}"
    if jars.exists():
        return jars
    if shutil.which("mvn") is None:
        raise KafkaNotInstalled("no Maven to fetch Kafka with; on Debian: apt-get install maven")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if jars.exists():
            return jars
        folder = Path(tempfile.mkdtemp(prefix="kafka-fetch-", dir=cache))
        try:
            (folder / "pom.xml").write_text(_POM)
            done = subprocess.run(
                [
                    "mvn", "-q", "-B", f"{_COPY}:copy-dependencies",
                    f"-DoutputDirectory={folder}/jars", "-DincludeScope=runtime",
                ],
                cwd=folder, capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            if done.returncode != 0:
                raise KafkaNotInstalled(f"Maven could not fetch Kafka {VERSION}: {done.stdout[-500:]}")
            # A folder is complete when it has its name.
            (folder / "jars").rename(jars)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return jars


class KafkaNode(Node):
    """Broker and controller."""

    _site: KafkaCluster

    def __init__(self, cluster: KafkaCluster, number: int, ports: Mapping[str, int]) -> None:
        super().__init__(cluster, f"node-{number}")
        self.number = number
        self.ports = ports
        """By the listener's name; `CONTROLLER` is among them."""

    @property
    def port(self) -> int:
        """Of the first listener."""
        return self.ports[self._site.listeners[0]]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        options = ("-Xmx384m", "-Xms96m") if len(self._site.nodes) == 1 else ("-Xmx320m", "-Xms96m")
        return self._site.java(*options, "kafka.Kafka", str(self.folder / "server.properties"))

    def ready(self) -> bool:
        """It answers, and the cluster counts on it."""
        try:
            answer = self.ask(MetadataRequest_v5([], False))
        except OSError:
            return False
        return self.number in [broker[0] for broker in answer.brokers]

    def ask(self, request: Any) -> Any:
        """
        The answer to one request of `aiokafka.protocol`, in its older form without tags.

        Raises:
            OSError: it does not run, or does not answer within some seconds.
        """
        message = request.build_request_header(0, "tests").encode() + request.encode()
        with socket.create_connection(("127.0.0.1", self.port), 2) as s, s.makefile("rb") as answers:
            s.settimeout(3)
            s.sendall(struct.pack(">i", len(message)) + message)
            size = answers.read(4)
            if len(size) < 4:
                raise ConnectionError("no answer")
            answer = answers.read(struct.unpack(">i", size)[0])
        return request.RESPONSE_TYPE.decode(answer[4:])


class KafkaCluster(Cluster[KafkaNode]):
    """
    Nodes of one cluster, each both broker and controller; three copies of everything, two in sync, on three.

    `settings` are added to each server's configuration. `listeners` are named as their
    security protocols; the first is for the nodes among themselves, and for `url`. `scram`
    are users to begin with, in the words of Kafka's tool: "SCRAM-SHA-512=[name=u,password=p]".
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        settings: Mapping[str, str] | None = None,
        listeners: Sequence[str] = ("PLAINTEXT",),
        scram: Sequence[str] = (),
        owner: int | None = None,
    ) -> None:
        find_java(), find_jars()
        names = (*listeners, "CONTROLLER")
        ports = [{name: free_port() for name in names} for _ in range(nodes)]
        super().__init__("kafka", {"listeners": list(listeners), "nodes": ports}, owner)
        (self.folder / "log4j2.properties").write_text(_LOG4J)
        try:
            self._format(settings or {}, scram)
        except BaseException:
            self.close()
            raise

    def make_nodes(self, description: Mapping[str, Any]) -> list[KafkaNode]:
        self._java, self._jars = find_java(), find_jars()
        self.listeners: list[str] = description["listeners"]
        return [KafkaNode(self, number, ports) for number, ports in enumerate(description["nodes"], 1)]

    @property
    def url(self) -> str:
        return f"kafka://{','.join(node.address for node in self.nodes)}"

    def whole(self) -> str:
        """Every partition has all of its copies in sync, as each node knows it."""
        return "; ".join([text for node in self.nodes for text in self._behind(node)][:5])

    def _behind(self, node: KafkaNode) -> list[str]:
        try:
            answer = node.ask(MetadataRequest_v5(None, False))
        except OSError as error:
            return [f"node {node.number}: {error}"]
        unknown = [] if len(answer.brokers) == len(self.nodes) else [f"node {node.number} misses others"]
        return unknown + [
            f"{topic} {partition}: {isr} of {replicas}"
            for _, topic, _, partitions in answer.topics
            for _, partition, leader, replicas, isr, _ in partitions
            if leader < 0 or len(isr) < len(replicas)
        ]

    def leader_of(self, topic: str, partition: int, *, within: float = 20.0) -> KafkaNode:
        """The node that leads a partition, and runs."""
        deadline = time.monotonic() + within
        while True:
            # After a kill it is the old one, or none, until the controller has chosen.
            for node in self._answering():
                found = {
                    (name, number): leader
                    for _, name, _, partitions in node.ask(MetadataRequest_v5(None, False)).topics
                    for _, number, leader, _, _, _ in partitions
                }
                leader = self._node(found.get((topic, partition), -1))
                if leader is not None:
                    return leader
            assert time.monotonic() < deadline, f"{topic} {partition} has no leader"
            time.sleep(0.05)

    def coordinator_of(self, group: str, *, within: float = 20.0) -> KafkaNode:
        """The node that keeps the offsets of a group and deals its partitions."""
        deadline = time.monotonic() + within
        while True:
            for node in self._answering():
                found = self._node(node.ask(FindCoordinatorRequest_v0(group)).coordinator_id)
                if found is not None:
                    return found
            assert time.monotonic() < deadline, f"group {group} has no coordinator"
            time.sleep(0.05)

    def controller(self) -> KafkaNode:
        """The node that decides who leads what: not the one that a client is told."""
        states = [
            json.loads((node.folder / "data/__cluster_metadata-0/quorum-state").read_text())
            for node in self.nodes
        ]
        found = self._node(max(states, key=lambda state: int(state["leaderEpoch"]))["leaderId"])
        assert found is not None, "no controller"
        return found

    def _answering(self) -> Iterator[KafkaNode]:
        for node in self.nodes:
            if node.running and node.ready():
                yield node

    def _node(self, number: int) -> KafkaNode | None:
        return next((node for node in self.nodes if node.number == number and node.running), None)

    def java(self, *arguments: str) -> list[str]:
        """A command that runs a class of Kafka's jars; options of Java first."""
        return [
            self._java, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true",
            "-Djava.net.preferIPv4Stack=true", f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties",
            "-cp", f"{self._jars}/*", *arguments,
        ]  # fmt: skip

    def _configured(self, node: KafkaNode) -> dict[str, str]:
        copies, in_sync = ("3", "2") if len(self.nodes) >= 3 else ("1", "1")
        inner = self.listeners[0]
        offered = ",".join(f"{name}://127.0.0.1:{node.ports[name]}" for name in self.listeners)
        protocols = ",".join(f"{name}:{name}" for name in self.listeners)
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "controller.quorum.voters": ",".join(
                f"{n.number}@127.0.0.1:{n.ports['CONTROLLER']}" for n in self.nodes
            ),
            "listeners": f"{offered},CONTROLLER://127.0.0.1:{node.ports['CONTROLLER']}",
            "advertised.listeners": offered,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": inner,
            "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{protocols}",
            "log.dirs": str(node.folder / "data"),
            # Its own 128 MiB would be half of the heap; a thousand partitions need the rest.
            "log.cleaner.dedupe.buffer.size": "4194304",
            "num.recovery.threads.per.data.dir": "2",
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": "0",
            # A lost node is noticed within this; the default of 9 s is a gap of 9 s for publishers.
            "broker.session.timeout.ms": "2500",
            "broker.heartbeat.interval.ms": "500",
            # A new controller gives every node a new session: the gap is the sum.
            "controller.quorum.fetch.timeout.ms": "1000",
            "controller.quorum.election.timeout.ms": "500",
            "controller.quorum.election.backoff.max.ms": "250",
            "replica.lag.time.max.ms": "10000",
        }

    def _format(self, settings: Mapping[str, str], scram: Sequence[str]) -> None:
        cluster = base64.urlsafe_b64encode(b"\x01" + secrets.token_bytes(15)).decode().rstrip("=")
        running: list[subprocess.Popen[str]] = []
        for node in self.nodes:
            properties = node.folder / "server.properties"
            configured = {**self._configured(node), **settings}
            properties.write_text("".join(f"{name}={value}\n" for name, value in configured.items()))
            tool = self.java("-Xmx128m", "kafka.tools.StorageTool", "format", "-t", cluster)
            command = [*tool, "-c", str(properties), *(w for user in scram for w in ("--add-scram", user))]
            running.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True,
                )
            )  # fmt: skip
        for process in running:
            output, _ = process.communicate(timeout=120)
            if process.returncode != 0:
                raise RuntimeError(f"formatting Kafka's folder failed: {output}")


class Kafka(KafkaCluster):
    """One node, and what it is asked for most."""

    def __init__(
        self, *, settings: Mapping[str, str] | None = None, listeners: Sequence[str] = ("PLAINTEXT",)
    ) -> None:
        super().__init__(1, settings=settings, listeners=listeners)

    @property
    def port(self) -> int:
        return self.nodes[0].port

    @property
    def running(self) -> bool:
        return self.nodes[0].running

    def kill(self) -> None:
        self.nodes[0].kill()

    def pause(self) -> None:
        self.nodes[0].pause()

    def resume(self) -> None:
        self.nodes[0].resume()


def shared(folder: Path, owner: int, nodes: int) -> KafkaCluster:
    """The one cluster of that size that all test workers with this `folder` share; it dies with `owner`."""
    return shared_cluster(
        f"kafka-{nodes}", folder, lambda: KafkaCluster(nodes, owner=owner), KafkaCluster.attach
    )
