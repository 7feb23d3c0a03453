"""
The batch insert for MySQL and MariaDB: one INSERT of many rows, its text built by us.

Neither has array parameters, and the driver escapes value by value in Python; see
docs/decisions/0003-storage.md for what was measured. What is known is found out when
the plain INSERT says so: ON DUPLICATE KEY and INSERT IGNORE would also swallow the
user's own unique keys, and with them the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, cast

import sqlalchemy as sa
from pymysql.constants import ER
from pymysql.err import Error, IntegrityError

from forebay.brokers.api import Delivery
from forebay.errors import MessageRejected
from forebay.storage.classify import classify
from forebay.storage.mysqlconnection import MySQLConnection
from forebay.storage.rows import headers_json, holds_json, name_bytes, says_json, text_bytes
from forebay.storage.sqlite import time_text

INSERT = (
    b"INSERT INTO messages (id, queue, `key`, content_type, headers, body, payload, accepted_at, attempts,"
    b" stored_at) VALUES "
)
# A column that stands before it may be named: the copy need not be sent.
_COPY = b",CONVERT(body USING utf8mb4),'"
_NO_COPY = b",NULL,'"

_CLAIM = b"INSERT INTO processed_messages (destination, id, digest, processed_at) VALUES "

_OPEN = b"status IN ('dead', 'redriving')"
_ANY_OPEN = b"SELECT EXISTS (SELECT 1 FROM dead_letters WHERE " + _OPEN + b")"

_LONGEST = 4 * 2**20
"""Bytes of one statement, where the server allows as much: longer ones are not faster."""


def quoted(value: bytes) -> bytes:
    """A string literal; the session's mode is `mysqlconnection.SQL_MODE`, which has backslash escapes."""
    if b"\\" in value:
        value = value.replace(b"\\", b"\\\\")
    if b"'" in value:
        value = value.replace(b"'", b"''")
    return b"'%b'" % value


_quoted_name = lru_cache(maxsize=1024)(lambda text: quoted(name_bytes(text)))
"""For what few messages differ in: queues and content types."""


def row(delivery: Delivery, *, payload: bool) -> bytes:
    """The row of the INSERT."""
    m = delivery.message
    return b"(%b,%b,%b,%b,%b,_binary%b%b%b',%d,UTC_TIMESTAMP(6))" % (
        quoted(m.id.encode()),
        _quoted_name(delivery.queue),
        b"NULL" if m.key is None else quoted(text_bytes(m.key)),
        _quoted_name(m.content_type),
        quoted(headers_json(m.headers)) if m.headers else b"'{}'",
        quoted(m.body),
        _COPY if payload and says_json(m.content_type) and holds_json(m.body) else _NO_COPY,
        time_text(m.accepted_at).encode(),
        delivery.attempt,
    )


def driver(connection: sa.Connection) -> MySQLConnection:
    """The connection of the driver below, in the same transaction."""
    return cast(MySQLConnection, connection.connection.driver_connection)


def parts(ids: Sequence[str], rows: Sequence[bytes], longest: int) -> Iterator[dict[str, bytes]]:
    """
    Rows by id, in parts of at most `longest` bytes.

    A row that is longer gets a statement of its own, which the connection refuses if it must.
    """
    part: dict[str, bytes] = {}
    length = 0
    for id, one in zip(ids, rows, strict=True):
        if part and length + len(one) + 1 > longest:
            yield part
            part, length = {}, 0
        part[id] = one
        length += len(one) + 1
    yield part


def insert(connection: sa.Connection, batch: Sequence[Delivery], *, payload: bool) -> set[str] | None:
    """
    Insert `batch`, whose ids are distinct; mark open dead letters of these messages resolved.

    Returns the ids that were new; None means all of them.
    """
    rows = [row(d, payload=payload) for d in batch]
    ids = [d.message.id for d in batch]
    new = _insert_new(driver(connection), INSERT, ids, rows, lambda some: _stored(driver(connection), some))
    _resolve(driver(connection), batch)
    return new


