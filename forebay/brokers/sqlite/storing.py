"""
How messages become rows: all of a publish in one statement.

Between two statements the interpreter is let go of, and the event loop's thread may have it for
milliseconds while another process waits for the turn to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import groupby

import apsw
import orjson

from forebay.brokers.wire import to_micros
from forebay.message import Alike, Message

COLUMNS = ("id", "key", "content_type", "headers", "accepted_at", "not_before", "expires_at", "body")

MOST_ROWS = 512
"""In one statement: of what is much longer no prepared form is kept."""
_LEAST_ROWS = 4

_ID = 36
"""Characters of an id in canonical form."""

_INSERT = f"insert into message ({', '.join(COLUMNS)})"
_INSERT_ALIKE = (
    f"{_INSERT} select cast(substr(value, 1, {_ID}) as text), ?, ?, ?, ?, ?, ?, substr(value, {_ID + 1})"  # noqa: S608
    " from carray(?)"
)
_HAS_ARRAYS = hasattr(apsw, "carray")
"""Not if it was built with a SQLite that lacks them."""

_INSERT_SLOTS = (
    "insert into slot (queue, due, seq, attempt, deferrals)"
    " select ?, ?, seq, 1, 0 from message where seq between ? and ?"
)


class Rows:
    """
    Messages made ready for their insertion: all that can be done before the turn to write.

    Raises:
        ValueError: a text is none. What this does not find, `insert` may; it has written nothing
            then, if there are no more than MOST_ROWS.
    """

    __slots__ = ("_messages", "_statements")

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        if isinstance(messages, Alike) and _have_usual_ids(messages):
            self._statements = [_as_columns(messages)]
        else:
            parts = range(0, len(messages), MOST_ROWS)
            self._statements = [_as_rows(messages[at : at + MOST_ROWS]) for at in parts]

    def insert(self, db: apsw.Connection, queue_id: int, now: int | None) -> None:
        """To be lent at once or when they are due; without `now` all of them at once."""
        for statement, bindings in self._statements:
            db.execute(statement, bindings)
        # Nobody else writes now, and an autoincrement key only grows by one: the rows are consecutive.
        first = db.last_insert_rowid() - len(self._messages) + 1
        for due, start, stop in _runs(self._messages, now):
            db.execute(_INSERT_SLOTS, (queue_id, due, first + start, first + stop - 1))


def is_text(m: Message) -> bool:
    """Whether its texts can be stored: half a surrogate pair is no text."""
    try:
        f"{m.id}{m.content_type}{m.key}".encode()
        _headers(m.headers)
    except ValueError:
        return False
    return True


def _have_usual_ids(messages: Alike) -> bool:
    return _HAS_ARRAYS and set(map(len, messages.ids)) == {_ID} and "".join(messages.ids).isascii()


def _as_columns(messages: Alike) -> tuple[str, Sequence[object]]:
    """The quickest way, for messages that differ in id and body only."""
    each = [id.encode() + body for id, body in zip(messages.ids, messages.bodies, strict=True)]
    m = messages.common
    return _INSERT_ALIKE, (
        m.key,
        m.content_type,
        _headers(m.headers),
        to_micros(m.accepted_at),
        None if m.not_before is None else to_micros(m.not_before),
        None if m.expires_at is None else to_micros(m.expires_at),
        apsw.carray(tuple(each)),
    )


def _as_rows(messages: Sequence[Message]) -> tuple[str, Sequence[object]]:
    columns: list[object] = []
    headers: Mapping[str, str] | None = None
    accepted_at: datetime | None = None
    text: str | None = None
    micros = 0
    for m in messages:
        # Those that came together mostly share these.
        if m.headers is not headers:
            headers = m.headers
            text = _headers(headers)
        if m.accepted_at is not accepted_at:
            accepted_at = m.accepted_at
            micros = to_micros(accepted_at)
        columns += (
            m.id,
            m.key,
            m.content_type,
            text,
            micros,
            None if m.not_before is None else to_micros(m.not_before),
            None if m.expires_at is None else to_micros(m.expires_at),
            m.body,
        )
    # One statement for each power of two, so that all of them stay prepared; the rows too many are empty.
    rows = max(_LEAST_ROWS, 1 << (len(messages) - 1).bit_length())
    columns += [None] * (rows * len(COLUMNS) - len(columns))
    return _insert_rows(rows), columns


@cache
def _insert_rows(rows: int) -> str:
    row = f"({','.join('?' * len(COLUMNS))})"
    return f"{_INSERT} select * from (values {','.join([row] * rows)}) where column1 is not null"  # noqa: S608


def _headers(headers: Mapping[str, str]) -> str | None:
    """
    Raises:
        ValueError
    """
    if not headers:
        return None
    try:
        return orjson.dumps(headers if type(headers) is dict else dict(headers)).decode()
    except TypeError as error:
        raise ValueError("a header holds text that is not valid Unicode") from error


def _runs(messages: Sequence[Message], now: int | None) -> Iterator[tuple[int, int, int]]:
    """When messages in a row are due (0: at once), from which one on, and up to which."""
    if now is None or not _any_delayed(messages):
        yield 0, 0, len(messages)
        return
    start = 0
    for due, run in groupby([_due(m, now) for m in messages]):
        stop = start + sum(1 for _ in run)
        yield due, start, stop
        start = stop


def _any_delayed(messages: Sequence[Message]) -> bool:
    if isinstance(messages, Alike):
        return messages.common.not_before is not None
    return any(m.not_before is not None for m in messages)


def _due(m: Message, now: int) -> int:
    if m.not_before is None:
        return 0
    due = to_micros(m.not_before)
    return due if due > now else 0
