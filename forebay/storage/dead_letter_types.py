"""What a dead letter is, how some are chosen, and which of them belong together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from forebay.storage.tables import dead_letters as table

DeadLetterStatus = Literal["dead", "redriving", "resolved", "discarded"]

STATUSES: tuple[DeadLetterStatus, ...] = ("dead", "redriving", "resolved", "discarded")

OPEN: tuple[DeadLetterStatus, ...] = ("dead", "redriving")
"""Those whose message has not reached its destination, and may yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterRecord:
    """One message that one destination did not take."""

    id: str
    destination: str
    queue: str
    key: str | None
    content_type: str
    headers: dict[str, str]
    body: bytes = field(repr=False)
    """Empty in lists, unless they were asked for bodies."""
    accepted_at: datetime
    attempts: int
    reason: str
    error_class: str
    fingerprint: str
    """The same for dead letters of the same cause; see `fingerprint_of`."""
    detail: str = field(repr=False)
    """The destination's own words; they may hold row values."""
    died_at: datetime
    status: DeadLetterStatus
    original_id: str | None
    """The id it was sent with, when it rests here under another."""
    history: list[dict[str, Any]] | None = None
    """Its failed attempts, the oldest first: number, failed_at, worker, seconds, error_class, reason."""
    edited_from: str | None = None
    """The dead letter that an operator edited, and of which this message was made."""
    edited_to: str | None = None
    """The message that was made of this one when an operator edited it."""
    discard_reason: str | None = None
    changed_by: str | None = None
    """Who last sent it back, discarded or edited it."""
    redrive_job: str | None = None
    """The job that last sent it back."""
    redriven_at: datetime | None = None
    """When its broker confirmed that; None from the moment it is taken until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a list of dead letters goes on: after the one with these three."""

    died_at: datetime
    id: str
    destination: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Which dead letters. What is None does not matter."""

    queue: str | None = None
    status: DeadLetterStatus | None = None
    error_class: str | None = None
    fingerprint: str | None = None
    ids: Collection[str] | None = None
    """Also finds those that were sent with one of these ids."""
    died_before: datetime | None = None
    died_after: datetime | None = None
    key: str | None = None
    """Their ordering key."""
    text: str | None = None
    """In the reason, whatever its case, or in the body, exactly."""
    redrive_job: str | None = None
    """Those that this job sent back last."""

    def as_json(self) -> dict[str, Any]:
        """What was said, for tables and answers: times as ISO 8601, nothing that does not matter."""
        found: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, datetime):
                value = value.isoformat()
            elif one.name == "ids" and value is not None:
                value = sorted(value)
            if value is not None:
                found[one.name] = value
        return found

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> DeadLetterFilter:
        """The filter behind `as_json`. Raises TypeError for names that only a newer release knows."""
        values = dict(given)
        for name in ("died_before", "died_after"):
            if name in values:
                values[name] = datetime.fromisoformat(values[name])
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterGroup:
    """Dead letters of one cause."""

    fingerprint: str
    error_class: str
    destination: str
    reason: str
    """Of one of them."""
    count: int
    first_died_at: datetime
    last_died_at: datetime
    sample_id: str
    """One of them, to look at."""


_VARYING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # UUIDs
    r"|\b[0-9a-f]{16,}\b|0x[0-9a-f]+"  # digests, addresses
    r"|'[^']*'|\"[^\"]*\""  # quoted values
    r"|\b\d+(?:[.:,-]\d+)*\b",  # numbers, times, versions
    re.IGNORECASE,
)


def fingerprint_of(error_class: str, destination: str, reason: str) -> str:
    """
    Equal for dead letters that one repair would cure.

    Ids, numbers and quoted values in the reason are left out: with them every
    message would be a group of its own.
    """
    what = "\x00".join((error_class, destination, _VARYING.sub("#", reason)))
    return hashlib.sha256(what.encode(errors="replace")).hexdigest()[:16]


def conditions(which: DeadLetterFilter, dialect: str) -> list[sa.ColumnElement[bool]]:
    """The filter as SQL, to be joined by AND."""
    found: list[sa.ColumnElement[bool]] = []
    for name in ("queue", "status", "error_class", "fingerprint", "key", "redrive_job"):
        value = getattr(which, name)
        if value is not None:
            found.append(table.c[name] == value)
    if which.ids is not None:
        found.append(sa.or_(table.c.id.in_(which.ids), table.c.original_id.in_(which.ids)))
    if which.died_before is not None:
        found.append(table.c.died_at < which.died_before)
    if which.died_after is not None:
        found.append(table.c.died_at > which.died_after)
    if which.text is not None:
        in_reason = sa.func.lower(table.c.reason).contains(which.text.lower(), autoescape=True)
        found.append(sa.or_(in_reason, _body_has(which.text.encode(errors="replace"), dialect)))
    return found


def _body_has(part: bytes, dialect: str) -> sa.ColumnElement[bool]:
    wanted = sa.literal(part, sa.LargeBinary)
    if dialect == "postgresql":
        # Its plain name is syntax of its own, POSITION(a IN b).
        return sa.func.pg_catalog.position(wanted, table.c.body) > 0
    return sa.func.instr(table.c.body, wanted) > 0
