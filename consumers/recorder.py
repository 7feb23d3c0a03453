"""
Notes what a consumer process has in hand, where others can read it when the process has died.

A process that is killed, by a bug in native code or by the kernel for its memory, leaves no word. The
broker delivers again what it held, all of it, and cannot tell which message was at fault. So each
worker writes the ids of a batch into a file of its own before the sink sees them, and clears it when
the sink has answered: two writes into the page cache, some 20 µs for 500 ids. They need no fsync: a
process that dies takes nothing of that with it.

Each file is locked by its process for as long as that lives. One that nobody holds was left by the dead.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import secrets
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import structlog

log = structlog.get_logger()

_LENGTH = struct.Struct(">Q")
_SUFFIX = ".held"


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a dead process had in hand in one call of a sink."""

    path: Path
    queue: str
    ids: tuple[str, ...]
    alone: bool
    """Whether the process had nothing else in hand."""


def folder_for(state_dir: Path | None, installation: str) -> Path:
    """
    The folder that the consumers of one installation share on this machine.

    `installation` is what they have in common, the identity of their broker.
    """
    if state_dir is None:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        state_dir = Path(tempfile.gettempdir()) / f"forebay-consumers-{user}"
    return state_dir / hashlib.sha256(installation.encode()).hexdigest()[:16]


class Recorder:
    """
    The files of one process. Whatever is wrong with the disk, it never stands in the way of the work:
    then a message that kills its consumer is not found, and the log says so once.
    """

    def __init__(self, folder: Path | None) -> None:
        """With None nothing is noted, and nothing found."""
        self._folder = folder or Path()
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._slots: list[Slot] = []
        self._works = folder is not None
        if folder is None:
            return
        try:
            # As the embedded queue does: ids tell nothing, but folders of others may not be planted here.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                raise PermissionError(f"{folder} belongs to another user")
        except OSError as error:
            self._fail(error)

    def slot(self) -> Slot:
        """A file for one more worker."""
        made = Slot(self, self._folder / f"{self._name}-{len(self._slots)}{_SUFFIX}")
        self._slots.append(made)
        return made

    def left_by_the_dead(self) -> list[Left]:
        """What dead processes had in hand. Stays until `forget` is called; several processes may find it."""
        if not self._works:
            return []
        found = []
        try:
            for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
                if not path.name.startswith(self._name) and (left := _read(path)) is not None:
                    found.append(left)
        except OSError as error:
            self._fail(error)
        return found

    def forget(self, left: Left) -> bool:
        """Remove it. True for the one process, of all that try, that did so."""
        try:
            left.path.unlink()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Remove this process's own files: nothing is in hand any more."""
        for slot in self._slots:
            slot.close()

    @property
    def works(self) -> bool:
        return self._works

    def _fail(self, error: OSError) -> None:
        if self._works:
            self._works = False
            log.warning(
                "a message that kills its consumer could not be found: nothing can be noted;"
                " set consumer.state_dir to a folder that can be written",
                folder=str(self._folder),
                reason=error.strerror or str(error),
            )


class Slot:
    """What one worker has in hand."""

    def __init__(self, recorder: Recorder, path: Path) -> None:
        self._recorder = recorder
        self._path = path
        self._file: int | None = None

    @contextmanager
    def holding(self, queue: str, ids: Sequence[str], *, alone: bool) -> Iterator[None]:
        """While in this context these messages are with the sink."""
        self._write(orjson.dumps({"queue": queue, "alone": alone, "ids": ids}))
        try:
            yield
        finally:
            self._write(b"")

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            try:
                self._path.unlink(missing_ok=True)
            except OSError:
                pass  # Empty as it is, it accuses nobody.
            os.close(file)

    def _write(self, content: bytes) -> None:
        if not self._recorder.works:
            return
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                # Unlike flock, a lock of the process alone: its children do not keep it. One that
                # looks for files of the dead may hold it for a moment.
                fcntl.lockf(self._file, fcntl.LOCK_EX)
            if content:
                os.pwrite(self._file, content, _LENGTH.size)
            # The length last: half a list is none.
            os.pwrite(self._file, _LENGTH.pack(len(content)), 0)
        except OSError as error:
            self._recorder._fail(error)


def _read(path: Path) -> Left | None:
    """What `path` holds, if its process is gone; an empty one is removed."""
    try:
        # To be locked it must be opened for writing.
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None  # Removed meanwhile.
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None  # Its process lives.
        head = os.pread(file, _LENGTH.size, 0)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        content = os.pread(file, length, _LENGTH.size) if length else b""
        try:
            held = orjson.loads(content)
            return Left(path=path, queue=held["queue"], ids=tuple(held["ids"]), alone=bool(held["alone"]))
        except (ValueError, KeyError, TypeError):
            # Nothing in hand, or half a list. The moment between the making of a file and its lock looks
            # the same, so a new one is left alone.
            if os.fstat(file).st_mtime < time.time() - 60:
                path.unlink(missing_ok=True)
            return None
    finally:
        os.close(file)