def _insert_new(
    driver: MySQLConnection,
    start: bytes,
    ids: Sequence[str],
    rows: Sequence[bytes],
    known: Callable[[Sequence[str]], set[str]],
) -> set[str] | None:
    """
    Insert the rows whose ids are not `known`; return their ids, None for all of them.

    A refused INSERT is undone by itself and leaves the transaction as it was. Whoever
    inserts the same id meanwhile is waited for by the INSERT.
    """
    new: set[str] = set()
    for left in parts(ids, rows, min(_LONGEST, driver.longest_statement) - len(start) - 1):
        while left:
            try:
                driver.query(start + b",".join(left.values()))
                break
            except IntegrityError as error:
                if error.args[0] != ER.DUP_ENTRY:
                    raise
                found = known(list(left))
                if not found:
                    raise  # another unique key, the user's own
                for id in found:
                    del left[id]
        new |= left.keys()
    return None if len(new) == len(rows) else new


def _resolve(driver: MySQLConnection, batch: Sequence[Delivery]) -> None:
    if rows_of(driver, _ANY_OPEN) == ((0,),):
        return
    bodies = {d.message.id: d.message.body for d in batch}
    opened = rows_of(
        driver,
        b"SELECT id, destination, body FROM dead_letters WHERE " + _OPEN + b" AND id IN " + listed(bodies),
    )
    for id, destination, body in sorted(opened):
        if bytes(body) == bodies[id]:
            driver.query(
                b"UPDATE dead_letters SET status = 'resolved', changed_at = UTC_TIMESTAMP(6) WHERE "
                + _OPEN + b" AND id = " + quoted(id.encode()) + b" AND destination = "
                + quoted(destination.encode())
            )  # fmt: skip


def listed(ids: Sequence[str] | dict[str, bytes]) -> bytes:
    """What stands after IN."""
    return b"(" + b",".join(quoted(i.encode()) for i in ids) + b")"


def rows_of(driver: MySQLConnection, statement: bytes) -> tuple[tuple[Any, ...], ...]:
    with driver.cursor() as cursor:
        cursor.execute(statement)  # type: ignore[call-overload]  # takes bytes as well
        return cursor.fetchall()


def _stored(driver: MySQLConnection, ids: Sequence[str]) -> set[str]:
    return {r[0] for r in rows_of(driver, b"SELECT id FROM messages WHERE id IN " + listed(ids))}


def refuses_payload(connection: sa.Connection, delivery: Delivery) -> bool:
    """Is it the JSON copy that the server cannot hold: it is too deep, or has a number too large."""
    message = delivery.message
    if not (says_json(message.content_type) and holds_json(message.body)):
        return False
    # As the column is declared: MariaDB checks with a function, MySQL has a type.
    ask = b"SELECT JSON_VALID(CONVERT(_binary" + quoted(message.body) + b" USING utf8mb4))"
    try:
        return rows_of(driver(connection), ask) != ((1,),)
    except Error as error:
        if isinstance(classify(error, "mysql"), MessageRejected):
            return True
        raise


def stored_digests(connection: sa.Connection, ids: Sequence[str]) -> dict[str, bytes]:
    """SHA-256 of the stored bodies, computed by the server: what is compared need not travel."""
    ask = b"SELECT id, UNHEX(SHA2(body, 256)) FROM messages WHERE id IN " + listed(ids)
    return dict(rows_of(driver(connection), ask))


def claim(
    connection: sa.Connection, destination: str, ids: Sequence[str], digests: Sequence[bytes]
) -> set[str]:
    """Record distinct, sorted ids as processed; return those that were new."""
    where = quoted(destination.encode())
    rows = [
        b"(%b,%b,x'%b',UTC_TIMESTAMP(6))" % (where, quoted(i.encode()), digest.hex().encode())
        for i, digest in zip(ids, digests, strict=True)
    ]

    def known(some: Sequence[str]) -> set[str]:
        return set(claimed_digests(connection, destination, some))

    new = _insert_new(driver(connection), _CLAIM, ids, rows, known)
    return set(ids) if new is None else new


def claimed_digests(connection: sa.Connection, destination: str, ids: Sequence[str]) -> dict[str, bytes]:
    ask = (
        b"SELECT id, digest FROM processed_messages WHERE destination = "
        + quoted(destination.encode()) + b" AND id IN " + listed(ids)
    )  # fmt: skip
    return dict(rows_of(driver(connection), ask))
