"""A table as the database describes it."""

from __future__ import annotations

from dataclasses import dataclass

from forebay.storage.mapping.spec import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column, with the limits of what it holds."""

    name: str
    type_name: str
    """As the database writes it: "character varying(10)"."""
    base: str
    """The type without its parameters, in the dialect's own short name: "varchar", "int4"."""
    kind: Kind | None
    """None: a type that we do not know; it gets texts, and the database judges them."""
    nullable: bool
    has_default: bool = False
    """The database fills it in when a row does not name it."""
    generated: bool = False
    """Nobody may write it."""
    writable: bool = True
    """We have the privilege."""
    low: int | None = None
    high: int | None = None
    """Of integers."""
    length: int | None = None
    """The most characters of a text."""
    max_bytes: int | None = None
    """The most bytes of a text in UTF-8."""
    precision: int | None = None
    scale: int | None = None
    """Of decimals: digits in all, and after the point. No precision: as many as one likes."""
    digits: int | None = None
    """Of decimals: how many the database keeps, wherever the point is."""
    single: bool = False
    """A float of four bytes."""
    second_digits: int | None = None
    """Of times: how many digits of a second are kept."""
    also: tuple[Kind, ...] = ()
    """Further kinds that it holds as they are."""
    no_nul: bool = False
    """JSON without \\u0000 only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One table. Equal descriptions mean that nothing that matters has changed."""

    columns: tuple[Column, ...]
    unique: tuple[frozenset[str], ...] = ()
    """The sets of columns of which each value is there once, the primary key first if there is one."""
    primary_key: tuple[str, ...] = ()
    missing_privileges: tuple[str, ...] = ()
    """"INSERT", "UPDATE", "SELECT"; as far as the database tells."""
    any_unique_decides: bool = False
    """`on_conflict` is about every unique index, whichever columns one names."""
    problem: str = ""
    """Why nothing can be written here at all, with its repair."""

    def column(self, name: str) -> Column | None:
        return next((c for c in self.columns if c.name == name), None)
