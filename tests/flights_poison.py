"""
The flights with one in a hundred spoiled: what a typed table does not take, and why.

A flight gets a `date` besides what the file has, as a producer would send it. Which ones
are spoiled, and how, depends on the seed alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import flights

SHARE = 0.01

Flight = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """One way to spoil a flight."""

    spoil: Callable[[Flight], bytes]
    error_class: str
    """Of the dead letter that it must become."""
    cure: str | None = None
    """The statement that lets the table take it; None: the message must be edited."""


def dump(flight: Flight) -> bytes:
    return json.dumps(flight, separators=(",", ":")).encode()


def _with(name: str, value: object) -> Callable[[Flight], bytes]:
    return lambda flight: dump(flight | {name: value})


def _without(name: str) -> Callable[[Flight], bytes]:
    return lambda flight: dump({key: value for key, value in flight.items() if key != name})


LONG_TAILNUM = "N14228 (leased)"

KINDS: dict[str, Poison] = {
    "text in a number": Poison(spoil=_with("distance", "far"), error_class="UnfitValue"),
    "fraction in an integer": Poison(spoil=_with("distance", 1400.5), error_class="UnfitValue"),
    "NUL in a text": Poison(spoil=_with("tailnum", "N1\x0028"), error_class="UnfitValue"),
    "not JSON": Poison(spoil=lambda flight: dump(flight)[:-12], error_class="NotJson"),
    "too long": Poison(
        spoil=_with("tailnum", LONG_TAILNUM), error_class="UnfitValue",
        cure="alter table flights alter column tailnum type varchar(32)",
    ),
    "violated CHECK": Poison(
        spoil=_with("distance", "-1"), error_class="CheckViolation",
        cure="alter table flights drop constraint flies_somewhere",
    ),
    "missing NOT NULL": Poison(
        spoil=_without("dest"), error_class="MissingValue",
        cure="alter table flights alter column dest drop not null",
    ),
}  # fmt: skip


@dataclass
class Load:
    """What is sent, and what must become of it."""

    flights: dict[int, Flight] = field(default_factory=dict)
    """Each as it should be, by its row."""
    spoiled: dict[int, str] = field(default_factory=dict)
    """The kind of poison, by the row."""
    row_of: dict[str, int] = field(default_factory=dict)
    """By the SHA-256 of the body that is sent; no two are equal."""


def write_ndjson(path: Path, count: int, *, seed: int = 1) -> Load:
    """Write the first `count` flights as NDJSON, one in a hundred spoiled, all kinds equally often."""
    load = Load()
    rows = random.Random(seed).sample(range(1, count + 1), round(count * SHARE))
    load.spoiled = dict(zip(rows, itertools.cycle(KINDS), strict=False))
    with path.open("wb") as file:
        for flight in itertools.islice(flights.records(), count):
            row = int(str(flight["row"]))
            date = f"{flight['year']}-{int(str(flight['month'])):02}-{int(str(flight['day'])):02}"
            flight["date"] = date
            load.flights[row] = flight
            body = KINDS[load.spoiled[row]].spoil(flight) if row in load.spoiled else dump(flight)
            load.row_of[hashlib.sha256(body).hexdigest()] = row
            file.write(body + b"\n")
    return load
