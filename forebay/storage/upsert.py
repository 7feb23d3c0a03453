"""INSERT that meets a row which is there already: each database has its own word for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, object]],
    *,
    update: Collection[str] | None = None,
) -> None:
    """
    Insert `rows`; of one whose primary key is there already, `update` these columns.

    By default all that are no key; an empty `update` leaves the row as it is. All rows have the same
    columns. They are sorted by key: two transactions that write the same rows never form a deadlock.
    """
    if not rows:
        return
    key = [column.name for column in table.primary_key.columns]
    values = sorted(rows, key=lambda row: [str(row[name]) for name in key])
    names = [name for name in values[0] if name not in key] if update is None else list(update)
    if connection.dialect.name in ("mysql", "mariadb"):
        mine = mysql.insert(table).values(values)
        # An assignment of the key to itself changes nothing, and unlike IGNORE hides no other error.
        set_ = {name: mine.inserted[name] for name in names} or {key[0]: table.c[key[0]]}
        connection.execute(mine.on_duplicate_key_update(set_))
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(values)
    if names:
        set_ = {name: statement.excluded[name] for name in names}
        connection.execute(statement.on_conflict_do_update(index_elements=key, set_=set_))
    else:
        connection.execute(statement.on_conflict_do_nothing(index_elements=key))
