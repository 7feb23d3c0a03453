"""
The tables of the queue file, and how a connection to it is opened.

message  what was published, never changed; `seq` is the order of arrival
slot     what can be taken, and when: `due` is 0 for "now", else microseconds since
         the epoch. So messages without a delay are taken in order of arrival
         whatever the clock does, and finding the next one is one index look-up,
         however many wait; below 0 for what is set aside behind a failed message. Its
         `death` is JSON of what travels with a message: why it was given up, in a
         dead-letter queue, and what failed before, everywhere
lease    what is on loan, by the subscription that holds it; a message is in
         exactly one of slot and lease
owner    one row per subscription. A lease ends with its owner, so renewing is one
         row however many messages are held, and a late settlement is recognised
         by its missing owner (ids are never used twice)
parked   failed messages of ordered subscriptions, which hold their ordering key back
queue    name and counters, kept in the transaction that changes them
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import apsw

from forebay.errors import BrokerUnavailable, SettingsError

APPLICATION_ID = 0x46627931  # "Fby1"
VERSION = 2

_MINIMUM_LIBRARY = (3, 51, 3)
"""Older ones can corrupt a WAL file that two connections write ("WAL-reset bug", fixed in 3.51.3)."""

CHECKPOINT_BYTES = 64 * 2**20

BUSY_TIMEOUT = 5_000
"""Milliseconds that a statement waits for somebody else's lock."""

TABLES = """
create table queue (
  id integer primary key,
  name text not null unique,
  messages integer not null default 0,
  bytes integer not null default 0
);
create table message (
  seq integer primary key autoincrement,
  id text not null,
  key text,
  content_type text not null,
  headers text,
  accepted_at integer not null,
  not_before integer,
  expires_at integer,
  body blob not null
);
create table slot (
  queue integer not null,
  due integer not null,
  seq integer not null,
  attempt integer not null,
  deferrals integer not null,
  death text,
  primary key (queue, due, seq)
) without rowid;
create index scheduled on slot (queue, seq) where due > 0;
create table owner (
  id integer primary key autoincrement,
  queue integer not null,
  process text not null,
  expires_at integer not null
);
create table lease (
  owner integer not null,
  seq integer not null,
  attempt integer not null,
  deferrals integer not null,
  death text,
  primary key (owner, seq)
) without rowid;
"""

PARKED = """
create table parked (
  queue integer not null,
  key text not null,
  seq integer not null,
  followers integer not null,
  primary key (queue, key, seq)
) without rowid;
"""
"""Since version 2."""


def check_library() -> None:
    """
    Raises:
        BrokerUnavailable: the SQLite library is one that can corrupt the file.
    """
    if tuple(map(int, apsw.sqlite_lib_version().split("."))) < _MINIMUM_LIBRARY:
        raise BrokerUnavailable(
            f"SQLite {apsw.sqlite_lib_version()} can corrupt a queue that several processes use;"
            " install apsw 3.51.3 or newer from PyPI, which brings its own"
        )


def connect(path: Path, *, synchronous: Literal["full", "normal"]) -> apsw.Connection:
    """
    A connection to an existing queue file.

    Raises:
        SettingsError: the file is not a queue.
        BrokerUnavailable: it cannot be opened, or a newer release made it.
    """
    db = open_file(path, create=False)
    try:
        found = version(db, path)
    except BaseException:
        db.close()
        raise
    if found != VERSION:
        db.close()
        raise BrokerUnavailable(f"{path} is not a queue yet; start a gateway or consumer on it first")
    db.execute(f"pragma synchronous = {synchronous}")
    return db


def one_row(db: apsw.Connection, query: str, bindings: tuple[object, ...] = ()) -> tuple[Any, ...]:
    """The row of a query that always has one."""
    row: tuple[Any, ...] | None = db.execute(query, bindings).fetchone()
    assert row is not None
    return row


def open_file(path: Path, *, create: bool) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    with translated(path):
        db = apsw.Connection(str(path), flags=flags, statementcachesize=100)
        # Taking turns is done by locks of our own; this is for people with a SQLite shell.
        db.set_busy_timeout(BUSY_TIMEOUT)
        db.execute("pragma wal_autocheckpoint = 0")
        # The last to close would move the log into the file, and on a nearly full disk leave not a byte:
        # who opens the file next could acknowledge nothing. A clean stop moves it by itself.
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        db.execute(f"pragma journal_size_limit = {CHECKPOINT_BYTES}")
        db.execute("pragma cache_size = -16000")
    return db


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Says what an error of the library while opening means, in our words."""
    try:
        yield
    except apsw.NotADBError as error:
        raise not_a_database(path) from error
    except apsw.CorruptError as error:
        raise BrokerUnavailable(damaged(path, str(error))) from error
    except apsw.ReadOnlyError as error:
        raise SettingsError(_not_ours(path)) from error
    except apsw.FullError as error:
        raise BrokerUnavailable(f"the disk under {path} is full") from error
    except apsw.CantOpenError as error:
        if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            raise SettingsError(_not_ours(path)) from error
        raise BrokerUnavailable(f"cannot open the queue file {path}: {error}") from error
    except apsw.Error as error:
        raise BrokerUnavailable(f"cannot open the queue file {path}: {error}") from error


def _not_ours(path: Path) -> str:
    return (
        f"this user may not read and write the queue file {path}; run the command as its owner, or give"
        " broker.url another path"
    )


def version(db: apsw.Connection, path: Path) -> int:
    """
    The schema's version; 0 for an empty file.

    Raises:
        SettingsError: the file is not a queue.
        BrokerUnavailable: a newer release made it, or it is damaged.
    """
    # One look, not three: between two of them another process may make the tables.
    with translated(path), db:
        application = db.pragma("application_id")
        found = db.pragma("user_version")
        tables = db.execute("select count(*) from sqlite_schema").get
    if application == 0 and found == 0 and tables == 0:
        return 0
    if application != APPLICATION_ID:
        raise SettingsError(
            f"{path} is a SQLite database, but not a queue of ours; give broker.url another path"
        )
    if found > VERSION:
        raise BrokerUnavailable(
            f"{path} was written by a newer release (schema {found}; this one knows {VERSION});"
            " upgrade this process"
        )
    assert isinstance(found, int)
    return found


def not_a_database(path: Path) -> SettingsError:
    return SettingsError(
        f"{path} is not a queue file (it is not a SQLite database); "
        "give broker.url another path, or move that file away"
    )


def damaged(path: Path, finding: str) -> str:
    finding = finding.removeprefix("*** in database main ***").strip().replace("\n", "; ")
    return (
        f"the queue file {path} is damaged ({finding}). Stop all processes that use it, copy it with its"
        f" -wal file, and rescue what can be read with `sqlite3 {path} .recover`"
    )


def create(db: apsw.Connection) -> None:
    """Make the tables, or those that an older release did not know."""
    # Changing the journal mode is no part of a transaction; doing it again changes nothing.
    db.execute("pragma journal_mode = wal")
    db.execute("begin immediate")
    found = db.pragma("user_version")
    if found == 0:
        db.execute(TABLES)
        db.execute(f"pragma application_id = {APPLICATION_ID}")
    if found < VERSION:
        db.execute(PARKED)
        db.execute(f"pragma user_version = {VERSION}")
    db.execute("commit")
