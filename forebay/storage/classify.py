"""
What a database error is about: the message, the destination, its configuration, or bad luck.

The verdict decides what the consumer does, so a wrong one is expensive: an outage
taken for the message's fault pours the queue into the dead letters. Codes decide,
not texts, wherever the driver gives a code; what is in no table is returned as it
is, to be tried again by the retry policy.

    MessageRejected      this row, for ever
    TransientError       roll back and run the same batch again
    SinkUnavailable      the database as a whole; nothing was wrong with the rows
    SinkMisconfigured    an operator must act: permissions, missing tables, wrong password

Reasons name code, constraint and column. A server's message may quote the row, so
it goes into `MessageRejected.detail` and nowhere else.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable

import sqlalchemy.exc

from forebay.errors import ForebayError, MessageRejected, SinkMisconfigured, SinkUnavailable


class TransientError(ForebayError):
    """Two writers met: deadlock, lock timeout, serialization. The same batch may succeed at once."""


class ConnectionLost(SinkUnavailable):
    """
    The connection died in use; what was asked may or may not have been done.

    An idempotent batch may be run again at once: the database may well be there,
    and only this connection was cut or outlived a restart.
    """


_OURS = re.compile(
    r"\b(?:messages|dead_letters|processed_messages|consumer_reports|broker_depths"
    r"|queue_controls|crash_suspects|redrive_jobs|audit_log)\b"
)

POSTGRESQL: dict[str, type[ForebayError]] = {
    # Two characters stand for the class; a full code goes before its class.
    "08": SinkUnavailable,  # connection lost, also in the middle of COMMIT: the batch is idempotent
    "0A000": TransientError,  # "cached plan must not change result type": right after a migration
    "21": MessageRejected,
    "22": MessageRejected,  # data: NUL in text, numeric overflow, bad JSON
    "23": MessageRejected,  # constraints
    "25006": SinkUnavailable,  # read-only: a failover, or a disk-space guard
    "25P03": TransientError,  # idle in transaction for too long: we were stopped for a while
    "28": SinkMisconfigured,  # authentication
    "3D": SinkMisconfigured,  # no such database
    "3F": SinkMisconfigured,  # no such schema
    "40": TransientError,  # deadlock, serialization
    "40003": SinkUnavailable,  # statement completion unknown
    "42": SinkMisconfigured,  # missing table or column, no privilege
    "44": MessageRejected,  # WITH CHECK OPTION of a view
    "53": SinkUnavailable,  # disk full, out of memory, too many connections
    "54": MessageRejected,  # program limit: an index row or a field is too large
    "55": SinkMisconfigured,
    "55006": TransientError,  # object in use
    "55P03": TransientError,  # lock_timeout
    "57014": SinkUnavailable,  # statement_timeout, or cancelled by an operator: too slow to go on
    "57": SinkUnavailable,  # shutting down, crashed, starting up
    "57P04": SinkMisconfigured,  # the database was dropped
    "58": SinkUnavailable,  # I/O error, missing file
    "P0": MessageRejected,  # RAISE EXCEPTION in a trigger: the row is not wanted
    "XX001": SinkMisconfigured,  # corrupted data
    "XX002": SinkMisconfigured,  # corrupted index
}

SQLITE: dict[int, type[ForebayError]] = {
    # Primary codes; extended ones have these in their low byte.
    sqlite3.SQLITE_PERM: SinkMisconfigured,
    sqlite3.SQLITE_BUSY: TransientError,
    sqlite3.SQLITE_LOCKED: TransientError,
    sqlite3.SQLITE_NOMEM: SinkUnavailable,
    sqlite3.SQLITE_READONLY: SinkMisconfigured,
    sqlite3.SQLITE_INTERRUPT: TransientError,
    sqlite3.SQLITE_IOERR: SinkUnavailable,
    sqlite3.SQLITE_CORRUPT: SinkMisconfigured,
    sqlite3.SQLITE_FULL: SinkUnavailable,
    sqlite3.SQLITE_CANTOPEN: SinkUnavailable,
    sqlite3.SQLITE_PROTOCOL: TransientError,
    sqlite3.SQLITE_SCHEMA: TransientError,
    sqlite3.SQLITE_TOOBIG: MessageRejected,
    sqlite3.SQLITE_CONSTRAINT: MessageRejected,
    sqlite3.SQLITE_MISMATCH: MessageRejected,
    sqlite3.SQLITE_NOLFS: SinkMisconfigured,
    sqlite3.SQLITE_AUTH: SinkMisconfigured,
    sqlite3.SQLITE_NOTADB: SinkMisconfigured,
}

# libpq gives no code for a refused connection attempt, only the server's words.
# In another language than English they are not found: an outage, to be tried again.
_REFUSED_LOGIN = re.compile(
    r"password authentication failed|authentication failed for user|no password supplied"
    r'|no pg_hba\.conf entry|role "[^"]*" (does not exist|is not permitted)|database "[^"]*" does not exist'
    r"|permission denied for database|certificate|server does not support SSL"
)

_SQLITE_MISSING = re.compile(r"no such (table|column)|has no column named|no such module")


def classify(error: Exception, dialect: str) -> Exception:
    """
    The error of our tree that `error` stands for, or `error` itself when it is not known.

    `error` may be the driver's or SQLAlchemy's wrapping of it; errors of our own tree
    come back unchanged.
    """
    if isinstance(error, ForebayError):
        return error
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return SinkUnavailable("all connections of the pool are in use; see database.pool_size")
    original = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
    if dialect == "postgresql":
        return _classify_postgresql(original) or error
    if dialect == "mysql":
        from forebay.storage.mysqlcodes import classify_mysql

        return classify_mysql(original) or error
    if dialect == "sqlite" and isinstance(original, sqlite3.Error):
        return _classify_sqlite(original) or error
    return error


def _classify_postgresql(error: BaseException | None) -> Exception | None:
    import psycopg

    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate
    name = type(error).__name__
    if state is None:
        if isinstance(error, psycopg.DataError):
            # The driver refused the value before sending it.
            return MessageRejected(name, error_class=name, detail=str(error))
        if isinstance(error, psycopg.OperationalError):
            text = _one_line(str(error))
            return SinkMisconfigured(text) if _REFUSED_LOGIN.search(text) else SinkUnavailable(text)
        return None
    kind = POSTGRESQL.get(state) or POSTGRESQL.get(state[:2])
    if kind is None:
        return None
    diagnosis = error.diag
    if kind is MessageRejected:
        parts = [f"{state} {name}"]
        parts += [f"constraint {diagnosis.constraint_name}"] if diagnosis.constraint_name else []
        parts += [f"column {diagnosis.column_name}"] if diagnosis.column_name else []
        detail = "\n".join(filter(None, (diagnosis.message_primary, diagnosis.message_detail)))
        return MessageRejected(", ".join(parts), error_class=name, detail=detail)
    # These are about the server and its tables, so their text holds no row.
    text = f"{state} {name}: {_one_line(diagnosis.message_primary or str(error))}"
    return kind(what_to_run(text) if state in ("42P01", "42703") else text)


def _classify_sqlite(error: sqlite3.Error) -> Exception | None:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None
    name: str = error.sqlite_errorname
    text = _one_line(str(error))
    if code == sqlite3.SQLITE_ERROR:
        # "SQL logic error" covers everything that was wrong with a statement.
        missing = _SQLITE_MISSING.search(text)
        return SinkMisconfigured(what_to_run(f"{name}: {text}")) if missing else None
    kind = SQLITE.get(code & 0xFF)
    if kind is None:
        return None
    if kind is MessageRejected:
        return MessageRejected(_sqlite_reason(name, text), error_class=name, detail=text)
    return kind(f"{name}: {text}")


def what_to_run(text: str) -> str:
    """Our tables are made by us; a handler's own are not."""
    return f"{text}; run `forebay migrate`" if _OURS.search(text) else text


# "CHECK constraint failed: positive", "NOT NULL constraint failed: messages.key"
_SQLITE_CONSTRAINT: dict[str, Callable[[str], str]] = {
    "SQLITE_CONSTRAINT_CHECK": lambda what: f"constraint {what}",
    "SQLITE_CONSTRAINT_NOTNULL": lambda what: f"column {what}",
    "SQLITE_CONSTRAINT_UNIQUE": lambda what: f"column {what}",
    "SQLITE_CONSTRAINT_PRIMARYKEY": lambda what: f"column {what}",
}


def _sqlite_reason(name: str, text: str) -> str:
    describe = _SQLITE_CONSTRAINT.get(name)
    _, found, what = text.partition("constraint failed: ")
    return f"{name}, {describe(what)}" if describe and found else name


def _one_line(text: str) -> str:
    return " ".join(text.split())
