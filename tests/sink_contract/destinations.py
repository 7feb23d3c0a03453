"""The databases that the sinks under test write to, and how they are taken down."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from forebay.storage.database import Database
from forebay.storage.schema import migrate
from forebay.storage.settings import DatabaseSettings
from tests.servers.postgres import Postgres

IMPATIENT = DatabaseSettings(connect_timeout=2.0, lock_timeout=0.05, pool_size=2)
# Two who write at once must wait for each other and not call it an outage.
PATIENT = IMPATIENT.model_copy(update={"lock_timeout": 2.0})

POISON = b'{"card": "4111111111111111"}'


MORE = "key text, über text, n json"
"""Further columns of the mapped table."""


class Destination(Protocol):
    def connect(self) -> Database: ...
    def outage(self) -> AbstractAsyncContextManager[None]: ...


class SQLiteFile:
    """An SQLite database; while another program holds its lock it is down."""

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
