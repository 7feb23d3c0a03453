"""
Migrations on MySQL and MariaDB, where every DDL statement commits by itself.

A migration that was killed half-way is begun again at its step, whose first
statements have been done. So each statement is skipped when what it makes is there;
a table of the same name and other columns is somebody else's, and stops it.

Our tables are utf8mb4 and are compared byte by byte, whatever the database's
defaults: keys that differ only in case or accents are different keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import sqlalchemy as sa
from alembic.ddl.mysql import MySQLImpl
from alembic.runtime.migration import MigrationContext

from forebay.errors import SinkMisconfigured, SinkUnavailable
from forebay.storage.mysqlconnection import (
    MySQLConnection,
    set_lock_timeout,
    set_statement_timeout,
)
from forebay.storage.settings import DatabaseSettings

_OPTIONS = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


@contextmanager
def migrating(connection: sa.Connection, settings: DatabaseSettings, lock_timeout: float) -> Iterator[None]:
    """
    The turn of this process among those that migrate the same database.

    Raises:
        SinkUnavailable: the turn did not come within `lock_timeout` seconds.
    """
    driver = cast(MySQLConnection, connection.connection.driver_connection)
    driver.wait_at_most(None)  # an index may take long to build
    set_statement_timeout(driver, 0)
    set_lock_timeout(driver, lock_timeout)
    name = connection.exec_driver_sql("SELECT database()").scalar_one()
    # The server's locks are for all its databases, and their names are short.
    lock = "forebay-" + hashlib.sha256(name.encode()).hexdigest()[:32]
    if connection.exec_driver_sql("SELECT GET_LOCK(%s, %s)", (lock, lock_timeout)).scalar_one() != 1:
        raise SinkUnavailable(f"another `forebay migrate` has been at work for {lock_timeout:g} s")
    try:
        yield
    finally:
        # A connection that is dead has lost its locks.
        if not connection.invalidated and driver.open:
            connection.exec_driver_sql("SELECT RELEASE_LOCK(%s)", (lock,))
            set_statement_timeout(driver, settings.statement_timeout)
            set_lock_timeout(driver, settings.lock_timeout)
            driver.wait_at_most(settings.statement_timeout + 5.0)


class RepeatableDDL(MySQLImpl):
    """Alembic's DDL for MySQL, without what has been done. Not registered: only our migrations use it."""

    @classmethod
    def install(cls, context: MigrationContext) -> None:
        assert context.connection is not None
        context.impl = cls(
            context.dialect, context.connection, context.as_sql, context.impl.transactional_ddl,
            context.output_buffer, context.opts,
        )  # fmt: skip

    def create_table(self, table: sa.Table, **kw: Any) -> None:
        for option, value in _OPTIONS.items():
            table.kwargs.setdefault(option, value)
        there = self._columns(table.name)
        if there and there != {column.name for column in table.columns}:
            raise SinkMisconfigured(
                f"a table {table.name} with other columns already exists in this database and is not"
                " Forebay's; give Forebay a database of its own, or rename that table"
            )
        indexes = list(table.indexes)
        if not there:
            # One by one below: an index may be what is missing.
            table.indexes.clear()
            super().create_table(table, **kw)
        for index in indexes:
            self.create_index(index)

    def create_index(self, index: sa.Index, **kw: Any) -> None:
        assert index.table is not None
        if index.name not in {i["name"] for i in self._inspector().get_indexes(index.table.name)}:
            super().create_index(index, **kw)

    def add_column(self, table_name: str, column: sa.Column[Any], **kw: Any) -> None:
        if column.name not in self._columns(table_name):
            super().add_column(table_name, column, **kw)

    def drop_column(self, table_name: str, column: sa.Column[Any], **kw: Any) -> None:
        if column.name in self._columns(table_name):
            super().drop_column(table_name, column, **kw)

    def drop_table(self, table: sa.Table, **kw: Any) -> None:
        if self._columns(table.name):
            super().drop_table(table, **kw)

    def drop_index(self, index: sa.Index, **kw: Any) -> None:
        assert index.table is not None
        if index.name in {i["name"] for i in self._inspector().get_indexes(index.table.name)}:
            super().drop_index(index, **kw)

    def _inspector(self) -> sa.Inspector:
        assert self.connection is not None
        return sa.inspect(self.connection)  # a new one: they remember

    def _columns(self, table: str) -> set[str]:
        inspector = self._inspector()
        return {c["name"] for c in inspector.get_columns(table)} if inspector.has_table(table) else set()
