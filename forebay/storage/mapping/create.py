"""Making a mapped table, and the columns that it lacks. Additive only: nothing that is there is changed."""

from __future__ import annotations

import sqlalchemy as sa
import structlog

from forebay.storage.database import Database
from forebay.storage.mapping.dialect import MappingDialect, mapping_dialect
from forebay.storage.mapping.plan import Plan, TableMismatch, plan, specs
from forebay.storage.mapping.spec import (
    MESSAGE_FIELDS,
    ColumnSpec,
    Constant,
    Header,
    Kind,
    OfMessage,
    TableSpec,
)

log = structlog.get_logger()


def prepare(database: Database, spec: TableSpec) -> Plan:
    """
    Hold `spec` against the table, which is made or completed first if it asks for that.

    Processes that start together take turns, and the later ones find nothing to do.

    Raises:
        TableMismatch: they do not fit; nothing was changed.
        SinkUnavailable, SinkMisconfigured, TransientError: the database refused.
    """
    dialect = mapping_dialect(database.dialect)
    if not spec.create:
        return inspect(database, spec)
    with database.read() as connection:
        description = dialect.describe(connection, spec)
    if description is None or any(description.column(s.name) is None for s in specs(spec)):
        with database.begin() as connection, dialect.locked(connection):
            _complete(connection, dialect, spec)
    return inspect(database, spec)


def inspect(database: Database, spec: TableSpec) -> Plan:
    """As `prepare`, without changing anything."""
    with database.read() as connection:
        return plan(spec, mapping_dialect(database.dialect).describe(connection, spec))


def _complete(connection: sa.Connection, dialect: MappingDialect, spec: TableSpec) -> None:
    description = dialect.describe(connection, spec)
    table = ".".join(dialect.quoted(part) for part in (spec.schema, spec.name) if part)
    if description is None:
        lines = [_definition(dialect, spec, s, new_table=True) for s in specs(spec)]
        if spec.conflict_columns:
            lines.append(f"PRIMARY KEY ({', '.join(dialect.quoted(c) for c in spec.conflict_columns)})")
        connection.exec_driver_sql(
            _driver_sql(connection, f"CREATE TABLE {table} ({', '.join(lines)}){dialect.table_options()}")
        )
        log.info("made a table", table=spec.full_name)
        return
    for of_column in specs(spec):
        if description.column(of_column.name) is None:
            definition = _definition(dialect, spec, of_column, new_table=False)
            connection.exec_driver_sql(
                _driver_sql(connection, f"ALTER TABLE {table} ADD COLUMN {definition}")
            )
            log.info("added a column", table=spec.full_name, column=of_column.name)


def _driver_sql(connection: sa.Connection, sql: str) -> str:
    # A % is a placeholder to psycopg only where there are parameters; SQLAlchemy always gives it some.
    return sql.replace("%", "%%") if connection.dialect.paramstyle in ("format", "pyformat") else sql


def _definition(dialect: MappingDialect, spec: TableSpec, of_column: ColumnSpec, *, new_table: bool) -> str:
    is_key = new_table and of_column.name in spec.conflict_columns
    not_null = " NOT NULL" if is_key else ""
    column_type = dialect.column_type(_kind(spec, of_column), key=is_key)
    return f"{dialect.quoted(of_column.name)} {column_type}{not_null}"


def _kind(spec: TableSpec, of_column: ColumnSpec) -> Kind:
    if of_column.kind is not None:
        return of_column.kind
    match of_column.source:
        case OfMessage(what):
            return MESSAGE_FIELDS[what]
        case Header():
            return "text"
        case Constant(bool()):
            return "boolean"
        case Constant(int()):
            return "integer"
        case Constant(float()):
            return "float"
        case Constant():
            return "text"
    raise TableMismatch(
        spec.full_name,
        [
            f"column {of_column.name}: not in the table, and to make it its type must be known;"
            f' write {of_column.name} = {{ from = "…", type = "text" }}'
        ],
    )
