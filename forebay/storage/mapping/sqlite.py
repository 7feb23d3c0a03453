"""Mapped tables on SQLite."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from forebay.brokers.api import Delivery
from forebay.storage.dead_letters import resolve
from forebay.storage.mapping.description import Column, Description
from forebay.storage.mapping.dialect import last_of_each_key, updated
from forebay.storage.mapping.plan import Plan
from forebay.storage.mapping.rows import Rows
from forebay.storage.mapping.spec import Kind, TableSpec
from forebay.storage.sqlite import time_text

_CLAIM = "INSERT INTO processed_messages (destination, id, digest, processed_at) VALUES (?, ?, ?, ?)"

_TYPE = re.compile(r"\s*([A-Za-z][A-Za-z ]*?)\s*(?:\(\s*([0-9]+)\s*(?:,\s*([0-9]+)\s*)?\))?\s*")

_KINDS: tuple[tuple[str, Kind], ...] = (
    # By what the declared type holds, the first that fits; SQLite itself looks at no more.
    ("BOOL", "boolean"), ("INT", "integer"), ("UUID", "uuid"), ("JSON", "json"), ("CHAR", "text"),
    ("CLOB", "text"), ("TEXT", "text"), ("BLOB", "bytes"), ("BINARY", "bytes"), ("REAL", "float"),
    ("FLOA", "float"), ("DOUB", "float"), ("TIMESTAMP", "timestamp"), ("DATETIME", "timestamp"),
    ("DATE", "date"), ("TIME", "time"), ("NUMERIC", "decimal"), ("DECIMAL", "decimal"),
)  # fmt: skip

_TYPES: dict[Kind, str] = {
    # Exact decimals and documents are text: a column declared NUMERIC keeps 15 digits, and one declared
    # JSON makes numbers of documents that are one.
    "text": "TEXT", "integer": "INTEGER", "float": "REAL", "decimal": "TEXT", "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMP", "date": "DATE", "time": "TIME", "uuid": "TEXT", "json": "TEXT",
    "bytes": "BLOB",
}  # fmt: skip

NUMERIC_DIGITS = 15
"""What a column with numeric affinity keeps of any number."""


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
    yield  # A transaction that writes is the only one from its beginning.


def describe(connection: sa.Connection, spec: TableSpec) -> Description | None:
    schema = f"{quoted(spec.schema)}." if spec.schema else ""
    name = quoted(spec.name)
    found = connection.exec_driver_sql(f"PRAGMA {schema}table_xinfo({name})").all()
    if not found:
        return None
    key = tuple(row.name for row in sorted(found, key=lambda r: r.pk) if row.pk)
    # A primary key that is one integer column fills itself in.
    own_rowid = len(key) == 1
    columns = tuple(
        _column(
            row.name, row.type, bool(row.notnull) or bool(row.pk), row.dflt_value is not None,
            row.hidden in (2, 3), own_rowid and row.pk == 1 and row.type.upper() == "INTEGER",
        )
        for row in found
    )  # fmt: skip
    unique = [frozenset(key)] if key else []
    for index in connection.exec_driver_sql(f"PRAGMA {schema}index_list({name})").all():
        if index.unique and not index.partial:
            info = connection.exec_driver_sql(f"PRAGMA {schema}index_info({quoted(index.name)})").all()
            if all(row.name is not None for row in info):
                unique.append(frozenset(row.name for row in info))
    return Description(columns=columns, unique=tuple(unique), primary_key=key)


def _column(
    name: str, declared: str, required: bool, has_default: bool, generated: bool, fills_itself: bool
) -> Column:
    match = _TYPE.fullmatch(declared)
    upper = declared.upper()
    kind = next((k for part, k in _KINDS if part in upper), None)
    first, second = (match[2], match[3]) if match else (None, None)
    return Column(
        name=name, type_name=declared or "without a type", base=upper.partition("(")[0].strip(),
        kind=kind or ("text" if not declared else None), nullable=not required,
        has_default=has_default or fills_itself, generated=generated,
        length=int(first) if kind == "text" and first else None,
        precision=int(first) if kind == "decimal" and first else None,
        scale=int(second or 0) if kind == "decimal" and first else None,
        digits=NUMERIC_DIGITS if kind == "decimal" else None,
    )  # fmt: skip


class SQLiteWriter:
    overlaps_from: float = math.inf

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._adapt = [_ADAPT.get(c.kind) if c.kind else None for c in plan.columns]
        names = ", ".join(quoted(c.name) for c in plan.columns)
        marks = ", ".join("?" * len(plan.columns))
        insert = f"INSERT INTO {table_name(plan.spec)} ({names}) VALUES ({marks})"  # noqa: S608  # quoted
        self._insert = f"{insert} {_on_conflict(plan)}".strip()

    def overlapped(
        self, connection: sa.Connection, batch: Sequence[Delivery], make: Callable[[Sequence[Delivery]], Rows]
    ) -> None:
        raise NotImplementedError

    def at_once(self, connection: sa.Connection, rows: Rows) -> None:
        now = time_text(datetime.now(UTC))
        destination = self._plan.spec.destination
        ids = [d.message.id for d in rows.deliveries]
        claims = [(destination, i, d, now) for i, d in zip(ids, rows.digests, strict=True)]
        connection.exec_driver_sql(_CLAIM, claims)
        resolve(connection, destination, {d.message.id: d.message.body for d in rows.deliveries})
        self.insert(connection, rows)

    def insert(self, connection: sa.Connection, rows: Rows) -> None:
        connection.exec_driver_sql(self._insert, self._tuples(rows))

    def _tuples(self, rows: Rows) -> list[tuple[Any, ...]]:
        rows = last_of_each_key(self._plan, rows)
        columns = [
            values if adapt is None else [None if v is None else adapt(v) for v in values]
            for adapt, values in zip(self._adapt, rows.columns, strict=True)
        ]
        return list(zip(*columns, strict=True))


def writer(plan: Plan) -> SQLiteWriter:
    return SQLiteWriter(plan)


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


_ADAPT: dict[Kind, Callable[[Any], Any]] = {
    "boolean": int,
    "decimal": str,
    "timestamp": time_text,
    "date": lambda day: day.isoformat(),
    "time": lambda clock: clock.isoformat(),
    "json": lambda document: document.decode(),
}
