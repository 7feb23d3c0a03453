"""
The files of a journal's directory, and who may use them.

    journal-1.db  -wal  -shm  .run/     an embedded queue (forebay/brokers/sqlite)
    journal-1.lock                      held by the process whose journal it is, as long as that lives
    damaged/                            what was set aside because it could not be read in full
    journal-1.repairing                 there until what could be read of that is back in a new file;
                                        holds the name under which it was set aside

A process takes the lowest number that is free: after a restart that is its old one, and its
messages are still in front of the new ones.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from forebay.errors import BrokerUnavailable, SettingsError

_NAME = re.compile(r"journal-([1-9][0-9]*)\.(?:db|repairing)")
MOST = 1_000
"""More files than any host has gateways: then something else is wrong."""

TRIES = 10
"""To take a file at which others look at the same moment, as the processes of a gateway do at their start."""


@dataclass(frozen=True, slots=True)
class JournalFile:
    """One number of a directory, whether or not there is a file."""

    directory: Path
    number: int

    @property
    def path(self) -> Path:
        return self.directory / f"journal-{self.number}.db"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def lock(self) -> Path:
        return self.directory / f"journal-{self.number}.lock"

    @property
    def repairing(self) -> Path:
        return self.directory / f"journal-{self.number}.repairing"

    def owned(self) -> bool:
        """Whether a living process has it."""
        try:
            fd = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def claim(self) -> Claim | None:
        """Take it; None if a living process has it."""
        fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for _ in range(TRIES):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if self.owned():
                        break
                    time.sleep(0.001)  # somebody is only looking
                else:
                    return Claim(self, os.dup(fd))
            return None
        finally:
            os.close(fd)


class Claim:
    """A file that is ours until `release`, or until this process ends."""

    def __init__(self, file: JournalFile, fd: int) -> None:
        self.file = file
        self._fd: int | None = fd

    def release(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def set_aside(self) -> Path:
        """
        Move the file, as it is, out of the way; return where to.

        After a repair that was broken off, what is in its place is the beginning of a new file, and thrown
        away. Until `repaired`, this is to be done again by whoever opens the file next.

        Raises:
            OSError
        """
        damaged = self.file.directory / "damaged"
        damaged.mkdir(mode=0o700, exist_ok=True)
        repairing = self.file.repairing
        if repairing.exists():
            to = damaged / repairing.read_text()
        else:
            to = self._free_name(damaged)
            _write(repairing, to.name)
        if to.exists():
            self._delete()
            return to
        # The log first: without it the file is older, with a log of another file it is wrong.
        for suffix in ("-wal", "-shm", ""):
            part = Path(f"{self.file.path}{suffix}")
            if part.exists():
                part.rename(f"{to}{suffix}")
        shutil.rmtree(f"{self.file.path}.run", ignore_errors=True)
        return to

    def repaired(self) -> None:
        """
        What was set aside need not be looked at again.

        Raises:
            OSError
        """
        self.file.repairing.unlink(missing_ok=True)
        # Were it back after a power failure, what the new file has taken meanwhile would be thrown away.
        _sync(self.file.directory)

    def _free_name(self, damaged: Path) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        names = (
            damaged / f"{self.file.path.stem}-{stamp}{f'-{count}' if count else ''}.db"
            for count in range(MOST)
        )
        return next(name for name in names if not name.exists())

    def remove(self) -> None:
        """Delete the file, which is closed and holds nothing any more."""
        self._delete()

    def _delete(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.file.path}{suffix}").unlink(missing_ok=True)
        shutil.rmtree(f"{self.file.path}.run", ignore_errors=True)


def _write(path: Path, text: str) -> None:
    """A small file, as a whole and for good or not at all."""
    draft = path.with_name(f"{path.name}.new")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def journal_files(directory: Path) -> list[JournalFile]:
    """Those that are there, by number."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(directory, error) from error
    numbers = {int(m[1]) for name in names if (m := _NAME.fullmatch(name))}
    return [JournalFile(directory, number) for number in sorted(numbers)]


def claim_own(directory: Path) -> Claim:
    """
    A file for this process; the directory is made if it is missing.

    Raises:
        SettingsError: the directory cannot be used.
        BrokerUnavailable: its disk is full.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(1, MOST):
            if (claim := JournalFile(directory, number).claim()) is not None:
                return claim
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BrokerUnavailable(f"the disk under {directory} is full") from error
        raise unusable(directory, error) from error
    raise SettingsError(f"{directory} has {MOST} journals in use; give gateway.journal another directory")


def unusable(directory: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"the journal's directory {directory} cannot be used: {error.strerror or error}; give gateway.journal"
        " one that this user may write"
    )
