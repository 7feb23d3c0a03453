"""The schema is brought up to date once, whoever starts first, and told from others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from forebay.errors import SinkUnavailable
from forebay.ids import new_id
from forebay.storage.database import Database
from forebay.storage.schema import VERSION_TABLE, SchemaMismatch, migrate, require_current, schema_state
from forebay.storage.tables import metadata, processed_messages


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.external),
        pytest.param("mariadb", marks=pytest.mark.external),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'forebay.db'}"
    made: str = request.getfixturevalue(request.param).create_database()
    return made


@pytest.fixture
def empty(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.dispose()


def set_version(database: Database, version: str) -> None:
    with database.begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = :v"), {"v": version})


def test_an_empty_database_is_told_to_migrate(empty: Database) -> None:
    assert schema_state(empty) == "empty"
    with pytest.raises(SchemaMismatch, match="no Forebay tables; run `forebay migrate`"):
        require_current(empty)


def test_asking_creates_no_file(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'forebay.db'}")
    assert schema_state(database) == "empty"
    assert list(tmp_path.iterdir()) == []


def test_migrating_brings_it_up_to_date_once(empty: Database) -> None:
    assert [step.split()[0] for step in migrate(empty)] == ["0001", "0002", "0003", "0004", "0005", "0006"]
    assert schema_state(empty) == "current"
    require_current(empty)
    assert migrate(empty) == []


def test_the_steps_make_the_tables_that_the_code_uses(empty: Database) -> None:
    """Whoever changes a table and forgets the migration is told here."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    migrate(empty)
    with empty.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_what_was_processed_is_known_after_an_upgrade(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic.script import ScriptDirectory

    upgrade = ScriptDirectory._upgrade_revs
    with monkeypatch.context() as before:
        before.setattr(ScriptDirectory, "_upgrade_revs", lambda self, to, since: upgrade(self, "0005", since))
        migrate(empty)
    record = {
        "destination": "table:orders", "id": new_id(), "digest": bytes(32), "processed_at": datetime.now(UTC),
    }  # fmt: skip
    with empty.begin() as connection:
        connection.execute(processed_messages.insert(), [record, record | {"destination": "other"}])

    assert [step.split()[0] for step in migrate(empty)] == ["0006"]

    with empty.read() as connection:
        rows = connection.execute(sa.select(processed_messages.c.destination)).scalars()
        assert sorted(rows) == ["other", "table:orders"]
        assert sa.inspect(connection).get_pk_constraint("processed_messages")["constrained_columns"] == [
            "id",
            "destination",
        ]


def test_processes_that_start_together_take_turns(empty: Database, url: str) -> None:
    others = [Database(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        steps = list(threads.map(migrate, others))
    for other in others:
        other.dispose()
    assert sorted(map(len, steps)) == [0, 0, 0, 6]
    assert schema_state(empty) == "current"


def test_a_newer_schema_is_refused_and_names_the_newer_release(empty: Database) -> None:
    migrate(empty)
    set_version(empty, "9999")

    assert schema_state(empty) == "ahead"
    for call in (require_current, migrate):
        with pytest.raises(SchemaMismatch, match="newer release"):
            call(empty)


@pytest.mark.parametrize(("from_", "state"), [("0001", "newer"), ("0006", "newer"), ("0007", "ahead")])
def test_a_newer_schema_says_which_releases_it_works_with(empty: Database, from_: str, state: str) -> None:
    """So a rolling deploy migrates first, and old instances may still be started, or come back."""
    migrate(empty)
    set_version(empty, f"0009-from-{from_}")

    assert schema_state(empty) == state
    if state == "newer":
        require_current(empty)
        assert migrate(empty) == []
    else:
        with pytest.raises(SchemaMismatch, match="newer release"):
            require_current(empty)


def test_an_older_schema_is_told_to_migrate(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.script import ScriptDirectory

    migrate(empty)
    # As the next release sees the tables of this one.
    monkeypatch.setattr(ScriptDirectory, "get_current_head", lambda self: "next")
    assert schema_state(empty) == "behind"
    with pytest.raises(SchemaMismatch, match="older release; run `forebay migrate`"):
        require_current(empty)


def test_a_step_that_fails_leaves_nothing_behind(empty: Database) -> None:
    if empty.path is not None:
        # Only migrating makes the file, so somebody else has to.
        empty.path.parent.mkdir()
        empty.path.touch()
    with empty.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE processed_messages (x int)")  # somebody else's

    with pytest.raises(Exception, match="already exists"):
        migrate(empty)

    assert schema_state(empty) == "empty"
    if empty.dialect == "mysql":
        return  # It has no transactions for tables; what is left is completed by the next try.
    with empty.read() as connection:
        assert not sa.inspect(connection).has_table("messages")


@pytest.mark.external
@pytest.mark.parametrize("done", range(1, 16))
def test_a_migration_that_was_killed_half_way_is_completed_by_the_next(
    mariadb_url: str, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """After each of its statements; on MySQL those before stay, whatever becomes of the transaction."""
    from alembic.ddl.impl import DefaultImpl

    database = Database(mariadb_url)
    execute = DefaultImpl._exec
    left = iter(range(done))

    def killed(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return execute(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(DefaultImpl, "_exec", killed)
        with pytest.raises(KeyboardInterrupt):
            migrate(database)

    migrate(database)

    assert schema_state(database) == "current"
    with database.read() as connection:
        inspector = sa.inspect(connection)
        for table in metadata.sorted_tables:
            indexes = {i["name"] for i in inspector.get_indexes(table.name)}
            assert indexes == {i.name for i in table.indexes}
    database.dispose()


def test_what_is_created_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "data" / "forebay.db"
    database = Database(f"sqlite:///{file}")
    migrate(database)
    database.dispose()

    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_file_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SinkUnavailable, match=r"cannot create the database file .*file/forebay\.db"):
        migrate(Database(f"sqlite:///{tmp_path / 'file' / 'forebay.db'}"))
