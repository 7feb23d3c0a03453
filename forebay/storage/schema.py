"""The schema in the database against the one this release was made for."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from forebay.errors import ForebayError, SinkUnavailable
from forebay.storage.database import Database

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext, RevisionStep
    from alembic.script import ScriptDirectory

SchemaState = Literal["empty", "behind", "current", "newer", "ahead"]
"""`newer` is of a later release and only adds to what this one knows; `ahead` says no such thing."""

# The name of a revision that only adds: "0008-from-0006" works with releases whose own is 0006 or later.
_ADDS = re.compile(r"[0-9]{4}-from-([0-9]{4})")

# Not Alembic's own default: the database may hold the user's tables and their history too.
VERSION_TABLE = "forebay_schema_version"

# Any constant that other programs are unlikely to lock: "forebay" in ASCII.
_ADVISORY_LOCK = 0x666F7265626179

_MIGRATION_LOCK_TIMEOUT = 60.0


class SchemaMismatch(ForebayError):
    """The tables are not those of this release. The text says which command or release is needed."""


def migrate(database: Database) -> list[str]:
    """
    Bring the tables to this release's schema; return the steps taken, none when it was current.

    All steps are one transaction; on MySQL, which has none for tables, a migration that was
    killed half-way is completed by the next one. Processes that start together take
    turns, and the later ones find nothing to do, as does an older release where a newer one
    has only added. Creates the file of an SQLite database.

    Raises:
        SchemaMismatch: the schema is of a newer release.
        SinkUnavailable, SinkMisconfigured: the database refused.
    """
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    if database.path is not None:
        _create_file(database.path)
    scripts = _scripts()
    taken: list[str] = []

    def steps(current: Any, _context: MigrationContext) -> list[RevisionStep]:
        return scripts._upgrade_revs("head", current)  # what alembic.command.upgrade does

    def note(*, step: Any, **_: object) -> None:
        taken.append(f"{step.up_revision_id} {step.up_revision.doc.splitlines()[0]}")

    with database.begin() as connection, _turn(database, connection):
        state = _state(connection, scripts)
        _refuse_newer(database, state)
        if state != "newer":
            config = Config()
            config.attributes["forebay"] = {
                "connection": connection,
                "version_table": VERSION_TABLE,
                "transactional_ddl": database.dialect != "mysql",
                "on_version_apply": note,
            }
            with EnvironmentContext(config, scripts, fn=steps):
                scripts.run_env()
    database.dispose()  # the connection that waits for ever must not be lent again
    return taken


def schema_state(database: Database) -> SchemaState:
    """How the tables compare with this release. Creates nothing, not even a missing SQLite file."""
    if database.path is not None and not database.path.exists():
        return "empty"
    with database.read() as connection:
        return _state(connection, _scripts())


def require_current(database: Database) -> None:
    """
    Return if this release can work with the tables.

    Raises:
        SchemaMismatch: it cannot; the text says what to run.
    """
    state = schema_state(database)
    if state == "empty":
        raise SchemaMismatch(f"{database.safe_url} has no Forebay tables; run `forebay migrate`")
    if state == "behind":
        raise SchemaMismatch(
            f"the tables in {database.safe_url} are of an older release; run `forebay migrate`"
        )
    _refuse_newer(database, state)


def _refuse_newer(database: Database, state: SchemaState) -> None:
    if state == "ahead":
        raise SchemaMismatch(
            f"the tables in {database.safe_url} are of a newer release than this one;"
            " install that release (pip install --upgrade forebay) or point database.url elsewhere"
        )


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(__file__).parent / "migrations"))


def _state(connection: sa.Connection, scripts: ScriptDirectory) -> SchemaState:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return "empty"
    version = sa.table(VERSION_TABLE, sa.column("version_num"))
    current = connection.execute(sa.select(version.c.version_num)).scalar_one_or_none()
    if current is None:
        return "empty"
    if current == scripts.get_current_head():
        return "current"
    known = {script.revision for script in scripts.walk_revisions()}
    if current in known:
        return "behind"
    adds = _ADDS.fullmatch(current)
    return "newer" if adds and adds[1] <= str(scripts.get_current_head())[:4] else "ahead"


@contextmanager
def _turn(database: Database, connection: sa.Connection) -> Iterator[None]:
    if database.dialect == "mysql":
        from forebay.storage.mysqlschema import migrating

        with migrating(connection, database.settings, _MIGRATION_LOCK_TIMEOUT):
            yield
        return
    # SQLite's BEGIN IMMEDIATE is the lock already.
    if database.dialect == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(_MIGRATION_LOCK_TIMEOUT * 1000)}")
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # an index may take long to build
        connection.connection.driver_connection.answer_timeout = None  # type: ignore[union-attr]  # ours
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    yield


def _create_file(path: Path) -> None:
    try:
        # As the embedded queue does: message bodies are nobody else's to read.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(path)):
            pass
    except (OSError, sqlite3.Error) as error:
        raise SinkUnavailable(f"cannot create the database file {path}: {error}") from error
