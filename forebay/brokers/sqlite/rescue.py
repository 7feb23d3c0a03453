"""What can still be read of a queue file, whatever is wrong with it. Only for files nobody else writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import orjson

from forebay.brokers.naming import DEAD_SUFFIX
from forebay.brokers.sqlite import schema
from forebay.brokers.sqlite.files import run_directory
from forebay.brokers.wire import from_micros
from forebay.errors import BrokerUnavailable, SettingsError
from forebay.message import Message

_PLACES = (
    "select queue, seq from slot order by queue {0}, due {0}, seq {0}",
    "select o.queue, l.seq from owner o cross join lease l on l.owner = o.id order by o.id {0}, l.seq {0}",
)
_SEQS = "select seq from message order by seq {0}"
_MESSAGE = (
    "select id, key, content_type, headers, accepted_at, not_before, expires_at, body"
    " from message where seq = ?"
)


def damage(path: Path, *, in_full: bool) -> str | None:
    """
    What is wrong with a queue file, in SQLite's words; None if it is sound, or not there.

    Without `in_full` it is read to its end only after a crash; one that was cut off is found all the same.
    A file that was found sound is not read once more when it is opened.
    """
    unclean = run_directory(path) / "unclean"
    try:
        if not path.exists():
            return None
        log = path.with_name(f"{path.name}-wal")
        if path.stat().st_size == 0:
            # SQLite would begin anew, and take no notice of what the log has.
            return "the file is empty, its log is not" if log.exists() and log.stat().st_size else None
        db = schema.open_file(path, create=False)
        try:
            schema.version(db, path)
            found = "ok"
            if in_full or unclean.exists():
                found = str(db.execute("pragma quick_check(1)").get)
        finally:
            db.close(True)
    except (apsw.CorruptError, apsw.NotADBError, SettingsError) as error:
        return str(error)
    except BrokerUnavailable as error:
        if isinstance(error.__cause__, apsw.CorruptError):
            # Not our own words: they tell how to rescue by hand what the caller is about to rescue.
            return str(error.__cause__)
        raise
    except apsw.Error as error:
        raise BrokerUnavailable(f"cannot read {path}: {error}") from error
    if found != "ok":
        return found.replace("\n", "; ")
    unclean.unlink(missing_ok=True)
    return None


@dataclass(slots=True)
class Rescue:
    """The messages that can be read of one file, and how many cannot."""

    path: Path
    unreadable: int = 0
    """Messages of which it is known that they were there; complete when all were read."""
    unplaced: int = 0
    """Messages that are there, and nobody can tell in which queue."""
    _queues: dict[int, str] = field(default_factory=dict)

    def messages(self) -> Iterator[tuple[str, Message]]:
        """Each readable message with its queue, in the order of arrival; dead-letter queues among them."""
        try:
            # Only to read: closing it must not move its log into it.
            db = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
            # With this SQLite reads a file of which the end is missing; without, not one page of it.
            db.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
        except apsw.Error:
            return
        try:
            for id_, name in _both_ways(db, "select id, name from queue order by id {0}"):
                self._queues[id_] = name
            places = {seq: queue for query in _PLACES for queue, seq in _both_ways(db, query)}
            seqs = {row[0] for row in _both_ways(db, _SEQS)} | places.keys()
            for seq in sorted(seqs):
                queue = self._queue_of(places.get(seq))
                try:
                    row = db.execute(_MESSAGE, (seq,)).fetchone()
                    found = None if row is None else _message(row)
                except (apsw.Error, ValueError, TypeError, OverflowError):
                    found = None
                if found is None:
                    self.unreadable += 1
                elif queue is None:
                    self.unplaced += 1
                else:
                    yield queue, found
        finally:
            db.close(True)

    def _queue_of(self, queue_id: int | None) -> str | None:
        if queue_id is not None:
            return self._queues.get(queue_id)
        # Its place is on a page that cannot be read. With one queue there is no doubt where that was.
        live = [name for name in self._queues.values() if not name.endswith(DEAD_SUFFIX)]
        return live[0] if len(live) == 1 else None


def _both_ways(db: apsw.Connection, query: str) -> set[tuple[Any, ...]]:
    """The rows that can be reached from the beginning, and from the end, of what is damaged in the middle."""
    found: set[tuple[Any, ...]] = set()
    for way in ("asc", "desc"):
        try:
            for row in db.execute(query.format(way)):
                found.add(row)
        except apsw.Error:
            continue
        break  # read from one end to the other
    return found


def _message(row: tuple[Any, ...]) -> Message:
    id_, key, content_type, headers, accepted, not_before, expires, body = row
    if not (isinstance(id_, str) and isinstance(body, bytes) and isinstance(content_type, str)):
        raise ValueError("not a message")
    return Message(
        id=id_,
        body=body,
        key=key,
        headers=orjson.loads(headers) if headers else {},
        content_type=content_type,
        accepted_at=from_micros(accepted),
        not_before=None if not_before is None else from_micros(not_before),
        expires_at=None if expires is None else from_micros(expires),
    )
