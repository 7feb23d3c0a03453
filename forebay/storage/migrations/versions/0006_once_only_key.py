"""
The once-only record by id first: one index serves both who asks for an id and who asks for a destination's.

Rewrites the index of `processed_messages`, which is locked meanwhile (about a second for a million
records). Consumers of the release before go on writing: they name the columns, never the index.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"

_TABLE = "processed_messages"


def upgrade() -> None:
    match op.get_bind().dialect.name:
        case "sqlite":
            _copy()
        case "postgresql":
            op.execute(
                f"ALTER TABLE {_TABLE} DROP CONSTRAINT {_TABLE}_pkey, ADD PRIMARY KEY (id, destination)"
            )
            op.drop_index(f"{_TABLE}_id", _TABLE)
        case _:
            # It has no transactions for tables: a try that was cut off is gone on with.
            key = sa.inspect(op.get_bind()).get_pk_constraint(_TABLE)["constrained_columns"]
            if key[0] != "id":
                op.execute(f"ALTER TABLE {_TABLE} DROP PRIMARY KEY, ADD PRIMARY KEY (id, destination)")
            op.drop_index(f"{_TABLE}_id", _TABLE)


def _copy() -> None:
    """SQLite changes no primary key, and keeps the rows themselves by this one."""
    op.execute(
        f"CREATE TABLE {_TABLE}_new (destination VARCHAR(200) NOT NULL, id VARCHAR(36) NOT NULL,"
        " digest BLOB NOT NULL, processed_at DATETIME NOT NULL, PRIMARY KEY (id, destination)) WITHOUT ROWID"
    )
    columns = "destination, id, digest, processed_at"
    copy = f"INSERT INTO {_TABLE}_new ({columns}) SELECT {columns} FROM {_TABLE}"  # noqa: S608  # our own names
    op.execute(copy)
    op.drop_table(_TABLE)
    op.rename_table(f"{_TABLE}_new", _TABLE)
    op.create_index(f"{_TABLE}_processed_at", _TABLE, ["processed_at"])
