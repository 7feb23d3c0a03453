"""
What lies beside the queue file: locks, the ballast, the marker of an unclean stop, sockets.

    queue.db  queue.db-wal  queue.db-shm     SQLite's own; never opened by hand: closing such a
                                             descriptor drops SQLite's locks for the whole process
    queue.db.run/open                        held exclusively while somebody opens or closes
    queue.db.run/users                       held shared by every process that has the queue open
    queue.db.run/unclean                     there while anybody has it open: if it is there and nobody
                                             has, the last stop was a crash
    queue.db.run/turn.next, turn.main        whose turn it is to write
    queue.db.run/suspect                     an fsync failed; the next writer rewrites before it commits
    queue.db.run/ballast                     given up on a full disk, so that acks still fit
    queue.db.run/process.<name>              locked while that process lives
    queue.db.run/wake/<queue id>.<token>     the socket of one waiting subscription
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


def run_directory(database: Path) -> Path:
    return database.with_name(database.name + ".run")


def lock_file(path: Path) -> int:
    return os.open(path, _LOCK_FLAGS, 0o600)


_held: set[int] = set()
"""Descriptors of the locks that this process opened."""


def open_lock(path: Path) -> int:
    """
    A descriptor to lock by, until `close_lock`; not shared with forked children.

    A lock lives as long as any copy of its descriptor. A handler's pool of processes
    that outlives a kill would keep the turn to write from everybody.
    """
    fd = lock_file(path)
    _held.add(fd)
    return fd


def close_lock(fd: int) -> None:
    _held.discard(fd)
    os.close(fd)


def _close_all_locks() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_close_all_locks)


def try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Turn:
    """
    The right to write, handed from thread to thread over all processes.

    A single lock would do for safety; how fair it is depends on whom the scheduler
    lets run first. So there are two. One waits for `turn.main` only while holding
    `turn.next`, and whoever comes back at once finds that taken. With four busy
    processes on two cores the turns came out as 122 to 144 rather than 153 to 246,
    and the longest wait was half as long. The kernel wakes the next one; nobody
    polls. A killed process lets go of both.
    """

    def __init__(self, directory: Path) -> None:
        self._next = open_lock(directory / "turn.next")
        self._main = open_lock(directory / "turn.main")

    def __enter__(self) -> None:
        fcntl.flock(self._next, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._main, fcntl.LOCK_EX)
        finally:
            fcntl.flock(self._next, fcntl.LOCK_UN)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.flock(self._main, fcntl.LOCK_UN)

    def close(self) -> None:
        close_lock(self._next)
        close_lock(self._main)


class Ballast:
    """Disk space kept back, so that consumers can go on acknowledging when the disk is full."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size

    def release(self) -> bool:
        """Give the space back to the filesystem; False if there was none left to give."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def restore(self, free: int, low_water: int) -> None:
        """Take the space again, when there is plenty."""
        if self._size == 0 or free < low_water + 2 * self._size or os.access(self._path, os.F_OK):
            return
        fresh = self._path.with_name(f"ballast.{secrets.token_hex(4)}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size)
            os.replace(fresh, self._path)
        except OSError:
            fresh.unlink(missing_ok=True)
        finally:
            os.close(fd)


SETTLED = 100_000_000
"""Nanoseconds after which a further change of a directory certainly has another time."""


class Doorbells:
    """
    One Unix datagram socket per waiting subscription; a byte says "look again".

    Best effort: a lost byte costs at most the subscription's fallback poll. The
    addresses go through /proc/self/fd, because a socket's path may have no more
    than 107 bytes and the queue's directory may be deeper than that.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._known: tuple[int, list[str]] = 0, []
        """When the directory was changed last, and what is in it, if it cannot have changed unseen."""
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._directory}/{name}"

    def listen(self, queue_id: int) -> Doorbell:
        name = f"{queue_id}.{secrets.token_hex(6)}"
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)
        bell.bind(self._address(name))
        return Doorbell(bell, self._directory, name)

    def ring(self, queue_ids: Iterable[int]) -> None:
        wanted = {str(i) for i in queue_ids}
        for name in self._names():
            if name.partition(".")[0] not in wanted:
                continue
            try:
                self._sender.sendto(b"\0", self._address(name))
            except ConnectionRefusedError:
                # Nobody has it open: its process was killed. Names are never used twice.
                self._unlink(name)
            except OSError:
                # Full: it has been rung and has not looked yet. Gone: it needs no ringing.
                pass

    def _names(self) -> list[str]:
        changed = os.stat(self._directory).st_mtime_ns
        when, names = self._known
        if changed == when:
            return names
        names = os.listdir(self._directory)
        # Within a tick of the kernel's clock, two changes have the same time.
        if time.time_ns() - changed > SETTLED:
            self._known = changed, names
        return names

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._directory)
        except FileNotFoundError:
            pass

    def close(self) -> None:
        self._sender.close()
        os.close(self._directory)


