"""What differs by database when rows go into a mapped table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import sqlalchemy as sa

from forebay.brokers.api import Delivery
from forebay.storage.mapping.description import Description
from forebay.storage.mapping.plan import Plan
from forebay.storage.mapping.rows import Rows
from forebay.storage.mapping.spec import Kind, TableSpec


class KnownAlready(Exception):
    """One of the messages was processed before; which one is for the caller to find out."""


class Writer(Protocol):
    """Writes rows as one plan wants them."""

    overlaps_from: float
    """How many messages are worth `overlapped`; infinity where the driver cannot."""

    def overlapped(
        self, connection: sa.Connection, batch: Sequence[Delivery], make: Callable[[Sequence[Delivery]], Rows]
    ) -> None:
        """
        As `at_once`, in parts: the server works on one part while `make` makes the rows of the next.

        What `make` raises is raised; the transaction is then to be rolled back.
        """
        ...

    def at_once(self, connection: sa.Connection, rows: Rows) -> None:
        """
        Record these messages, whose ids are distinct, as processed and insert their rows; or raise.

        An id that is recorded already is an error here. On PostgreSQL it is a single statement.
        """
        ...

    def insert(self, connection: sa.Connection, rows: Rows) -> None:
        """Insert the rows only. Of rows with equal conflict columns in it, the last one counts."""
        ...


class MappingDialect(Protocol):
    """`forebay.storage.mapping.postgresql` and its like have these."""

    def describe(self, connection: sa.Connection, spec: TableSpec) -> Description | None:
        """The table as it is now; None if there is none of the name."""
        ...

    def writer(self, plan: Plan) -> Writer: ...

    def quoted(self, name: str) -> str:
        """An identifier as SQL has it."""
        ...

    def column_type(self, kind: Kind, *, key: bool) -> str:
        """The type that a column of this kind gets when we make it; `key`: an index will be on it."""
        ...

    def table_options(self) -> str:
        """What stands after the columns of a table that we make."""
        ...

    def locked(self, connection: sa.Connection) -> AbstractContextManager[None]:
        """In this context, which is one transaction where the database can, nobody else makes tables here."""
        ...


def mapping_dialect(dialect: str) -> MappingDialect:
    if dialect == "postgresql":
        from forebay.storage.mapping import postgresql

        return postgresql
    if dialect == "mysql":
        from forebay.storage.mapping import mysql

        return mysql
    from forebay.storage.mapping import sqlite

    return sqlite


def last_of_each_key(plan: Plan, rows: Rows) -> Rows:
    """
    Without the rows that a later one replaces.

    A server refuses to update one row twice in a statement (21000 on PostgreSQL).
    """
    if plan.spec.on_conflict != "update":
        return rows
    names = [c.name for c in plan.columns]
    keys = list(zip(*(rows.columns[names.index(c)] for c in plan.conflict), strict=True))
    if len(set(keys)) == len(keys):
        return rows
    # NULL equals nothing: rows with one in their key are all different.
    last = {key if None not in key else (i, *key): i for i, key in enumerate(keys)}
    return rows.some(sorted(last.values()))


def updated(plan: Plan) -> list[str]:
    """The columns that `on_conflict = "update"` sets."""
    return [c.name for c in plan.columns if c.name not in plan.conflict]
