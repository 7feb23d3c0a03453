"""The `[queues.<name>.table]` tables: a mapped table as its settings say it."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from forebay.section import Section
from forebay.storage.mapping.spec import ColumnSpec, Constant, Kind, Scalar, Source, TableSpec, parse_source


class ColumnSettings(Section):
    """One column. `carrier = "/carrier"` is short for `carrier = { from = "/carrier" }`."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    from_: str | None = Field(None, alias="from")
    """"/a/b" (JSON pointer into the body), "header:x-client", or "message:" and id, queue, key, accepted_at,
    content_type, attempt or body."""
    value: str | bool | int | float | datetime | date | time | None = None
    """A constant, instead of `from`."""
    type: Kind | None = None
    """How values are read; by default as the column's own type says. Needed to make the column."""
    null: tuple[str, ...] = ()
    """Texts that mean NULL: ["NA", ""]."""
    default: str | bool | int | float | datetime | date | time | None = None
    """What stands in the column where the value is missing, null or one of those texts."""

    @field_validator("from_")
    @classmethod
    def _source_is_readable(cls, text: str | None) -> str | None:
        if text is not None:
            parse_source(text)
        return text

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.from_ is None) == (self.value is None):
            raise ValueError('needs either from = "/field" or value = "constant"')
        return self

    def spec(self, name: str) -> ColumnSpec:
        source: Source = Constant(self.value) if self.from_ is None else parse_source(self.from_)
        default: Scalar = self.default
        return ColumnSpec(
            name=name, source=source, kind=self.type, nulls=frozenset(self.null), default=default
        )


class TableSettings(Section):
    """A table of your own that a queue's messages become rows of: docs/sinks.md. Implies sink = "table"."""

    name: str
    """The table: "flights", or with its schema "warehouse.flights"."""
    columns: dict[str, ColumnSettings]
    """Where the values of each column come from."""
    on_conflict: Literal["error", "ignore", "update"] = "error"
    """When a row is there already, by its conflict columns: "error" makes the message a dead letter."""
    conflict_columns: tuple[str, ...] = ()
    """The columns that say which row it is, with a unique index on them. By default the primary key."""
    extras: str | None = None
    """A column for the fields of the body that no other column takes, as a JSON object."""
    create: bool = False
    """Make the table at the start if it is missing, and add nullable columns that it lacks."""

    @field_validator("name")
    @classmethod
    def _name_is_readable(cls, name: str) -> str:
        parts = name.split(".")
        if len(parts) > 2 or not all(parts):
            raise ValueError('is neither "table" nor "schema.table"')
        return name

    @field_validator("columns")
    @classmethod
    def _has_columns(cls, columns: dict[str, ColumnSettings]) -> dict[str, ColumnSettings]:
        if not columns:
            raise ValueError('has no columns; carrier = "/carrier"')
        return columns

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.extras is not None and self.extras in self.columns:
            raise ValueError(f"extras is {self.extras!r}, which is one of the columns; remove one of the two")
        for name in self.conflict_columns:
            if name not in self.columns:
                raise ValueError(f"conflict_columns names {name!r}, which has no source; add it to columns")
        if self.conflict_columns and self.on_conflict == "error" and not self.create:
            raise ValueError('conflict_columns do nothing without on_conflict = "ignore" or "update"')
        return self

    def spec(self) -> TableSpec:
        schema, _, name = self.name.rpartition(".")
        return TableSpec(
            name=name,
            schema=schema or None,
            columns=tuple(column.spec(name) for name, column in self.columns.items()),
            on_conflict=self.on_conflict,
            conflict_columns=self.conflict_columns,
            extras=self.extras,
            create=self.create,
        )
