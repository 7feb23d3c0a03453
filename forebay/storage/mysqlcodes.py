"""What error codes of MySQL and MariaDB mean. They share them, but for a few that only one of them has."""

from __future__ import annotations

import re

import pymysql
from pymysql.constants import CR, ER

from forebay.errors import ForebayError, MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.storage.classify import TransientError, what_to_run

MYSQL: dict[int, type[ForebayError]] = {
    # The driver's own: no connection, or it ended.
    0: SinkUnavailable,  # used after it was closed
    2001: SinkUnavailable,
    2002: SinkUnavailable,
    2003: SinkUnavailable,  # refused, unknown host, timed out
    2005: SinkUnavailable,
    2006: SinkUnavailable,  # gone away
    2012: SinkUnavailable,
    2013: SinkUnavailable,  # lost while it worked, also in the middle of COMMIT: the batch is idempotent
    2014: SinkUnavailable,
    2026: SinkMisconfigured,  # TLS
    2055: SinkUnavailable,
    2059: SinkMisconfigured,  # authentication plugin
    2061: SinkMisconfigured,
    # The server as a whole.
    3: SinkUnavailable,  # writing a file failed
    20: SinkUnavailable,  # disk full
    1020: TransientError,  # the row has changed since it was read
    1021: SinkUnavailable,  # disk full
    1026: SinkUnavailable,
    1030: SinkUnavailable,  # the storage engine's: mostly the disk
    1037: SinkUnavailable,
    1038: SinkUnavailable,
    1040: SinkUnavailable,  # too many connections
    1041: SinkUnavailable,
    1047: SinkUnavailable,  # a Galera node that is not part of its cluster
    1053: SinkUnavailable,  # shutting down
    1077: SinkUnavailable,
    1079: SinkUnavailable,
    1114: SinkUnavailable,  # the table is full: the disk, most of the time
    1129: SinkUnavailable,  # this host failed too often
    1135: SinkUnavailable,
    1152: SinkUnavailable,
    1158: SinkUnavailable,
    1159: SinkUnavailable,
    1160: SinkUnavailable,
    1161: SinkUnavailable,
    1180: SinkUnavailable,  # an error in COMMIT
    1184: SinkUnavailable,
    1197: SinkUnavailable,  # binary log cache too small for the transaction
    1203: SinkUnavailable,  # too many connections of this user
    1226: SinkUnavailable,  # a limit of this user
    1290: SinkUnavailable,  # --read-only
    1317: SinkUnavailable,  # ended by an operator
    1792: SinkUnavailable,  # read-only transaction
    1836: SinkUnavailable,  # read-only mode
    1927: SinkUnavailable,  # connection ended by an operator
    1969: SinkUnavailable,  # MariaDB's max_statement_time
    3024: SinkUnavailable,  # MySQL's max_execution_time
    3032: SinkUnavailable,  # offline mode
    3168: SinkUnavailable,
    4031: SinkUnavailable,  # idle for too long
    # Two writers met. A deadlock has rolled back everything, savepoints included.
    1205: TransientError,
    1213: TransientError,
    1412: TransientError,  # the table was altered meanwhile
    1614: TransientError,
    1615: TransientError,
    1637: TransientError,
    3101: TransientError,  # rolled back by group replication
    3572: TransientError,
    # An operator must act.
    126: SinkMisconfigured,
    127: SinkMisconfigured,
    144: SinkMisconfigured,
    145: SinkMisconfigured,
    1034: SinkMisconfigured,  # broken table or index
    1035: SinkMisconfigured,
    1036: SinkMisconfigured,  # a read-only table
    1044: SinkMisconfigured,  # no access to the database
    1045: SinkMisconfigured,  # wrong user or password
    1046: SinkMisconfigured,
    1049: SinkMisconfigured,  # no such database
    1050: SinkMisconfigured,
    1051: SinkMisconfigured,
    1054: SinkMisconfigured,  # no such column
    1064: SinkMisconfigured,  # syntax
    1099: SinkMisconfigured,
    1100: SinkMisconfigured,
    1109: SinkMisconfigured,
    1130: SinkMisconfigured,  # not from this host
    1136: SinkMisconfigured,
    1142: SinkMisconfigured,  # no privilege on the table
    1143: SinkMisconfigured,  # nor the column
    1146: SinkMisconfigured,  # no such table
    1194: SinkMisconfigured,
    1195: SinkMisconfigured,
    1227: SinkMisconfigured,
    1231: SinkMisconfigured,
    1251: SinkMisconfigured,
    1305: SinkMisconfigured,  # no such procedure; a savepoint that is gone is told apart below
    1356: SinkMisconfigured,
    1364: SinkMisconfigured,  # a column without default that the statement does not name
    1370: SinkMisconfigured,
    1449: SinkMisconfigured,
    1524: SinkMisconfigured,
    1665: SinkMisconfigured,  # binlog_format = STATEMENT does not go with READ COMMITTED
    1698: SinkMisconfigured,
    1820: SinkMisconfigured,
    1862: SinkMisconfigured,
    1932: SinkMisconfigured,
    3118: SinkMisconfigured,
    3159: SinkMisconfigured,  # only over TLS
    4151: SinkMisconfigured,
    # This row.
    1022: MessageRejected,
    1048: MessageRejected,  # NOT NULL
    1062: MessageRejected,  # unique
    1118: MessageRejected,
    1153: MessageRejected,  # larger than max_allowed_packet; `mysqlconnection` says so before it is sent
    1162: MessageRejected,
    1169: MessageRejected,
    1216: MessageRejected,
    1217: MessageRejected,
    1264: MessageRejected,  # out of range
    1265: MessageRejected,
    1292: MessageRejected,  # no such date or number
    1300: MessageRejected,
    1301: MessageRejected,
    1365: MessageRejected,
    1366: MessageRejected,  # not of the column's type or character set
    1367: MessageRejected,
    1369: MessageRejected,  # WITH CHECK OPTION
    1406: MessageRejected,  # too long
    1411: MessageRejected,
    1416: MessageRejected,
    1425: MessageRejected,
    1426: MessageRejected,
    1441: MessageRejected,
    1451: MessageRejected,
    1452: MessageRejected,  # foreign key
    1526: MessageRejected,  # no partition for it
    1557: MessageRejected,
    1586: MessageRejected,
    1644: MessageRejected,  # SIGNAL in a trigger: the row is not wanted
    1690: MessageRejected,
    1761: MessageRejected,
    1762: MessageRejected,
    1859: MessageRejected,
    3140: MessageRejected,  # not JSON
    3141: MessageRejected,
    3143: MessageRejected,
    3144: MessageRejected,
    3146: MessageRejected,
    3150: MessageRejected,
    3156: MessageRejected,
    3157: MessageRejected,  # JSON too deep
    3730: MessageRejected,
    3819: MessageRejected,  # CHECK on MySQL
    3903: MessageRejected,
    4025: MessageRejected,  # CHECK on MariaDB
}

