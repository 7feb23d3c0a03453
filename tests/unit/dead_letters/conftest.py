"""The databases of the storage tests, for the engine above them."""

from __future__ import annotations

from tests.unit.storage.conftest import (
    another,
    database,
    mariadb_database,
    mariadb_schema,
    postgres_database,
    postgres_template,
    sqlite_database,
    sqlite_template,
)

__all__ = [
    "another",
    "database",
    "mariadb_database",
    "mariadb_schema",
    "postgres_database",
    "postgres_template",
    "sqlite_database",
    "sqlite_template",
]
