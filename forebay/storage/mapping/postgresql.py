"""Mapped tables on PostgreSQL: one statement per batch, one array parameter per column."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa

from forebay.brokers.api import Delivery
from forebay.storage import pgarrays
from forebay.storage.mapping.description import Column, Description
from forebay.storage.mapping.dialect import last_of_each_key, updated
from forebay.storage.mapping.plan import Plan
from forebay.storage.mapping.rows import Rows, digest
from forebay.storage.mapping.spec import Kind, TableSpec
from forebay.storage.postgresql import cursor

# Reading pg_class makes the session take note of what others have made meanwhile; to_regclass alone does not.
_FIND = "SELECT oid FROM pg_class WHERE oid = to_regclass(%s)"

# One domain deep; what is deeper is judged by the server.
_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, -1),
  COALESCE(b.typname, t.typname),
  CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END,
  NOT (a.attnotnull OR t.typnotnull), a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL,
  a.attgenerated <> '' OR a.attidentity = 'a',
  has_column_privilege(a.attrelid, a.attnum, 'INSERT')
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type b ON b.oid = t.typbasetype AND t.typtype = 'd'
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

_UNIQUE = """
SELECT i.indisprimary, array(
  SELECT a.attname FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, n)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.n)::text[]
FROM pg_index i
WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate
  AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indisprimary DESC, i.indexrelid
"""

# Rights on columns count too, and are asked for with each column.
_PRIVILEGES = """
SELECT has_any_column_privilege(%s::oid, 'INSERT'), has_any_column_privilege(%s::oid, 'UPDATE'),
  has_any_column_privilege(%s::oid, 'SELECT')
