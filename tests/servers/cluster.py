"""
What clusters of our own for tests have in common: their processes, their end, and sharing them.

The nodes die with their owner, however that ends: a guard process watches the owner
and kills what was started. The owner is the process that made the cluster, or, where
several test workers share one (`shared`), the process that started the workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

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

_children: dict[int, subprocess.Popen[bytes]] = {}
"""What this process started and has not seen the end of. Shared nodes outlive it: their guard ends them."""

_kept: list[object] = []
"""Shared clusters that this process started: nobody waits for their guards."""


class Node(ABC):
    """
    One server. `start` after `kill` continues with the same data on the same ports.

    What is known of a node is in its folder, so that each process that shares it can kill and start it.
    """

    poll = 0.05
    """Seconds between two looks whether it is ready."""

    def __init__(self, cluster: Cluster[Any], name: str) -> None:
        self._site = cluster
        self.name = name
        self.folder = cluster.folder / name
        self.log = self.folder / "server.log"

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it."""

    @abstractmethod
    def ready(self) -> bool:
        """It answers, and takes part."""

    def stuck(self) -> bool:
        """It will never be ready unless it is started again."""
        return False

    def environment(self) -> Mapping[str, str] | None:
        """Of its process; None: ours."""
        return None

    @property
    def running(self) -> bool:
        """Started, and not killed since; a paused node is running."""
        pid = self._pid()
        # Killed by a process that is not its parent, it stays as a zombie until that one looks.
        return pid > 0 and _state(Path(f"/proc/{pid}")) not in "XZ"

    def start(self, *, timeout: float = 120.0) -> Self:
        """Start the node and return when it takes part: enough of the others must run for that."""
        self.launch()
        self.await_ready(timeout)
        return self

    def launch(self) -> None:
        """Start it and wait for nothing."""
        assert not self.running, f"{self.name} is running"
        pid = self._site.spawn(self.command(), self.log, self.environment())
        (self.folder / "pid").write_text(str(pid))

    def await_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.ready():
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-3000:]}")
            # The others may be waiting for the one that is stuck.
            for node in self._site.nodes:
                if node.running and node.stuck():
                    node.kill()
                    node.launch()
            time.sleep(self.poll)

    def kill(self) -> None:
        """SIGKILL: nothing is written in order."""
        assert self.running, f"{self.name} is not running"
        _kill(self._pid())
        deadline = time.monotonic() + 10
        while self.running or self.ready():
            assert time.monotonic() < deadline, "killed, and still there"
            time.sleep(0.01)

    def pause(self) -> None:
        """SIGSTOP: its connections stay, and nothing answers."""
        group = self._pid()
        os.killpg(group, signal.SIGSTOP)
        # One thread after the other stops; until the last one has, requests may be answered.
        while not _stands_still(group):
            time.sleep(0.005)

    def resume(self) -> None:
        os.killpg(self._pid(), signal.SIGCONT)

    def _pid(self) -> int:
        """Of the first process, whose number its group has too."""
        try:
            return int((self.folder / "pid").read_text())
        except FileNotFoundError:
            return 0


N = TypeVar("N", bound=Node)


class Cluster(ABC, Generic[N]):
    """Servers that belong together, in a temporary folder."""

    nodes: list[N]

    def __init__(self, kind: str, description: Mapping[str, Any], owner: int | None) -> None:
        self._join(Path(tempfile.mkdtemp(prefix=f"forebay-{kind}-")), description)
        self._guard: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(self.folder), str(owner or os.getpid())],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for node in self.nodes:
            node.folder.mkdir()

    @abstractmethod
    def make_nodes(self, description: Mapping[str, Any]) -> list[N]:
        """From what is known of the cluster, in JSON's types."""

    @abstractmethod
    def whole(self) -> str:
        """Empty when all nodes have found each other and nothing is behind; else what is missing."""

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
        self.nodes = self.make_nodes(description)

    def start(self, *, timeout: float = 120.0) -> Self:
        """Start what does not run, and return when every node takes part and nothing is behind."""
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            if not node.running:
                node.launch()
        for node in self.nodes:
            node.await_ready(deadline - time.monotonic())
        self.wait_in_sync(deadline - time.monotonic())
        return self

    def wait_in_sync(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while missing := self.whole():
            assert time.monotonic() < deadline, f"not in sync: {missing}"
            time.sleep(0.1)

    def spawn(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None) -> int:
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

    def close(self) -> None:
        """Kill what was started, and remove the folder."""
        groups = self.folder / "groups"
        for line in groups.read_text().splitlines() if groups.exists() else ():
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

    @contextlib.contextmanager
    def shared_with_others(self) -> Iterator[None]:
        """While in this context, no other test worker has it `alone`."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While in this context, all nodes are ours to kill; afterwards they run again."""
        with self._locked(fcntl.LOCK_EX):
            try:
                yield
            finally:
                for node in self.nodes:
                    if node.running:
                        node.resume()
                self.start()

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with (self.folder / "use.lock").open("w") as use:
            # Who wants it alone waits in the door, or would wait until nobody else had any test left.
            with (self.folder / "door.lock").open("w") as door:
                fcntl.flock(door, fcntl.LOCK_EX)
                fcntl.flock(use, how)
            yield


C = TypeVar("C", bound=Cluster[Any])


def shared_cluster(
    name: str, folder: Path, make: Callable[[], C], attach: Callable[[Mapping[str, Any]], C]
) -> C:
    """The one cluster of that name for all test workers with this `folder`; the first to ask starts it."""
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = folder / f"{name}.json"
        if found.exists():
            return attach(json.loads(found.read_text()))
        cluster = make()
        try:
            cluster.start()
        except BaseException:
            cluster.close()
            raise
        _kept.append(cluster)
        found.write_text(json.dumps(cluster.describe()))
        return cluster


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if group in _children:
        _children.pop(group).wait(10)


def _state(process: Path) -> str:
    """Of a process or a thread, by its folder in /proc."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _stands_still(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and any(
                _state(thread) not in "TtXZ" for thread in (stat.parent / "task").iterdir()
            ):
                return False
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return True
