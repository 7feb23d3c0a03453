"""
Real processes for the system tests: `forebay gateway`, `consume` and `dev`, killed and restarted by pid.

A `Site` is one installation in a folder of its own: a queue file, a database URL, a
gateway's port. Nothing here sleeps for luck: `until` waits for a condition, with a
deadline, and a process that ends early fails the wait with its own last words.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
import pymysql

from tests.servers.postgres import free_port

T = TypeVar("T")

_TICKS = os.sysconf("SC_CLK_TCK")

FOREBAY = str(Path(sys.executable).with_name("forebay"))


def until(
    condition: Callable[[], T], *, within: float = 30.0, what: str = "the condition", every: float = 0.02
) -> T:
    """Return the condition's first true value; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {within:g} s; last value: {value!r}")
        time.sleep(every)


class Process:
    """One running command; what it prints goes to a file beside the site."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.command = list(command)
        self.log = log
        with log.open("ab") as file:
            self._child = subprocess.Popen(
                self.command, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no last word, no clean-up."""
        self._child.kill()
        self._child.wait(10)

    def stop(self, *, within: float = 30.0) -> int:
        """SIGTERM; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(within=within)

    def wait(self, *, within: float = 30.0) -> int:
        try:
            return self._child.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} is still running after {within:g} s:\n{self.tail()}") from None

    def until(
        self,
        condition: Callable[[], T],
        *,
        within: float = 30.0,
        what: str = "the condition",
        every: float = 0.02,
    ) -> T:
        """Wait for a condition while this process runs; its end fails the wait."""

        def alive() -> T:
            value = condition()
            if not value and not self.running:
                raise AssertionError(f"{self} ended with {self._child.returncode}:\n{self.tail()}")
            return value

        try:
            return until(alive, within=within, what=what, every=every)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self} said:\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.output.splitlines()[-lines:])

    def end(self) -> None:
        """For clean-up: gone, whatever it takes."""
        if self.running:
            self.kill()

    def __str__(self) -> str:
        return f"`{' '.join(self.command[:4])}` (pid {self.pid})"


def waited_for_a_core(pid: int) -> float:
    """
    Seconds for which a process and its descendants could have run, and others did.

    Of their first threads (/proc/PID/schedstat, the second figure, in nanoseconds). Taken off the clock it
    leaves the time that they would have taken alone.
    """
    waited = 0
    for process in [pid, *descendants(pid)]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            waited += int(Path(f"/proc/{process}/schedstat").read_text().split()[1])
    return waited / 1e9


def cpu_seconds(pid: int) -> float:
    """
    CPU time, user and system, that a process and all its descendants have used.

    Children that ended and were waited for are in their parent's figure.
    """
    total = 0.0
    for process in [pid, *descendants(pid)]:
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except FileNotFoundError:
            continue
        # The command's name is in brackets and may hold spaces; what we want is 12 fields behind it.
        fields = stat.rpartition(")")[2].split()
        total += sum(int(f) for f in fields[11:15]) / _TICKS
    return total


def descendants(pid: int) -> list[int]:
    """The processes that it has started, and those that these have."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


@dataclass
class Answer:
    """What an HTTP server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def http(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float = 15.0,
) -> Answer:
    """One request; an error status is an answer like any other."""
    request = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return Answer(response.status, dict(response.headers.items()), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers.items()), error.read())


@dataclass
class Site:
    """One installation of Forebay and the processes that a test started in it."""

    folder: Path
    database_url: str
    queues: str = "flights"
    port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    """More FOREBAY_* settings, by the name without that prefix."""
    variables: dict[str, str] = field(default_factory=dict)
    """Other variables, as they are called."""
    processes: list[Process] = field(default_factory=list)

    @property
    def queue_file(self) -> Path:
        return self.folder / "queue.db"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FOREBAY_")}
        return {
            **clean,
            "PYTHONUNBUFFERED": "1",
            "FOREBAY_QUEUE_NAMES": self.queues,
            "FOREBAY_BROKER__URL": f"sqlite:///{self.queue_file}",
            "FOREBAY_DATABASE__URL": self.database_url,
            **{f"FOREBAY_{name}": value for name, value in self.settings.items()},
            **self.variables,
        }

    def start(self, *args: str, log: str, env: Mapping[str, str] | None = None) -> Process:
        process = Process(
            [FOREBAY, *args], env={**self.env, **(env or {})}, cwd=self.folder, log=self.folder / f"{log}.log"
        )
        self.processes.append(process)
        return process

    def run(
        self,
        *args: str,
        stdin: bytes | None = None,
        timeout: float = 120.0,
        env: Mapping[str, str] | None = None,
        unset: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """One command to its end, whatever its exit code; without the settings named in `unset`."""
        environment = {**self.env, **(env or {})}
        for name in unset:
            del environment[f"FOREBAY_{name}"]
        done = subprocess.run(
            [FOREBAY, *args], env=environment, cwd=self.folder,
            input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True, timeout=timeout,
        )  # fmt: skip
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def migrate(self) -> None:
        done = self.run("migrate")
        assert done.returncode == 0, done.stderr

    def gateway(self, *args: str, port: int | None = None, **env: str) -> Process:
        """`forebay gateway`, ready."""
        port = port or self.port
        process = self.start("gateway", "--port", str(port), *args, log="gateway", env=env)
        process.until(lambda: self.ready(port), what="the gateway's /readyz")
        return process

    def dev(self, *args: str, **env: str) -> Process:
        """`forebay dev`, ready."""
        process = self.start("dev", "--port", str(self.port), *args, log="dev", env=env)
        process.until(self.ready, what="/readyz of `forebay dev`")
        return process

    def consumer(self, *args: str, **env: str) -> Process:
        """`forebay consume`; what it stores says when it is ready."""
        return self.start("consume", *args, log="consume", env=env)

    def ready(self, port: int | None = None) -> bool:
        with contextlib.suppress(OSError):
            return http("GET", f"http://127.0.0.1:{port or self.port}/readyz", timeout=2).status == 200
        return False

    def post(self, queue: str, body: bytes, *, port: int | None = None, **headers: str) -> Answer:
        """Send one message; `Idempotency_Key="a"` becomes the header of that name."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        # Who asks the gateway to wait must be ready to wait as long, and for the answer besides.
        asked = re.search(r"wait=(\d+)", named.get("Prefer", ""))
        url = f"http://127.0.0.1:{port or self.port}/v1/queues/{queue}/messages"
        timeout = 15.0 + (int(asked[1]) if asked else 0)
        return http("POST", url, body, {"Content-Type": "application/json", **named}, timeout=timeout)

    def queue(self, name: str) -> dict[str, Any]:
        """What the gateway says about a queue."""
        answer = http("GET", f"{self.url}/v1/queues/{name}")
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json
        return found

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """What a database server of this site answers."""
        if self.database_url.startswith("mysql:"):
            parts = urlsplit(self.database_url)
            with (
                pymysql.connect(
                    host=parts.hostname, port=parts.port or 3306, user=parts.username,
                    password=parts.password or "", database=parts.path[1:], autocommit=True,
                    connect_timeout=5,
                ) as mysql,
                mysql.cursor() as asked,
            ):  # fmt: skip
                asked.execute(query)
                return list(asked.fetchall())
        with psycopg.connect(self.database_url, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def stored(self) -> int:
        return int(self.sql("select count(*) from messages")[0][0])

    def close(self) -> None:
        for process in self.processes:
            process.end()
