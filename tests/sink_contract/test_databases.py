"""The database sink and the handler sink keep the contract on every database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from consumers.mapping_settings import TableSettings
from consumers.settings import QueueSettings
from consumers.sinks import python
from consumers.sinks.factory import make_sink
from forebay import Message
from forebay.sinks import Sink
from forebay.testing.sink_contract import SinkContract, SinkHarness
from tests.servers.mariadb import MariaDB
from tests.servers.postgres import Postgres
from tests.sink_contract.destinations import (
    POISON,
    Destination,
    MariaDBDatabase,
    PostgresDatabase,
    SQLiteFile,
    renamed,
)


def record(message: Message, db: Connection) -> None:
    """A handler as a user would write it."""
    db.execute(
        sa.text("INSERT INTO effects (id, body) VALUES (:id, :body)"),
        {"id": message.id, "body": message.body},
    )


def record_all(messages: list[Message], db: Connection) -> None:
    for message in messages:
        record(message, db)


async def record_soon(message: Message, db: Connection) -> None:
    record(message, db)


class DatabaseHarness(SinkHarness):
    poison = POISON

    def __init__(self, destination: Destination, settings: QueueSettings) -> None:
        self.destination = destination
        self.settings = settings
        self.strange = destination.strange
        self.table = "messages" if settings.handler is None else "effects"
        if settings.table is not None:
            self.table, self.takes = settings.table.name, "json objects"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Sink]:
        database = self.destination.connect()
        sink = make_sink("contract", self.settings, database)
        try:
            yield sink
        finally:
            await sink.close()
            database.dispose()

    async def stored(self, ids: Sequence[str]) -> list[tuple[str, bytes]]:
        database = self.destination.connect()
        query = sa.text(f"SELECT id, body FROM {self.table} WHERE id IN :ids")
        query = query.bindparams(sa.bindparam("ids", expanding=True))
        with database.read() as db:
            found = [(str(row.id), bytes(row.body)) for row in db.execute(query, {"ids": list(ids)})]
        database.dispose()
        return found

    @asynccontextmanager
    async def misconfigured(self) -> AsyncIterator[None]:
        with renamed(self.destination.connect(), self.table):
            yield

    def outage(self) -> AbstractAsyncContextManager[None]:
        return self.destination.outage()


MAPPED = {
    "name": "mapped",
    "columns": {
        "id": {"from": "message:id"}, "body": {"from": "message:body"}, "key": {"from": "message:key"},
        "über": {"from": "header:über"}, "n": {"from": "/n"},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a batch may take longer than what is given to one; here all of it is to be tried."""
    monkeypatch.setattr(python, "BUDGET", 60.0)


SINKS = {
    "database": QueueSettings(),
    "handler": QueueSettings(handler=f"{__name__}:record"),
    "batch_handler": QueueSettings(handler=f"{__name__}:record_all"),
    "async_handler": QueueSettings(handler=f"{__name__}:record_soon"),
    "table": QueueSettings(sink="table", table=TableSettings.model_validate(MAPPED)),
    "upsert": QueueSettings(
        sink="table", table=TableSettings.model_validate(MAPPED | {"on_conflict": "update"})
    ),
}


@pytest.fixture(scope="module")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> SQLiteFile:
    return SQLiteFile(tmp_path_factory.mktemp("sinks") / "forebay.db")


@pytest.fixture(scope="module")
def postgres_database(postgres: Postgres) -> PostgresDatabase:
    return PostgresDatabase(postgres, postgres.create_database())


@pytest.fixture(scope="module")
def mariadb_database(mariadb: MariaDB) -> MariaDBDatabase:
    return MariaDBDatabase(mariadb, mariadb.create_database())


@pytest.mark.parametrize("kind", SINKS)
class TestSQLite(SinkContract):
    @pytest.fixture
    def harness(self, kind: str, sqlite_file: SQLiteFile) -> SinkHarness:
        return DatabaseHarness(sqlite_file, SINKS[kind])


@pytest.mark.parametrize("kind", ["database", "handler", "batch_handler", "table", "upsert"])
class TestPostgreSQL(SinkContract):
    @pytest.fixture
    def harness(self, kind: str, postgres_database: PostgresDatabase) -> SinkHarness:
        return DatabaseHarness(postgres_database, SINKS[kind])


@pytest.mark.parametrize("kind", ["database", "handler", "batch_handler", "table", "upsert"])
class TestMariaDB(SinkContract):
    @pytest.fixture
    def harness(self, kind: str, mariadb_database: MariaDBDatabase) -> SinkHarness:
        return DatabaseHarness(mariadb_database, SINKS[kind])
