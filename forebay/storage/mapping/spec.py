"""What a mapped table is asked to be: the settings' words, understood and free of contradictions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Literal

from forebay.storage.mapping.pointers import Pointer

Kind = Literal[
    "text", "integer", "float", "decimal", "boolean", "timestamp", "date", "time", "uuid", "json", "bytes"
]
"""How a value is read, and what a column holds."""

MessageField = Literal["id", "queue", "key", "accepted_at", "content_type", "attempt", "body"]

MESSAGE_FIELDS: dict[MessageField, Kind] = {
    "id": "uuid", "queue": "text", "key": "text", "accepted_at": "timestamp", "content_type": "text",
    "attempt": "integer", "body": "bytes",
}  # fmt: skip

Scalar = str | int | float | bool | Decimal | datetime | date | time | None


@dataclass(frozen=True, slots=True)
class Field:
    """A value in the body, a JSON object."""

    pointer: Pointer


@dataclass(frozen=True, slots=True)
class Header:
    """A header of the message."""

    name: str


@dataclass(frozen=True, slots=True)
class OfMessage:
    """What Forebay knows about the message."""

    what: MessageField


@dataclass(frozen=True, slots=True)
class Constant:
    """The same in every row."""

    value: Scalar


Source = Field | Header | OfMessage | Constant


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSpec:
    """Where one column's values come from."""

    name: str
    source: Source
    kind: Kind | None = None
    """How the value is read; None: as the column in the database says."""
    nulls: frozenset[str] = frozenset()
    """Texts that mean NULL."""
    default: Scalar = None
    """In place of NULL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """One mapped table."""

    name: str
    schema: str | None = None
    columns: tuple[ColumnSpec, ...]
    on_conflict: Literal["error", "ignore", "update"] = "error"
    conflict_columns: tuple[str, ...] = ()
    """Empty: the primary key."""
    extras: str | None = None
    """The column for what no other column takes."""
    create: bool = False

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name

    @property
    def destination(self) -> str:
        """Of the once-only records and the dead letters."""
        return f"table:{self.full_name}"[:200]


def parse_source(text: str) -> Source:
    """
    `text` as a settings file has it: "/air_time", "header:x-client", "message:id".

    Raises:
        ValueError: it is none of these; the text says what to write instead.
    """
    from forebay.storage.mapping.pointers import parse_pointer

    scheme, colon, name = text.partition(":")
    if colon and scheme == "header":
        if not name:
            raise ValueError('"header:" names no header; write "header:x-client"')
        return Header(name.lower())
    if colon and scheme == "message":
        for known in MESSAGE_FIELDS:
            if name == known:
                return OfMessage(known)
        raise ValueError(f"{text!r}: of a message there are {', '.join(MESSAGE_FIELDS)}")
    if text and not text.startswith("/"):
        raise ValueError(
            f'{text!r} is no source; write "/{text}" (a JSON pointer), "header:{text}", "message:id",'
            f" or {{ value = {text!r} }} for a constant"
        )
    return Field(parse_pointer(text))