# The names, which no code tells. They come last in texts whose middle may be a value of the row.
_KEY = re.compile(r" for key '([^']+)'$")
_CONSTRAINT = re.compile(r"^(?:CONSTRAINT `([^`]+)` failed for|Check constraint '([^']+)' is violated)")
_FOREIGN_KEY = re.compile(r"CONSTRAINT `([^`]+)` FOREIGN KEY")
_COLUMN = re.compile(
    r"^(?:Data too long for|Out of range value for|Data truncated for)? ?[Cc]olumn '([^']+)'"
)
_COLUMN_AT_END = re.compile(r" for column (?:'([^']+)'|`[^`]*`\.`[^`]*`\.`([^`]+)`) at row \d+$")

_NAMES: dict[int, tuple[str, re.Pattern[str]]] = {
    1048: ("column", _COLUMN),
    1062: ("key", _KEY),
    1264: ("column", _COLUMN),
    1265: ("column", _COLUMN),
    1292: ("column", _COLUMN_AT_END),
    1366: ("column", _COLUMN_AT_END),
    1406: ("column", _COLUMN),
    1451: ("constraint", _FOREIGN_KEY),
    1452: ("constraint", _FOREIGN_KEY),
    1586: ("key", _KEY),
    3819: ("constraint", _CONSTRAINT),
    4025: ("constraint", _CONSTRAINT),
}


def classify_mysql(error: BaseException | None) -> Exception | None:
    """The error of our tree; None when the code is not known."""
    if not isinstance(error, pymysql.err.Error):
        return None
    code = error.args[0] if error.args else None
    if not isinstance(code, int):
        # The driver refused the value before sending it.
        return MessageRejected(type(error).__name__) if isinstance(error, pymysql.err.DataError) else None
    text = " ".join(str(error.args[1]).split()) if len(error.args) > 1 else ""
    kind = MYSQL.get(code)
    if code == 1305 and "SAVEPOINT" in text:
        # The server has ended the transaction: for a deadlock that a handler kept to itself, or for its DDL.
        kind = TransientError
    if kind is None:
        return None
    name = _ERROR_NAMES.get(code, type(error).__name__)
    if kind is MessageRejected:
        return MessageRejected(_reason(code, name, text), error_class=name, detail=text)
    # These are about the server and its tables, so their text holds no row.
    told = f"{code} {name}: {text or 'the connection is closed'}"
    return kind(what_to_run(told) if code in (1054, 1146) else told)


def _reason(code: int, name: str, text: str) -> str:
    what, pattern = _NAMES.get(code, ("", None))
    found = pattern.search(text) if pattern is not None else None
    named = next(filter(None, found.groups()), "") if found is not None else ""
    return f"{code} {name}, {what} {named}" if named else f"{code} {name}"


_ERROR_NAMES: dict[int, str] = {
    **{value: f"ER_{name}" for name, value in vars(ER).items() if isinstance(value, int)},
    **{value: name for name, value in vars(CR).items() if isinstance(value, int)},
    # Those that the driver does not know.
    1290: "ER_OPTION_PREVENTS_STATEMENT",
    1644: "ER_SIGNAL_EXCEPTION",
    1836: "ER_READ_ONLY_MODE",
    1927: "ER_CONNECTION_KILLED",
    1969: "ER_STATEMENT_TIMEOUT",
    3024: "ER_QUERY_TIMEOUT",
    3140: "ER_INVALID_JSON_TEXT",
    3819: "ER_CHECK_CONSTRAINT_VIOLATED",
    4031: "ER_CLIENT_INTERACTION_TIMEOUT",
}