class Doorbell:
    """The listening end of one subscription."""

    def __init__(self, bell: socket.socket, directory: int, name: str) -> None:
        self._bell = bell
        self._directory = directory
        self._name = name

    def fileno(self) -> int:
        return self._bell.fileno()

    def silence(self) -> None:
        """Forget the rings so far."""
        try:
            while True:
                self._bell.recv(16)
        except BlockingIOError:
            pass

    def close(self) -> None:
        try:
            os.unlink(self._name, dir_fd=self._directory)
        except FileNotFoundError:
            pass
        self._bell.close()


class SideFiles:
    """The directory beside the queue file, as one open broker uses it."""

    def __init__(self, database: Path, *, ballast_bytes: int, min_free_bytes: int) -> None:
        self.database = database
        self.directory = run_directory(database)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        wake = self.directory / "wake"
        wake.mkdir(mode=0o700, exist_ok=True)
        self._min_free = min_free_bytes
        self._suspect = os.fspath(self.directory / "suspect")
        self.ballast = Ballast(self.directory / "ballast", ballast_bytes)
        self._door = open_lock(self.directory / "open")
        self._users = open_lock(self.directory / "users")
        self._unclean = self.directory / "unclean"
        self.bells = Doorbells(wake)
        self.process = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._process_path = self.directory / f"process.{self.process}"
        self._process_fd: int | None = None

    # ---- opening and closing

    def enter_door(self, timeout: float) -> bool:
        """
        Wait to be the only one who opens or closes; False if that took too long.

        The one place that polls: it is rare, and the other may be a stopped process.
        """
        deadline = time.monotonic() + timeout
        while not try_lock(self._door, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def leave_door(self) -> None:
        fcntl.flock(self._door, fcntl.LOCK_UN)

    def alone(self) -> bool:
        """Whether no other process has the queue open. Only behind the door."""
        if not try_lock(self._users, fcntl.LOCK_EX):
            # A failed conversion may have cost us the shared lock.
            try_lock(self._users, fcntl.LOCK_SH)
            return False
        return True

    def stopped_unclean(self) -> bool:
        return self._unclean.exists()

    def begin_use(self) -> None:
        """Behind the door: whoever is alone there removes the marks of all the others."""
        self._process_fd = open_lock(self._process_path)
        try_lock(self._process_fd, fcntl.LOCK_EX)
        os.close(lock_file(self._unclean))
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def mark_clean(self) -> None:
        """After the last user's last write."""
        self._unclean.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Of killed processes. Only for who is alone, behind the door, and has handed back their leases."""
        for path in self.directory.glob("process.*"):
            if path != self._process_path:
                path.unlink(missing_ok=True)
        for path in (self.directory / "wake").iterdir():
            path.unlink(missing_ok=True)

    # ---- whose process lives

    def is_dead(self, process: str) -> bool:
        """Whether the process of that name is certainly gone."""
        if process == self.process:
            return False
        try:
            fd = os.open(self.directory / f"process.{process}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            # Somebody tidied up by hand: not known. Its leases run out by their time.
            return False
        try:
            return try_lock(fd, fcntl.LOCK_EX)
        finally:
            os.close(fd)

    def forget(self, process: str) -> None:
        (self.directory / f"process.{process}").unlink(missing_ok=True)

    # ---- disk

    def free_and_low_water(self) -> tuple[int, int]:
        """Free bytes of the disk, and the number of them below which publishes are refused."""
        disk = os.statvfs(self.directory)
        return disk.f_bavail * disk.f_frsize, min(self._min_free, disk.f_blocks * disk.f_frsize // 20)

    # ---- failed fsync

    def mark_suspect(self) -> None:
        try:
            os.close(lock_file(Path(self._suspect)))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EIO, errno.EROFS):
                raise

    def is_suspect(self) -> bool:
        return os.access(self._suspect, os.F_OK)

    def clear_suspect(self) -> None:
        Path(self._suspect).unlink(missing_ok=True)

    def close(self) -> None:
        self.bells.close()
        self._process_path.unlink(missing_ok=True)
        for fd in (self._process_fd, self._users, self._door):
            if fd is not None:
                close_lock(fd)
