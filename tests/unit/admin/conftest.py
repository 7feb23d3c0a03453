"""The databases of the storage tests."""

from __future__ import annotations

from tests.unit.storage.conftest import (
    database,
    mariadb_database,
    mariadb_schema,
    postgres_database,
    postgres_template,
    sqlite_database,
    sqlite_template,
)

__all__ = [
    "database",
    "mariadb_database",
    "mariadb_schema",
    "postgres_database",
    "postgres_template",
    "sqlite_database",
    "sqlite_template",
]
