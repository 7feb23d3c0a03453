"""
A power cut under the embedded queue: what was answered 202 must be there when the power is back.

The queue lies on an ext4 file system in a loop device. The cut is the kernel's own
"shut down this file system without flushing the log" (the FS_IOC_SHUTDOWN ioctl):
everything that was not forced to the disk is gone, for the file system and for us.
One thing differs from a real cut: an fdatasync that is under way when the ioctl comes
may return success without having written (traced on Linux 6.18: begun 0.5 ms before
the cut, 0 returned just after it, the data gone). So the gateway is frozen first, at a
random instant and between two system calls, and its clients read what it had answered
by then: every 202 that was ever sent counts.
A real gateway works on it, real clients post and remember what was answered 202.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from forebay.brokers.api import Ack
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from tests.system.harness import Process, Site, until

QUEUE = "power"
CLIENTS = 16

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
_NO_LOG_FLUSH = struct.pack("I", 2)

_WEAKENED = """
import apsw

def weaken(db):
    # From now on nobody can ask for more: the statement that would is ignored.
    db.execute("pragma synchronous = normal")
    db.set_authorizer(
        lambda what, name, value, *rest:
            apsw.SQLITE_IGNORE if what == apsw.SQLITE_PRAGMA and name == "synchronous" and value
            else apsw.SQLITE_OK
    )

apsw.connection_hooks.append(weaken)
from forebay.cli.main import main
main()
"""
"""A gateway whose commits are not forced to the disk: proof that the test would notice."""


class CannotCut(Exception):
    """This machine, or this user, cannot cut the power of a file system."""


class LoopDisk:
    """An ext4 file system in a file, whose power can be cut."""

    def __init__(self, folder: Path, *, size: int = 512 * 2**20) -> None:
        if os.geteuid() != 0:
            raise CannotCut("mounting a file system for the power cut needs root")
        if shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/sbin:/usr/sbin") is None:
            raise CannotCut("mkfs.ext4 is missing (package e2fsprogs)")
        self.image = folder / "disk.img"
        self.path = folder / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        self._run("mkfs.ext4", "-q", "-F", str(self.image))
        self.mount()

    def mount(self) -> None:
        self._run("mount", "-o", "loop", str(self.image), str(self.path))

    def unmount(self) -> None:
        self._run("umount", str(self.path))

    def cut(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(fd)

    def close(self) -> None:
        if os.path.ismount(self.path):
            self.unmount()

    @staticmethod
    def _run(*command: str) -> None:
        env = {**os.environ, "PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            raise CannotCut(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


@dataclass
class Clients:
    """Threads that post until the gateway is gone, and remember what it promised."""

    port: int
    promised: dict[str, bytes] = field(default_factory=dict)
    """Body by id, of every 202."""
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._post, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def read_what_was_answered(self) -> None:
        """Return when nothing more comes from a gateway that stands still."""

        def quiet() -> bool:
            before = len(self.promised)
            time.sleep(0.3)  # what was sent is in our sockets; this is for the threads to read it
            return len(self.promised) == before

        until(quiet, within=30, what="the last answers")

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a client got no answer for 30 s"

    def _post(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            while True:
                body = secrets.token_hex(100).encode()
                connection.request("POST", f"/v1/queues/{QUEUE}/messages", body)
                response = connection.getresponse()
                response.read()
                if response.status == 202:
                    self.promised[response.headers["Location"].rpartition("/")[2]] = body
                else:
                    return


@dataclass
class Cut:
    """What one power cut left."""

    promised: int
    """Answered 202."""
    lost: int
    """Of these, not in the queue any more."""
    altered: int
    waiting: int


def cut_power_once(folder: Path, *, after: int, weakened: bool = False) -> Cut:
    """Let a gateway accept `after` messages, cut, and compare its promises with the queue as it is then."""
    folder.mkdir(parents=True)
    disk = LoopDisk(folder)
    site = Site(folder, database_url="sqlite:///unused.db", queues=QUEUE)
    site.settings["BROKER__URL"] = f"sqlite:///{disk.path / 'queue.db'}"
    try:
        gateway = _weakened_gateway(site) if weakened else site.gateway()
        clients = Clients(site.port)
        clients.start()
        gateway.until(lambda: len(clients.promised) >= after, within=60, what=f"{after} answers 202")
        _freeze(gateway)
        clients.read_what_was_answered()
        disk.cut()
        gateway.kill()
        clients.join()
        disk.unmount()
        disk.mount()
        found = asyncio.run(_drain(disk.path / "queue.db"))
    finally:
        site.close()
        disk.close()
    lost = sum(1 for id in clients.promised if id not in found)
    altered = sum(1 for id, body in clients.promised.items() if id in found and found[id] != body)
    return Cut(promised=len(clients.promised), lost=lost, altered=altered, waiting=len(found))


def _freeze(process: Process) -> None:
    """Stop every thread where it is; one in the middle of a system call finishes that first."""
    process.signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")

    def states() -> set[str]:
        return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()}

    until(lambda: states() == {"T"}, within=30, what="the gateway to stand still")


def _weakened_gateway(site: Site) -> Process:
    process = Process(
        [sys.executable, "-c", _WEAKENED, "gateway", "--port", str(site.port)],
        env=site.env, cwd=site.folder, log=site.folder / "gateway.log",
    )  # fmt: skip
    site.processes.append(process)
    process.until(site.ready, what="the weakened gateway's /readyz")
    return process


async def _drain(queue_file: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    async with open_broker(BrokerSettings(url=SecretStr(f"sqlite:///{queue_file}"))) as broker:
        await broker.declare(QUEUE)
        async with broker.subscribe(QUEUE, prefetch=1_000) as subscription:
            while deliveries := await subscription.receive(500, 0.2):
                found |= {d.message.id: d.message.body for d in deliveries}
                await subscription.settle([Ack(d) for d in deliveries])
    return found
