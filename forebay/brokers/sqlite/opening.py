"""The first and the last thing done with a queue file: found or made, checked after a crash, left tidy."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import apsw
import structlog

from forebay.brokers.sqlite import schema
from forebay.brokers.sqlite.consuming import hand_back_everything
from forebay.brokers.sqlite.files import Ballast, SideFiles, run_directory
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.errors import BrokerUnavailable, SettingsError

log = structlog.get_logger()

OPEN_TIMEOUT = 60.0
"""Seconds to wait for another process that is opening the file; it may be checking a large one."""

NEEDED = 2**20
"""Bytes that opening needs, amply."""

NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.sshfs"}
)


def prepare(path: Path, settings: SQLiteSettings, create: bool) -> SideFiles:
    """
    Make the file if it is missing and may be made, and join those who use it. Blocks.

    Raises:
        SettingsError: the path cannot be a queue.
        BrokerUnavailable: it is one, but cannot be used now.
    """
    path = path.absolute()
    schema.check_library()
    try:
        if create:
            _make_file(path)
        elif not path.exists():
            raise BrokerUnavailable(
                f"there is no queue at {path}; a gateway or consumer makes it when it starts"
            )
        make_room(path)
        with contextlib.closing(schema.open_file(path, create=False)) as db:
            schema.version(db, path)  # before anything is put beside a file that is not ours
        files = SideFiles(path, ballast_bytes=settings.ballast_bytes, min_free_bytes=settings.min_free_bytes)
    except OSError as error:
        raise SettingsError(
            f"cannot use {path} as the queue: {error.strerror or error} ({error.filename or path});"
            " give broker.url a path whose directory this user may write"
        ) from error
    try:
        if not files.enter_door(OPEN_TIMEOUT):
            raise BrokerUnavailable(
                f"another process has been opening {path} for {OPEN_TIMEOUT:.0f} s;"
                " it may be checking a large file"
            )
        alone = files.alone()
        with contextlib.closing(schema.open_file(path, create=False)) as db, schema.translated(path):
            if alone and files.stopped_unclean():
                _check(db, path)
            if schema.version(db, path) < schema.VERSION:
                schema.create(db)
            if alone and (returned := hand_back_everything(db, int(time.time() * 1e6))):
                log.info("handed back the messages of killed processes", count=returned, path=str(path))
            if alone:
                _move_log(db, files)
        if alone:
            files.remove_leftovers()
        files.begin_use()
        free, low_water = files.free_and_low_water()
        files.ballast.restore(free, low_water)
        files.leave_door()
        warn_about_network(path.parent)
    except BaseException:
        files.close()
        raise
    return files


def make_room(path: Path) -> None:
    """
    On a full disk, give up the ballast first.

    Opening makes small files of ours and of SQLite's (its index of the log is 32 kB);
    a consumer that cannot be started could not make room either.
    """
    disk = os.statvfs(path.parent)
    if disk.f_bavail * disk.f_frsize < NEEDED and run_directory(path).joinpath("ballast").exists():
        log.warning("the disk is full; gave up the ballast to be able to start", path=str(path))
        Ballast(run_directory(path) / "ballast", 0).release()


def _make_file(path: Path) -> None:
    if path.exists():
        return
    missing = [p for p in (path.parent, *path.parents) if not p.exists()]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # Before SQLite does: its log and index files copy the mode of this one.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    # For whoever mistyped the path: their messages would wait where nobody looks.
    log.info("made a new queue file", path=str(path))
    # SQLite syncs the directory of its log; those above it are ours to make durable.
    for directory in {path.parent, *(p.parent for p in missing)}:
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _check(db: apsw.Connection, path: Path) -> None:
    log.info("the last stop was not a clean one; checking the queue file", path=str(path))
    started = time.monotonic()
    finding = db.execute("pragma quick_check(1)").get
    if finding != "ok":
        raise BrokerUnavailable(schema.damaged(path, str(finding)))
    log.info("the queue file is sound", path=str(path), seconds=round(time.monotonic() - started, 3))


def leave_clean(files: SideFiles) -> None:
    """What the last one to leave does, so that the next start need not check the file."""
    try:
        with contextlib.closing(schema.open_file(files.database, create=False)) as db:
            _move_log(db, files)
        files.mark_clean()
    except (apsw.Error, BrokerUnavailable, OSError) as error:
        log.warning("could not tidy up; the next start checks the queue file", error=str(error))


def _move_log(db: apsw.Connection, files: SideFiles) -> None:
    """Move the log into the file; without room for that it would use up what is needed to acknowledge."""
    log_file = files.database.with_name(f"{files.database.name}-wal")
    free, _ = files.free_and_low_water()
    if log_file.exists() and log_file.stat().st_size < free:
        db.execute("pragma wal_checkpoint(truncate)").fetchall()


def warn_about_network(directory: Path) -> None:
    """SQLite needs locks and shared memory that network filesystems do not give."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return
    holding = [m for m in mounts if directory.is_relative_to(m[1])]
    kind = max(holding, key=lambda m: len(m[1]), default=["", "", ""])[2]
    if kind in NETWORK_FILESYSTEMS:
        log.warning(
            "the queue file is on a network filesystem, where it can be damaged",
            path=str(directory),
            kind=kind,
        )
