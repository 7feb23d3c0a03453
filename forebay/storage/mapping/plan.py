"""
A mapping held against the real table: what fits is a plan, what does not is said with its repair.

The check is made at the start, and again whenever the database refuses something,
for somebody may have altered the table meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from forebay.errors import SettingsError
from forebay.storage.mapping.convert import READABLE, Converter, Unfit
from forebay.storage.mapping.description import Column, Description
from forebay.storage.mapping.spec import (
    MESSAGE_FIELDS,
    ColumnSpec,
    Constant,
    Kind,
    OfMessage,
    Scalar,
    TableSpec,
)


class TableMismatch(SettingsError):
    """The table in the database is not what the settings say. The text has one line per difference."""

    def __init__(self, table: str, differences: list[str]) -> None:
        self.differences = differences
        lines = [f"table {table}: {line}" for line in differences]
        super().__init__(lines[0] if len(lines) == 1 else "\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One column that we write."""

    spec: ColumnSpec
    column: Column
    converter: Converter
    default: Any
    """Converted already; None if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to write rows into one table."""

    spec: TableSpec
    description: Description
    targets: tuple[Target, ...]
    """In the order of the settings; the column for extras is the last one."""
    conflict: tuple[str, ...]
    """The columns of the unique index that `on_conflict` is about; empty if it is an error."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(t.column for t in self.targets)


EXTRAS = ColumnSpec(name="", source=Constant(None), kind="json")


def plan(spec: TableSpec, description: Description | None) -> Plan:
    """
    The plan for writing `spec` into the table as it is; `description` is None if it is missing.

    Raises:
        TableMismatch: they do not fit.
    """
    if description is None:
        raise TableMismatch(
            spec.full_name, ["it does not exist; create it, or set create = true to have that done"]
        )
    differences: list[str] = []
    targets: list[Target] = []
    for of_column in specs(spec):
        try:
            targets.append(_target(of_column, description, spec))
        except Unfit as why:
            differences.append(f"column {of_column.name}: {why}")
    differences += [description.problem] if description.problem else []
    differences += _unfilled(spec, description)
    differences += _privileges(spec, description)
    conflict: tuple[str, ...] = ()
    try:
        conflict = _conflict(spec, description)
    except Unfit as why:
        differences.append(str(why))
    if differences:
        raise TableMismatch(spec.full_name, differences)
    return Plan(spec=spec, description=description, targets=tuple(targets), conflict=conflict)


def specs(spec: TableSpec) -> Iterator[ColumnSpec]:
    """All columns of `spec`, with the one for extras."""
    yield from spec.columns
    if spec.extras is not None:
        yield ColumnSpec(name=spec.extras, source=EXTRAS.source, kind="json")


def _target(of_column: ColumnSpec, description: Description, spec: TableSpec) -> Target:
    column = description.column(of_column.name)
    if column is None:
        near = [c.name for c in description.columns if c.name.lower() == of_column.name.lower()]
        hint = f"the table has {near[0]!r}; names must agree in case" if near else "add it to the table"
        raise Unfit(f"not in the table; {hint}, or set create = true to have missing columns added")
    if column.generated:
        raise Unfit("the database generates it; take it out of the mapping")
    if not column.writable:
        raise Unfit(f"no privilege to write it; GRANT INSERT, UPDATE ON {spec.full_name} TO our user")
    kind = _kind(of_column, column)
    converter = Converter(kind, column)
    default = _converted(of_column.default, converter, "its default")
    if isinstance(of_column.source, Constant) and of_column.name != spec.extras:
        value = _converted(of_column.source.value, converter, "its value")
        of_column = ColumnSpec(name=of_column.name, source=Constant(value), kind=kind, default=default)
        if value is None and not column.nullable:
            raise Unfit("its value is NULL and the column is NOT NULL")
    return Target(spec=of_column, column=column, converter=converter, default=default)


def _kind(of_column: ColumnSpec, column: Column) -> Kind:
    holds: Kind = column.kind or "text"
    kind = of_column.kind
    if kind is None and isinstance(of_column.source, OfMessage):
        kind = MESSAGE_FIELDS[of_column.source.what]
        # An id is text like any other where the column holds text.
        kind = "text" if kind == "uuid" and holds == "text" else kind
    kind = kind or holds
    readable = () if column.kind is None else (*READABLE[column.kind], *column.also)
    if readable and kind not in readable:
        good = " or ".join(f'"{k}"' for k in readable)
        raise Unfit(f"the column is {column.type_name}, which does not hold {kind!r}; type may be {good}")
    return kind


def _converted(value: Scalar, converter: Converter, what: str) -> Any:
    try:
        return converter.one(value)
    except Unfit as why:
        raise Unfit(f"{what} is {why}") from None


def _unfilled(spec: TableSpec, description: Description) -> Iterator[str]:
    filled = {s.name for s in specs(spec)}
    for column in description.columns:
        if column.name not in filled and not (column.nullable or column.has_default or column.generated):
            yield (
                f"column {column.name}: NOT NULL without a default, and nothing fills it;"
                f' give it a source ({column.name} = "/{column.name}"), or the column a default'
            )


def _privileges(spec: TableSpec, description: Description) -> Iterator[str]:
    needed = {"INSERT"}
    needed |= {"SELECT"} if spec.on_conflict != "error" else set()
    needed |= {"UPDATE"} if spec.on_conflict == "update" else set()
    if missing := sorted(needed.intersection(description.missing_privileges)):
        yield f"no privilege; GRANT {', '.join(missing)} ON {spec.full_name} TO our user"


def _conflict(spec: TableSpec, description: Description) -> tuple[str, ...]:
    if spec.on_conflict == "error":
        return ()
    columns = spec.conflict_columns or description.primary_key
    if not columns:
        raise Unfit("on_conflict needs a primary key, or conflict_columns; the table has no primary key")
    if frozenset(columns) not in description.unique:
        listed = ", ".join(columns)
        raise Unfit(
            f"conflict_columns ({listed}) have no unique index;"
            f" CREATE UNIQUE INDEX ON {spec.full_name} ({listed})"
        )
    filled = {s.name for s in spec.columns}
    others = [u for u in description.unique if u != frozenset(columns) and u & filled]
    if description.any_unique_decides and others:
        raise Unfit(
            f"on this database on_conflict would also be about the unique index on"
            f" ({', '.join(sorted(others[0]))}), and replace or drop other rows;"
            " remove that index, or on_conflict"
        )
    if unfilled := [c for c in columns if c not in filled]:
        raise Unfit(f"column {unfilled[0]} decides about conflicts and has no source; give it one")
    return tuple(columns)
