"""`[queues.<name>.table]`: what it means, what it implies, and what is refused with which hint."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from forebay.cli._settings_docs import reference, starter_file
from forebay.errors import SettingsError
from forebay.settings import Loaded, load
from forebay.settings_schema import shown_leaves
from forebay.storage.mapping.spec import ColumnSpec, Constant, Field, Header, OfMessage

FLIGHTS = """
[queues.flights.table]
name = "warehouse.flights"
on_conflict = "update"
conflict_columns = ["flight_id"]
extras = "extras"

[queues.flights.table.columns]
flight_id = "/id"
"odd name" = "/a~1b/0"
url = "/url"
received_by = "header:X-Client"
message_id = "message:id"
source = { value = "nyc" }
since = { value = 2013-01-01 }
air_time = { from = "/air_time", type = "float", null = ["NA", ""], default = 0 }
"""


def loaded(folder: Path, toml: str, **environ: str) -> Loaded:
    (folder / "forebay.toml").write_text(toml)
    return load(environ=environ, cwd=folder)


def refused(folder: Path, toml: str, **environ: str) -> str:
    with pytest.raises(SettingsError) as error:
        loaded(folder, toml, **environ)
    return str(error.value)


def test_a_table_is_understood(tmp_path: Path) -> None:
    queue = loaded(tmp_path, FLIGHTS).settings.queue("flights")

    assert queue.sink == "table"
    assert queue.table is not None
    spec = queue.table.spec()
    assert (spec.schema, spec.name, spec.destination) == ("warehouse", "flights", "table:warehouse.flights")
    assert (spec.on_conflict, spec.conflict_columns, spec.extras) == ("update", ("flight_id",), "extras")
    assert spec.columns == (
        ColumnSpec(name="flight_id", source=Field(("id",))),
        ColumnSpec(name="odd name", source=Field(("a/b", "0"))),
        ColumnSpec(name="url", source=Field(("url",))),
        ColumnSpec(name="received_by", source=Header("x-client")),
        ColumnSpec(name="message_id", source=OfMessage("id")),
        ColumnSpec(name="source", source=Constant("nyc")),
        ColumnSpec(name="since", source=Constant(date(2013, 1, 1))),
        ColumnSpec(
            name="air_time", source=Field(("air_time",)), kind="float", nulls=frozenset({"NA", ""}), default=0
        ),
    )  # fmt: skip


def test_a_queue_without_a_table_has_none(tmp_path: Path) -> None:
    queue = loaded(tmp_path, '[queues.orders]\nsink = "database"\n').settings.queue("orders")

    assert queue.table is None
    assert not [name for name, _ in shown_leaves(queue) if name.startswith("table")]


def test_where_a_column_came_from_is_known(tmp_path: Path) -> None:
    found = loaded(tmp_path, FLIGHTS)

    leaves = dict(shown_leaves(found.settings))
    assert leaves["queues.flights.table.columns.flight_id.from"] == "/id"
    assert found.provenance["queues.flights.table.columns.flight_id.from"].endswith("forebay.toml:9:1")


def test_variables_set_columns_too(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        FLIGHTS,
        FOREBAY_QUEUES__FLIGHTS__TABLE__COLUMNS__FLIGHT_ID="/number",
        FOREBAY_QUEUES__FLIGHTS__TABLE__COLUMNS__CARRIER='{"from": "/carrier", "type": "text"}',
    )

    table = found.settings.queue("flights").table
    assert table is not None
    assert table.columns["flight_id"].from_ == "/number"
    assert table.columns["carrier"].type == "text"


def test_a_default_handler_does_not_reach_a_queue_with_a_table(tmp_path: Path) -> None:
    queue = loaded(tmp_path, '[queue_defaults]\nhandler = "a:b"\n' + FLIGHTS).settings.queue("flights")

    assert (queue.sink, queue.handler) == ("table", None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('flight_id = "/id"', 'flight_id = "id"'), 'write "/id" (a JSON pointer)'),
        (('flight_id = "/id"', 'flight_id = "/a~2"'), "not a JSON pointer"),
        (('flight_id = "/id"', "flight_id = 5"), "{ value = 5 }"),
        (('"message:id"', '"message:ID"'), "of a message there are id, queue"),
        (('value = "nyc"', 'valu = "nyc"'), "did you mean queues.flights.table.columns.source.value?"),
        (("on_conflict", "on_conflicts"), "did you mean queues.flights.table.on_conflict?"),
        (('"update"', '"upsert"'), "must be 'error', 'ignore' or 'update', not 'upsert'"),
        (('type = "float"', 'type = "double"'), "must be 'text', 'integer'"),
        (('{ value = "nyc" }', '{ value = "nyc", from = "/x" }'), "needs either from"),
        (('["flight_id"]', '["id"]'), "conflict_columns names 'id', which has no source"),
        (('extras = "extras"', 'extras = "source"'), "which is one of the columns"),
        (('on_conflict = "update"\n', ""), 'conflict_columns do nothing without on_conflict = "ignore"'),
        (("warehouse.flights", "a.b.c"), 'neither "table" nor "schema.table"'),
        (('name = "warehouse.flights"\n', ""), "queues.flights.table.name is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    assert change[0] in FLIGHTS

    text = refused(tmp_path, FLIGHTS.replace(*change))

    assert said in text
    assert "forebay.toml:" in text


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[queues.flights.table]\n", 'is empty; it needs name = "…" and columns'),
        ('[queues.flights.table]\nname = "flights"\n', "queues.flights.table.columns is missing"),
        ('[queues.flights]\nsink = "table"\n', "needs a table; write [queues.flights.table]"),
        ('[queues.flights]\nsink = "database"\n' + FLIGHTS, 'a mapped table needs sink = "table"'),
        ('[queues.flights]\nhandler = "a:b"\n' + FLIGHTS, 'a handler needs sink = "python"'),
        ('[queue_defaults.table]\nname = "x"\n', "a table belongs to one queue"),
        ('[queues.flights]\ntable = "flights"\n', "is a table of settings, not a value"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, toml: str, said: str) -> None:
    assert said in refused(tmp_path, toml)


def test_the_reference_has_the_columns_and_the_starter_file_changes_nothing(tmp_path: Path) -> None:
    assert "## `[queues.<name>.table.columns.<name>]`" in reference()
    assert "| `from` | text |" in reference()

    (tmp_path / "forebay.toml").write_text(starter_file(["orders"]))

    assert load(environ={}, cwd=tmp_path).settings.queue("orders").table is None


def test_the_example_in_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sinks.md").read_text()
    example = page.partition("## table\n")[2].partition("```toml\n")[2].partition("```")[0]

    table = loaded(tmp_path, example).settings.queue("flights").table

    assert table is not None
    assert {c.name for c in table.spec().columns} >= {"id", "air_time", "carrier", "departed", "source"}
