"""
Moving what the log holds into the queue file, so that the log does not grow without bound.

Copying the 64 MiB of a long log takes a tenth of a second, in which nothing could be published. So
most of it is done by a thread of its own, beside the writer; what was written in the meantime is little,
and the writer moves it in its turn. Only then is the log all moved, and written from its start again.

SQLite syncs the file only with the last page of the log, which a thread beside a busy writer never moves.
So the thread syncs it by itself, or the writer would have to for all of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Literal

import apsw
import structlog

from forebay.brokers.sqlite.files import SideFiles
from forebay.brokers.sqlite.schema import BUSY_TIMEOUT, CHECKPOINT_BYTES, connect, one_row
from forebay.errors import BrokerError, SettingsError

log = structlog.get_logger()

IDLE = 2.0
"""Seconds without work after which what the log holds is moved into the file."""

LOG_KEPT = 4 * 2**20
"""Bytes of the log's file that an idle queue keeps: writing over them is cheaper than making them anew."""

STEP = CHECKPOINT_BYTES // 4
"""Bytes that the log has grown before what could not be moved is tried again."""

LITTLE = 4 * 2**20
"""Bytes that a writer moves in its turn: a few milliseconds."""

PASSES = 3
"""Beside the writer, for one log: under a load that adds more than LITTLE in each, the writer ends it."""


_descriptors: dict[Path, int] = {}


def sync(database: Path) -> None:
    """
    Have the disk hold what was written to the file.

    By a descriptor of our own that is never closed: that would drop SQLite's locks of the whole process. And
    not by SQLite's: an error is told once to each, and must reach it.
    """
    descriptor = _descriptors.get(database)
    if descriptor is None or not _is_of(descriptor, database):
        descriptor = _descriptors[database] = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
    os.fsync(descriptor)


def _is_of(descriptor: int, database: Path) -> bool:
    """Whether the file has not been replaced."""
    return os.path.samestat(os.fstat(descriptor), os.stat(database))


class Checkpoints:
    """Of one writer: all but `close` is called on its thread."""

    def __init__(self, files: SideFiles, *, synchronous: Literal["full", "normal"]) -> None:
        self._files = files
        self._synchronous = synchronous
        self._page = 0
        self._bytes = 0
        """Of the log, after this writer's last commit."""
        self._tried_at = 0
        """What it was when it could not be moved, or only in part."""
        self._pass: threading.Thread | None = None
        self._moved: int | None = None
        """Bytes that the last pass has moved; None if it was refused."""
        self._passes = 0

    def watch(self, db: apsw.Connection) -> None:
        """Learn from each commit of this connection how long the log is."""
        self._page = page = db.pragma("page_size")

        def note_size(_db: apsw.Connection, _name: str, pages: int) -> int:
            self._bytes = pages * page
            return 0

        db.set_wal_hook(note_size)

    def after_commit(self, db: apsw.Connection) -> None:
        """With the turn."""
        if self._bytes < self._tried_at:
            self._tried_at = 0  # the log began anew
        if self._pass is not None:
            if not self._pass.is_alive():
                self._pass = None
                self._after_pass(db)
        elif self._bytes >= max(CHECKPOINT_BYTES, self._tried_at + STEP):
            self._begin_pass()

    def is_long_and_quiet(self) -> bool:
        """Whether the log's space is worth having back, and no process has written to it for a while."""
        try:
            log_file = os.stat(f"{self._files.database}-wal")
        except OSError:
            return False
        return log_file.st_size > LOG_KEPT and time.time() - log_file.st_mtime >= IDLE

    def while_idle(self, db: apsw.Connection) -> None:
        """With the turn."""
        if self.is_long_and_quiet():
            _cut(db)
        else:
            _move(db)

    def close(self) -> None:
        """Wait for a pass that runs."""
        if self._pass is not None:
            self._pass.join()

    def _begin_pass(self) -> None:
        self._passes += 1
        self._moved = None
        self._pass = threading.Thread(target=self._move_beside, name="forebay-checkpoint", daemon=True)
        self._pass.start()

    def _after_pass(self, db: apsw.Connection) -> None:
        if self._moved is not None:
            if self._bytes - self._moved > LITTLE and self._passes < PASSES:
                self._begin_pass()
                return
            _move(db)
        self._passes = 0
        # Another process may be at it, or a reader in the way: not again after every commit.
        self._tried_at = self._bytes

    def _move_beside(self) -> None:
        try:
            with contextlib.closing(connect(self._files.database, synchronous=self._synchronous)) as db:
                busy, _, pages = one_row(db, "pragma wal_checkpoint(passive)")
                if not busy:
                    sync(self._files.database)
                    self._moved = pages * self._page
        except apsw.FullError:
            pass  # no room to grow the file: the log keeps what it has
        except (apsw.Error, BrokerError, SettingsError, OSError) as error:
            log.warning("moving the log into the queue file failed; tried again later", error=str(error))


def _move(db: apsw.Connection) -> None:
    with contextlib.suppress(apsw.FullError):
        db.execute("pragma wal_checkpoint(passive)").fetchall()


def _cut(db: apsw.Connection) -> None:
    """Move the log into the file and give its space back, unless somebody is reading from it."""
    # Whoever reads for long (a backup) is not waited for: the others want the turn.
    db.set_busy_timeout(0)
    try:
        with contextlib.suppress(apsw.FullError):
            db.execute("pragma wal_checkpoint(truncate)").fetchall()
    finally:
        db.set_busy_timeout(BUSY_TIMEOUT)
