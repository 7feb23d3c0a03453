"""A mapped table with a column of each kind, for the tests of mapped tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import sqlalchemy as sa

from forebay.brokers.api import Delivery
from forebay.storage.database import Database
from forebay.storage.mapping.spec import ColumnSpec, Field, Kind, TableSpec, parse_source
from tests.unit.storage.deliveries import delivery

COLUMNS = {
    "postgresql": (
        "id integer PRIMARY KEY, carrier varchar(2) NOT NULL, air_time double precision,"
        " price numeric(8, 2), late boolean, day date, departed timestamptz, clock time, tags jsonb,"
        " request uuid, seats smallint CHECK (seats > 0), note text, raw bytea, extras jsonb"
    ),
    "mysql": (
        "id integer PRIMARY KEY, carrier varchar(2) NOT NULL, air_time double, price numeric(8, 2),"
        " late boolean, day date, departed datetime(6), clock time, tags json, request varchar(36),"
        " seats smallint CHECK (seats > 0), note text, `raw` blob, extras json"
    ),
    "sqlite": (
        "id integer NOT NULL PRIMARY KEY, carrier varchar(2) NOT NULL, air_time double precision,"
        " price decimal(8, 2), late boolean, day date, departed timestamp, clock time, tags json,"
        " request uuid, seats integer CHECK (seats > 0), note text, raw blob, extras json"
    ),
}


def make_table(database: Database, columns: str | None = None, name: str = "flights") -> None:
    run(database, f"CREATE TABLE {name} ({columns or COLUMNS[database.dialect]})")


def run(database: Database, *statements: str) -> None:
    with database.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def spec(*names: str, **fields: Any) -> TableSpec:
    """The table, with these columns of it taken from fields of the same name."""
    given = names or ("id", "carrier", "air_time", "seats", "note")
    made = TableSpec(name="flights", columns=tuple(column(name) for name in given))
    return replace(made, **fields)


def column(name: str, source: str | None = None, kind: Kind | None = None, **fields: Any) -> ColumnSpec:
    found = Field((name,)) if source is None else parse_source(source)
    return ColumnSpec(name=name, source=found, kind=kind, **fields)


def flight(id: int, message_id: str | None = None, /, **fields: Any) -> Delivery:
    body = {"id": id, "carrier": "UA", "air_time": 227.5, "seats": 150, "note": f"flight {id}"} | fields
    return delivery(orjson.dumps(body), id=message_id)


def rows(database: Database, columns: str = "*", name: str = "flights") -> list[tuple[Any, ...]]:
    with database.read() as connection:
        found = connection.execute(sa.text(f"SELECT {columns} FROM {name} ORDER BY 1"))
        return [tuple(row) for row in found]
