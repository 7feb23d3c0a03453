"""What only SQLite does: a file that is missing, full, read-only or something else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from forebay.errors import MessageRejected, SinkMisconfigured, SinkUnavailable
from forebay.storage.classify import SQLITE, TransientError, classify
from forebay.storage.database import Database
from forebay.storage.messages import MessageStore
from forebay.storage.schema import migrate
from tests.unit.storage.deliveries import delivery, stored_count


def with_pragma(database: Database, pragma: str) -> None:
    """Run `pragma` on every connection from now on."""

    def run(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA {pragma}")

    database.dispose()
    event.listen(database.engine, "connect", run)


def test_commits_are_on_the_disk_when_they_return(sqlite_database: Database) -> None:
    """A rollback journal that is truncated, and the truncation synced: docs/decisions/0003-storage.md."""
    with sqlite_database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "truncate"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL


def test_a_missing_file_is_a_misconfiguration_and_is_not_created(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    for call in (database.ping, lambda: MessageStore(database).write([delivery()])):
        with pytest.raises(SinkMisconfigured, match="does not exist; run `forebay migrate`"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_a_misconfiguration(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database, but long enough to be one" * 100)
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(SinkMisconfigured, match="SQLITE_NOTADB"):
        MessageStore(database).write([delivery()])


def test_a_missing_table_is_a_misconfiguration_that_names_the_command(sqlite_database: Database) -> None:
    with sqlite_database.begin() as connection:
        connection.exec_driver_sql("DROP TABLE messages")
    with pytest.raises(SinkMisconfigured, match="no such table: messages; run `forebay migrate`"):
        MessageStore(sqlite_database).write([delivery()])


def test_a_handlers_own_missing_table_is_not_ours_to_create(sqlite_database: Database) -> None:
    with (
        pytest.raises(SinkMisconfigured, match=r"no such table: shop_orders$"),
        sqlite_database.begin() as connection,
    ):
        connection.exec_driver_sql("DELETE FROM shop_orders")


def test_a_file_that_was_replaced_is_found_and_the_old_one_is_not_written(
    sqlite_database: Database, tmp_path: Path
) -> None:
    store = MessageStore(sqlite_database)
    store.write([delivery()])
    (tmp_path / "forebay.db").rename(tmp_path / "old.db")
    migrate(Database(f"sqlite:///{tmp_path / 'forebay.db'}"))

    assert [r.error for r in store.write([delivery(), delivery()])] == [None, None]
    assert stored_count(sqlite_database) == 2


def test_a_full_disk_is_an_outage_that_ends(sqlite_database: Database, tmp_path: Path) -> None:
    with_pragma(sqlite_database, "max_page_count=40")
    store = MessageStore(sqlite_database)
    batch = [delivery(b"x" * 10_000) for _ in range(100)]

    with pytest.raises(SinkUnavailable, match="SQLITE_FULL"):
        store.write(batch)

    assert stored_count(sqlite_database) == 0
    roomy = Database(f"sqlite:///{sqlite_database.path}")
    assert all(r.error is None for r in MessageStore(roomy).write(batch))
    roomy.dispose()


def test_a_read_only_database_is_a_misconfiguration(sqlite_database: Database) -> None:
    with_pragma(sqlite_database, "query_only=on")
    with pytest.raises(SinkMisconfigured, match="SQLITE_READONLY"):
        MessageStore(sqlite_database).write([delivery()])


def test_a_reader_that_begins_to_write_does_not_fail_because_another_wrote(
    sqlite_database: Database,
) -> None:
    """Transactions that may write take the writer's turn when they begin."""
    with sqlite_database.begin() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM messages").one()
        other = sqlite3.connect(str(sqlite_database.path), timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
        connection.exec_driver_sql("DELETE FROM messages")


def fail_with(statement: str) -> Callable[[sa.Connection], object]:
    return lambda connection: connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    ("statement", "expected", "text"),
    [
        ("INSERT INTO t VALUES (NULL, 1)", MessageRejected, "SQLITE_CONSTRAINT_NOTNULL, column t.a"),
        (
            "INSERT INTO t VALUES ('SECRET', -1)",
            MessageRejected,
            "SQLITE_CONSTRAINT_CHECK, constraint positive",
        ),
        ("INSERT INTO t VALUES ('x', 1), ('x', 2)", MessageRejected, "SQLITE_CONSTRAINT_UNIQUE, column t.a"),
        ("INSERT INTO u VALUES ('SECRET')", MessageRejected, "SQLITE_CONSTRAINT_TRIGGER"),
        ("INSERT INTO t (nope) VALUES (1)", SinkMisconfigured, "has no column named nope"),
        ("SELECT zeroblob(2000000000)", MessageRejected, "SQLITE_TOOBIG"),
    ],
)
def test_codes_get_the_verdict_of_the_table(
    sqlite_database: Database, statement: str, expected: type[Exception], text: str
) -> None:
    with sqlite_database.begin() as connection:
        for made in (
            "CREATE TABLE t (a TEXT NOT NULL UNIQUE, b INTEGER CONSTRAINT positive CHECK (b > 0))",
            "CREATE TABLE u (a TEXT)",
            "CREATE TRIGGER r BEFORE INSERT ON u BEGIN SELECT RAISE(ABORT, 'no SECRET'); END",
        ):
            connection.exec_driver_sql(made)
    with sqlite_database.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as raised:
        connection.exec_driver_sql(statement)

    error = classify(raised.value, "sqlite")

    assert type(error) is expected
    assert text in str(error)
    assert "SECRET" not in str(error)


def test_an_unknown_error_is_returned_as_it_is(sqlite_database: Database) -> None:
    with sqlite_database.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as raised:
        connection.exec_driver_sql("SELEKT 1")
    assert classify(raised.value, "sqlite") is raised.value


@pytest.mark.parametrize("code", sorted(SQLITE))
def test_extended_codes_get_the_verdict_of_their_primary_one(code: int) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code | (7 << 8)
    error.sqlite_errorname = "SQLITE_SOME_EXTENDED"
    assert type(classify(error, "sqlite")) is SQLITE[code]
    assert SQLITE[sqlite3.SQLITE_BUSY] is TransientError