"""

_LIMITS = {"int2": 2**15, "int4": 2**31, "int8": 2**63}

_KINDS: dict[str, Kind] = {
    "int2": "integer", "int4": "integer", "int8": "integer", "float4": "float", "float8": "float",
    "numeric": "decimal", "bool": "boolean", "text": "text", "varchar": "text", "bpchar": "text",
    "citext": "text", "timestamptz": "timestamp", "timestamp": "timestamp", "date": "date",
    "time": "time", "uuid": "uuid", "json": "json", "jsonb": "json", "bytea": "bytes",
}  # fmt: skip

_TYPES: dict[Kind, str] = {
    "text": "text", "integer": "bigint", "float": "double precision", "decimal": "numeric",
    "boolean": "boolean", "timestamp": "timestamptz", "date": "date", "time": "time", "uuid": "uuid",
    "json": "jsonb", "bytes": "bytea",
}  # fmt: skip

# Any constant that other programs are unlikely to lock; not that of `forebay migrate`, which may take long.
_ADVISORY_LOCK = 0x666F7265746162

# As `forebay.storage.dead_letters.resolve`, in the same statement as the rows: the server looks whether any
# dead letter is open once, and skips the rest if none is.
_CLAIM = """
WITH given AS MATERIALIZED (
  SELECT u.id, u.digest FROM unnest(%b::uuid[], %b::bytea[]) AS u (id, digest)
),
claimed AS (
  INSERT INTO processed_messages (destination, id, digest, processed_at)
  SELECT %b::text, g.id, g.digest, now() FROM given AS g
  RETURNING 1
),
resolved AS (
  UPDATE dead_letters AS d SET status = 'resolved', changed_at = now()
  FROM given AS g
  WHERE d.id = g.id AND d.destination = %b::text AND d.status IN ('dead', 'redriving')
    AND EXISTS (SELECT FROM dead_letters WHERE status IN ('dead', 'redriving'))
    AND sha256(d.body) = g.digest
)
"""

_ROWS_PER_PART = 250
"""Of an overlapped write: fewer make the server plan more often than the overlap is worth."""


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def table_name(spec: TableSpec) -> str:
    return f"{quoted(spec.schema)}.{quoted(spec.name)}" if spec.schema else quoted(spec.name)


def column_type(kind: Kind, *, key: bool) -> str:
    return _TYPES[kind]


def table_options() -> str:
    return ""


@contextmanager
def locked(connection: sa.Connection) -> Iterator[None]:
    # Held to the end of the transaction.
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    yield


def describe(connection: sa.Connection, spec: TableSpec) -> Description | None:
    with cursor(connection) as cur:
        (oid,) = cur.execute(_FIND, [table_name(spec)]).fetchone() or (None,)
        if oid is None:
            return None
        columns = cur.execute(_COLUMNS, [oid]).fetchall()
        unique = cur.execute(_UNIQUE, [oid]).fetchall()
        rights = cur.execute(_PRIVILEGES, [oid, oid, oid]).fetchone() or ()
    names = ("INSERT", "UPDATE", "SELECT")
    return Description(
        columns=tuple(_column(*row) for row in columns),
        unique=tuple(frozenset(names) for _primary, names in unique),
        primary_key=next((tuple(names) for primary, names in unique if primary), ()),
        missing_privileges=tuple(n for n, given in zip(names, rights, strict=True) if not given),
    )


def _column(
    name: str, type_name: str, cast: str, base: str, modifier: int, nullable: bool, default: bool,
    generated: bool, writable: bool,
) -> Column:  # fmt: skip
    limit = _LIMITS.get(base)
    length = modifier - 4 if base in ("varchar", "bpchar") and modifier >= 4 else None
    precision = scale = None
    if base == "numeric" and modifier >= 4:
        precision = (modifier - 4) >> 16 & 0xFFFF
        # Eleven bits with a sign, since PostgreSQL 15; before it was never negative.
        scale = ((modifier - 4 & 0x7FF) ^ 1024) - 1024
    timed = base in ("timestamptz", "timestamp", "time") and 0 <= modifier <= 6
    return Column(
        name=name, type_name=type_name, base=base if base in _KINDS else cast, kind=_KINDS.get(base),
        nullable=nullable, has_default=default, generated=generated, writable=writable,
        low=None if limit is None else -limit, high=None if limit is None else limit - 1,
        length=length, precision=precision, scale=scale, single=base == "float4", no_nul=base == "jsonb",
        second_digits=modifier if timed else None,
    )  # fmt: skip


Encode = Callable[[Sequence[Any]], pgarrays.BinaryArray]


def _encoding(column: Column) -> tuple[Encode, str, str]:
    """How a column's values become an array, the array's type, and what the elements are cast to."""
    base = column.base
    if base in ("int2", "int4", "int8", "float4", "float8", "bool"):
        return lambda values: pgarrays.numbers(base, values), f"{base}[]", ""
    match base:
        case "text" | "varchar" | "bpchar":
            # Never a cast to the column's own type: that would cut what is too long.
            return pgarrays.strings, "text[]", ""
        case "uuid":
            return pgarrays.optional_uuids, "uuid[]", ""
        case "jsonb":
            return pgarrays.jsonbs, "jsonb[]", ""
        case "json":
            return pgarrays.texts, "text[]", "::json"
        case "bytea":
            return pgarrays.optional_byteas, "bytea[]", ""
        case "timestamptz":
            return lambda values: pgarrays.moments(values, zone=True), "timestamptz[]", ""
        case "timestamp":
            return lambda values: pgarrays.moments(values, zone=False), "timestamp[]", ""
        case "date":
            return pgarrays.dates, "date[]", ""
        case "time":
            return pgarrays.times, "time[]", ""
        case "numeric":
            return _as_strings, "text[]", "::numeric"
    return _as_strings, "text[]", f"::{base}"


def _as_strings(values: Sequence[Any]) -> pgarrays.BinaryArray:
    return pgarrays.strings([None if v is None else str(v) for v in values])


class PostgreSQLWriter:
    overlaps_from: float = 2 * _ROWS_PER_PART

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        encodings = [_encoding(column) for column in plan.columns]
        self._encode = [encode for encode, _, _ in encodings]
        names = ", ".join(quoted(c.name) for c in plan.columns)
        given = ", ".join(f"u.c{n}{cast}" for n, (_, _, cast) in enumerate(encodings))
        aliases = ", ".join(f"c{n}" for n in range(len(encodings)))
        head = f"INSERT INTO {table_name(plan.spec)} ({names})\nSELECT {given} FROM unnest("
        arrays = ", ".join("%b::" + array for _, array, _ in encodings)
        head = f"{_escaped(head)}{arrays}) AS u ({aliases})"
        tail = _escaped(_on_conflict(plan))
        self._insert = f"{head}\n{tail}"
        # Asking for the records makes them be written first, here as everywhere: two who write the same
        # messages wait for each other instead of forming a deadlock.
        self._at_once = "\n".join((_CLAIM, head, "WHERE (SELECT count(*) FROM claimed) >= 0", tail))

    def overlapped(
        self, connection: sa.Connection, batch: Sequence[Delivery], make: Callable[[Sequence[Delivery]], Rows]
    ) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        with cursor(connection) as cur, driver.pipeline():
            digests = [digest(d.message.body) for d in batch]
            cur.execute(_CLAIM + "SELECT 1", self._claim([d.message.id for d in batch], digests))
            for start in range(0, len(batch), _ROWS_PER_PART):
                cur.execute(self._insert, self._arrays(make(batch[start : start + _ROWS_PER_PART])))

    def at_once(self, connection: sa.Connection, rows: Rows) -> None:
        claim = self._claim([d.message.id for d in rows.deliveries], rows.digests)
        with cursor(connection) as cur:
            cur.execute(self._at_once, claim + self._arrays(rows))

    def _claim(self, ids: list[str], digests: list[bytes]) -> list[object]:
        order = sorted(range(len(ids)), key=ids.__getitem__)
        destination = self._plan.spec.destination
        return [
            pgarrays.uuids([ids[i] for i in order]),
            pgarrays.byteas([digests[i] for i in order]),
            destination,
            destination,
        ]

    def insert(self, connection: sa.Connection, rows: Rows) -> None:
        with cursor(connection) as cur:
            cur.execute(self._insert, self._arrays(rows))

    def _arrays(self, rows: Rows) -> list[object]:
        rows = last_of_each_key(self._plan, rows)
        return [encode(values) for encode, values in zip(self._encode, rows.columns, strict=True)]


def writer(plan: Plan) -> PostgreSQLWriter:
    return PostgreSQLWriter(plan)


def _on_conflict(plan: Plan) -> str:
    if plan.spec.on_conflict == "error":
        return ""
    key = ", ".join(quoted(c) for c in plan.conflict)
    changed = updated(plan)
    if plan.spec.on_conflict == "ignore" or not changed:
        return f"ON CONFLICT ({key}) DO NOTHING"
    return f"ON CONFLICT ({key}) DO UPDATE SET " + ", ".join(
        f"{quoted(c)} = excluded.{quoted(c)}" for c in changed
    )


def _escaped(sql: str) -> str:
    return re.sub("%", "%%", sql)
