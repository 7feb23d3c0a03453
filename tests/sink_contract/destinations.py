"""The databases that the sinks under test write to, and how they are taken down."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from forebay.storage.database import Database
from forebay.storage.schema import migrate
from forebay.storage.settings import DatabaseSettings
from tests.servers.mariadb import MariaDB
from tests.servers.postgres import Postgres

IMPATIENT = DatabaseSettings(connect_timeout=2.0, lock_timeout=0.05, pool_size=2)
# Two who write at once must wait for each other and not call it an outage.
PATIENT = IMPATIENT.model_copy(update={"lock_timeout": 2.0})

POISON = b'{"card": "4111111111111111"}'
STRANGE = b'{"card": "4000056655665556"}'


MORE = "key text, über text, n json"
"""Further columns of the mapped table."""


class Destination(Protocol):
    strange: bytes | None

    def connect(self) -> Database: ...
    def outage(self) -> AbstractAsyncContextManager[None]: ...


@contextmanager
def renamed(database: Database, table: str) -> Iterator[None]:
    """While in this context the table is not where it should be."""
    with database.begin() as db:
        db.exec_driver_sql(f"ALTER TABLE {table} RENAME TO elsewhere")
    try:
        yield
    finally:
        with database.begin() as db:
            db.exec_driver_sql(f"ALTER TABLE elsewhere RENAME TO {table}")
        database.dispose()


class SQLiteFile:
    """An SQLite database; while another program holds its lock it is down."""

    strange: bytes | None = None  # what a trigger raises here is a constraint, and so a rejection

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prepare()

    def connect(self) -> Database:
        return Database(f"sqlite:///{self.path}", IMPATIENT)

    def _prepare(self) -> None:
        database = self.connect()
        migrate(database)
        with database.begin() as db:
            db.execute(sa.text("CREATE TABLE effects (id TEXT, body BLOB)"))
            db.execute(sa.text(f"CREATE TABLE mapped (id TEXT PRIMARY KEY, body BLOB, {MORE})"))
            for table in ("messages", "effects", "mapped"):
                # SQLite cannot add a CHECK to a table that is there.
                db.exec_driver_sql(
                    f"CREATE TRIGGER no_cards_in_{table} BEFORE INSERT ON {table}"
                    f" WHEN NEW.body = x'{POISON.hex()}' BEGIN SELECT RAISE(ABORT, 'no cards'); END"
                )
        database.dispose()

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        lock = sqlite3.connect(self.path, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            lock.close()


class PostgresDatabase:
    """A PostgreSQL database; its server is stopped and started again."""

    strange: bytes | None = STRANGE

    def __init__(self, server: Postgres, url: str) -> None:
        self.server = server
        self.url = url
        database = self.connect()
        migrate(database)
        with database.begin() as db:
            db.execute(sa.text("CREATE TABLE effects (id uuid, body bytea)"))
            db.execute(sa.text(f"CREATE TABLE mapped (id uuid PRIMARY KEY, body bytea, {MORE})"))
            for table in ("messages", "effects", "mapped"):
                db.execute(
                    sa.text(
                        f"ALTER TABLE {table} ADD CONSTRAINT no_cards CHECK (body <> '\\x{POISON.hex()}')"
                    )
                )
                db.exec_driver_sql(
                    f"CREATE FUNCTION strange_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                    f" IF NEW.body = '\\x{STRANGE.hex()}' THEN"
                    " RAISE EXCEPTION USING MESSAGE = encode(NEW.body, 'escape'), ERRCODE = 'ZZ999';"
                    " END IF; RETURN NEW; END $$"
                )
                db.exec_driver_sql(
                    f"CREATE TRIGGER strange BEFORE INSERT ON {table}"
                    f" FOR EACH ROW EXECUTE FUNCTION strange_{table}()"
                )
        database.dispose()

    def connect(self) -> Database:
        return Database(self.url, PATIENT)

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.server.stop, "immediate")
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)


class MariaDBDatabase:
    """A MariaDB database; its server is stopped and started again."""

    strange: bytes | None = None  # what a trigger signals here is a rejection, whatever its code

    def __init__(self, server: MariaDB, url: str) -> None:
        self.server = server
        self.url = url
        database = self.connect()
        migrate(database)
        with database.begin() as db:
            db.execute(sa.text("CREATE TABLE effects (id VARCHAR(36), body LONGBLOB) ENGINE=InnoDB"))
            columns = f"id VARCHAR(36) PRIMARY KEY, body LONGBLOB, {MORE}".replace("key text", "`key` text")
            # MariaDB's own default is latin1, which does not hold every key.
            db.execute(sa.text(f"CREATE TABLE mapped ({columns}) ENGINE=InnoDB CHARACTER SET utf8mb4"))
            for table in ("messages", "effects", "mapped"):
                db.exec_driver_sql(
                    f"ALTER TABLE {table} ADD CONSTRAINT no_cards CHECK (body <> x'{POISON.hex()}')"
                )
        database.dispose()

    def connect(self) -> Database:
        return Database(self.url, PATIENT)

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.server.stop, "immediate")
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)
