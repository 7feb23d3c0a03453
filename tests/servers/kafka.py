"""
A Kafka of our own for tests: one node (KRaft), from its published jars, on free loopback ports.

The jars are fetched once, with Maven, into a folder of the user. The server dies with
the process that started it, however that ends: a guard process holds the other end of
a pipe and kills the server when the pipe closes.
"""

from __future__ import annotations

import base64
import fcntl
import os
import re
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
from typing import Self

from tests.servers.postgres import free_port

VERSION = "4.4.0"
LOG4J = "2.25.5"

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


def _state(thread: Path) -> str:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


class Kafka:
    """
    One node, broker and controller. `start` after `kill` continues with the same data on the same port.

    `settings` are added to the server's configuration.
    """

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        self._java, self._jars = find_java(), find_jars()
        self.folder = Path(tempfile.mkdtemp(prefix="forebay-kafka-"))
        self.log = self.folder / "server.log"
        self.port, self._controller_port = free_port(), free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._format(settings or {})

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def start(self, *, timeout: float = 60.0) -> Self:
        """Start the server and return when it takes connections."""
        assert not self.running, "already started"
        begun = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                [*self._command("-Xmx320m", "-Xms128m"), "kafka.Kafka", self.folder / "server.properties"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        assert self._guard.stdin is not None
        self._guard.stdin.write(b"%d\n" % self._server.pid)
        self._guard.stdin.flush()
        deadline = time.monotonic() + timeout
        while not self._ready(begun):
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"Kafka did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        """SIGKILL: nothing is written in order."""
        if self._server is not None:
            self._server.kill()
            self._server.wait(30)
            self._server = None

    def pause(self) -> None:
        """It takes connections and answers nothing."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        # One thread after the other stops; until the last one has, requests may be answered.
        threads = Path(f"/proc/{self._server.pid}/task")
        while any(_state(thread) not in "TtXZ" for thread in threads.iterdir()):
            time.sleep(0.005)

    def resume(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.kill()
        assert self._guard.stdin is not None
        if not self._guard.stdin.closed:
            self._guard.stdin.close()
        self._guard.wait(30)

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _command(self, *options: str) -> list[str]:
        return [
            self._java, *options, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true",
            "-Djava.net.preferIPv4Stack=true", f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties",
            "-cp", f"{self._jars}/*",
        ]  # fmt: skip

    def _format(self, settings: Mapping[str, str]) -> None:
        configured = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            **settings,
        }
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in configured.items()))
        (self.folder / "log4j2.properties").write_text(_LOG4J)
        cluster = base64.urlsafe_b64encode(b"\x01" + secrets.token_bytes(15)).decode().rstrip("=")
        tool = [*self._command("-Xmx128m"), "kafka.tools.StorageTool", "format"]
        done = subprocess.run([*tool, "-t", cluster, "-c", properties], capture_output=True, text=True)
        if done.returncode != 0:
            self.close()
            raise RuntimeError(f"formatting Kafka's folder failed: {done.stdout}{done.stderr}")

    def _ready(self, begun: int) -> bool:
        with self.log.open("rb") as log:
            log.seek(begun)
            if b"Kafka Server started" not in log.read():
                return False
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0
