"""`forebay migrate`."""

from __future__ import annotations

from forebay.cli._common import (
    ConfigOption,
    DatabaseUrlOption,
    LogLevelOption,
    VerboseOption,
    load,
    log_to_stderr,
    require_url,
)
from forebay.cli._output import emit


def migrate(
    config: ConfigOption = None,
    database_url: DatabaseUrlOption = None,
    log_level: LogLevelOption = "info",
    verbose: VerboseOption = False,
) -> None:
    """
    Create the tables in the database, or bring them up to date. Safe to repeat.

    Examples:
      forebay migrate
      forebay migrate --database-url postgresql://forebay:password@localhost/forebay

    Several may run at once: they take turns. Run it before the consumers of a new
    release start; the old release goes on working meanwhile.
    """
    from forebay.settings import Flag
    from forebay.wiring import make_database

    log_to_stderr(log_level, verbose)
    settings = load(config, [Flag("database.url", "--database-url", database_url)]).settings
    require_url(settings, "database")
    from forebay.storage.schema import migrate as run_migrations

    database = make_database(settings)
    try:
        done = run_migrations(database)
    finally:
        database.dispose()
    for revision in done:
        emit(revision)
    if not done:
        emit(f"{database.safe_url}: nothing to do")
