"""
Mapped tables on MySQL and MariaDB: one INSERT of many rows, its text built by us.

As in `forebay.storage.mysql`, and for the same reasons. What ON DUPLICATE KEY is
about, every unique index of the table, a mapping cannot choose: tables with a second
one are refused for `on_conflict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from forebay.brokers.api import Delivery
from forebay.storage.classify import TransientError
from forebay.storage.dead_letters import resolve
from forebay.storage.mapping.description import Column, Description
from forebay.storage.mapping.dialect import KnownAlready, last_of_each_key, updated
from forebay.storage.mapping.plan import Plan
from forebay.storage.mapping.rows import Rows
from forebay.storage.mapping.spec import Kind, TableSpec
from forebay.storage.mysql import claim, driver, parts, rows_of
from forebay.storage.mysql import quoted as literal
from forebay.storage.sqlite import time_text

_COLUMNS = b"""
SELECT COLUMN_NAME, COLUMN_TYPE, DATA_TYPE, IS_NULLABLE, COLUMN_DEFAULT, EXTRA, CHARACTER_MAXIMUM_LENGTH,
  CHARACTER_OCTET_LENGTH, NUMERIC_PRECISION, NUMERIC_SCALE, DATETIME_PRECISION, PRIVILEGES
FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %b AND TABLE_NAME = %b ORDER BY ORDINAL_POSITION
"""

# SUB_PART: an index on the beginnings of texts does not say which row it is.
_UNIQUE = b"""
SELECT INDEX_NAME, COLUMN_NAME, SUB_PART FROM information_schema.STATISTICS
WHERE TABLE_SCHEMA = %b AND TABLE_NAME = %b AND NON_UNIQUE = 0 ORDER BY INDEX_NAME, SEQ_IN_INDEX
"""

_ENGINE = b"SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = %b AND TABLE_NAME = %b"

# MariaDB's JSON is a text with a check.
_JSON = b"""
SELECT CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS
WHERE CONSTRAINT_SCHEMA = %b AND TABLE_NAME = %b AND CHECK_CLAUSE LIKE 'json_valid(%%'
"""

_KINDS: dict[str, Kind] = {
    "tinyint": "integer", "smallint": "integer", "mediumint": "integer", "int": "integer",
    "bigint": "integer", "float": "float", "double": "float", "decimal": "decimal", "char": "text",
    "varchar": "text", "tinytext": "text", "text": "text", "mediumtext": "text", "longtext": "text",
    "datetime": "timestamp", "timestamp": "timestamp", "date": "date", "time": "time", "uuid": "uuid",
    "json": "json", "binary": "bytes", "varbinary": "bytes", "tinyblob": "bytes", "blob": "bytes",
    "mediumblob": "bytes", "longblob": "bytes",
}  # fmt: skip

_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}

_TYPES: dict[Kind, str] = {
    "text": "LONGTEXT", "integer": "BIGINT", "float": "DOUBLE", "decimal": "DECIMAL(65, 30)",
    "boolean": "BOOLEAN", "timestamp": "DATETIME(6)", "date": "DATE", "time": "TIME(6)",
    "uuid": "VARCHAR(36)", "json": "JSON", "bytes": "LONGBLOB",
}  # fmt: skip

_KEY_TYPES: dict[Kind, str] = {"text": "VARCHAR(255)", "bytes": "VARBINARY(255)"}

_LONGEST = 4 * 2**20
"""Bytes of one statement, where the server allows as much."""

_PATIENCE = 60
"""Seconds that one who makes tables waits for another."""


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def table_name(spec: TableSpec) -> str:
    return f"{quoted(spec.schema)}.{quoted(spec.name)}" if spec.schema else quoted(spec.name)


def column_type(kind: Kind, *, key: bool) -> str:
    return _KEY_TYPES.get(kind, _TYPES[kind]) if key else _TYPES[kind]


def table_options() -> str:
    return " ENGINE=InnoDB CHARACTER SET utf8mb4"


@contextmanager
def locked(connection: sa.Connection) -> Iterator[None]:
    # It commits by itself whatever makes a table, so the lock is the session's, and given back.
    ask = b"SELECT GET_LOCK('forebay_mapped_tables', %d)" % _PATIENCE
    if rows_of(driver(connection), ask) != ((1,),):
        raise TransientError("another process is making tables")
    try:
        yield
    finally:
        rows_of(driver(connection), b"SELECT RELEASE_LOCK('forebay_mapped_tables')")


def describe(connection: sa.Connection, spec: TableSpec) -> Description | None:
    schema = literal(spec.schema.encode()) if spec.schema else b"DATABASE()"
    name = literal(spec.name.encode())
    server = driver(connection)
    # Whole statements of ours: a % in a name must not be taken for a place to fill in.
    found = rows_of(server, _COLUMNS % (schema, name))
    if not found:
        return None
    unique: dict[str, list[tuple[str, object]]] = {}
    for index, column, part in rows_of(server, _UNIQUE % (schema, name)):
        unique.setdefault(index, []).append((column, part))
    whole = {
        index: tuple(column for column, _ in columns)
        for index, columns in unique.items()
        if all(column is not None and part is None for column, part in columns)
    }
    ((engine,),) = rows_of(server, _ENGINE % (schema, name)) or ((None,),)
    documents = _documents(server, schema, name)
    key = whole.get("PRIMARY", ())
    others = tuple(frozenset(columns) for index, columns in whole.items() if index != "PRIMARY")
    return Description(
        columns=tuple(_column(row, documents) for row in found),
        unique=((frozenset(key),) if key else ()) + others,
        primary_key=key,
        any_unique_decides=True,
        problem=""
        if engine in ("InnoDB", None)
        else f"its engine {engine} has no transactions; ALTER TABLE {spec.full_name} ENGINE=InnoDB",
    )


def _documents(server: Any, schema: bytes, name: bytes) -> set[str]:
    if b"MariaDB" not in server.get_server_info().encode():
        return set()
    clauses = [row[0] for row in rows_of(server, _JSON % (schema, name))]
    return {c.removeprefix("json_valid(`").removesuffix("`)").replace("``", "`") for c in clauses}


def _column(row: tuple[Any, ...], documents: set[str]) -> Column:
    (
        name, column_type, base, nullable, default, extra, characters, octets, precision, scale, digits,
        privileges,
    ) = row  # fmt: skip
    kind = _KINDS.get(base)
    low = high = None
    also: tuple[Kind, ...] = ()
    if base in _BITS:
        unsigned = "unsigned" in column_type
        bits = _BITS[base] - (not unsigned)
        low, high = (0 if unsigned else -(2**bits)), 2**bits - 1
        if column_type == "tinyint(1)":  # how BOOLEAN is kept
            kind, also = "boolean", ("integer",)
    if name in documents:
        kind, also = "json", ("text",)
    is_text = kind == "text"
    extra = extra.upper()
    return Column(
        name=name, type_name=column_type, base=base, kind=kind, nullable=nullable == "YES",
        has_default=default is not None or "AUTO_INCREMENT" in extra or "DEFAULT_GENERATED" in extra,
        generated="GENERATED" in extra.replace("DEFAULT_GENERATED", ""),
        writable="insert" in privileges.lower(),
        low=low, high=high, also=also,
        length=characters if base in ("char", "varchar") else None,
        max_bytes=octets if is_text and base not in ("char", "varchar") else None,
        precision=precision if kind == "decimal" else None,
        scale=scale if kind == "decimal" else None,
        single=base == "float", second_digits=digits,
    )  # fmt: skip


class MySQLWriter:
    overlaps_from: float = math.inf

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._literals = [_LITERALS[c.kind] if c.kind else _text for c in plan.columns]
        names = ", ".join(quoted(c.name) for c in plan.columns)
        self._start = f"INSERT INTO {table_name(plan.spec)} ({names}) VALUES ".encode()  # noqa: S608  # quoted
        self._end = _on_duplicate_key(plan).encode()

    def overlapped(
        self, connection: sa.Connection, batch: Sequence[Delivery], make: Callable[[Sequence[Delivery]], Rows]
    ) -> None:
        raise NotImplementedError

    def at_once(self, connection: sa.Connection, rows: Rows) -> None:
        ids = [d.message.id for d in rows.deliveries]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        destination = self._plan.spec.destination
        new = claim(connection, destination, [ids[i] for i in order], [rows.digests[i] for i in order])
        if len(new) < len(ids):
            raise KnownAlready
        resolve(connection, destination, {d.message.id: d.message.body for d in rows.deliveries})
        self.insert(connection, rows)

    def insert(self, connection: sa.Connection, rows: Rows) -> None:
        rows = last_of_each_key(self._plan, rows)
        server = driver(connection)
        longest = min(_LONGEST, server.longest_statement) - len(self._start) - len(self._end) - 1
        for part in parts([d.message.id for d in rows.deliveries], self._rows(rows), longest):
            server.query(self._start + b",".join(part.values()) + self._end)

    def _rows(self, rows: Rows) -> list[bytes]:
        columns = [
            [b"NULL" if v is None else write(v) for v in values]
            for write, values in zip(self._literals, rows.columns, strict=True)
        ]
        return [b"(" + b",".join(values) + b")" for values in zip(*columns, strict=True)]


def writer(plan: Plan) -> MySQLWriter:
    return MySQLWriter(plan)


def _on_duplicate_key(plan: Plan) -> str:
    if plan.spec.on_conflict == "error":
        return ""
    changed = updated(plan)
    if plan.spec.on_conflict == "ignore" or not changed:
        # Not INSERT IGNORE, which would also store what does not fit, cut to size.
        same = quoted(plan.conflict[0])
        return f" ON DUPLICATE KEY UPDATE {same} = {same}"
    return " ON DUPLICATE KEY UPDATE " + ", ".join(f"{quoted(c)} = VALUES({quoted(c)})" for c in changed)


def _text(value: Any) -> bytes:
    return literal(str(value).encode())


def _number(value: Any) -> bytes:
    return b"%d" % value


_LITERALS: dict[Kind, Callable[[Any], bytes]] = {
    "integer": _number,
    "boolean": _number,
    "float": lambda value: repr(value).encode(),
    "decimal": lambda value: str(value).encode(),
    "text": lambda value: literal(value.encode()),
    "uuid": lambda value: b"'%b'" % value.encode(),
    "timestamp": lambda value: b"'%b'" % time_text(value).encode(),
    "date": lambda value: b"'%b'" % value.isoformat().encode(),
    "time": lambda value: b"'%b'" % value.isoformat().encode(),
    "json": lambda value: literal(value if type(value) is bytes else value.encode()),
    "bytes": lambda value: b"_binary" + literal(value),
}
