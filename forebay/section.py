"""The types that settings sections are made of: strict, frozen, with durations and sizes in words."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


class Section(BaseModel):
    """A table of settings. Unknown names are errors; each field's docstring is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


_DURATION = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip


def parse_duration(value: object) -> object:
    """Seconds from 30, "30", "30s", "1.5m", "2h", "14d" or "250ms"."""
    if not isinstance(value, str):
        return value
    m = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?\s*", value.lower())
    if m is None:
        raise ValueError(f'{value!r} is not a duration; write 30, "30s", "15m", "2h" or "14d"')
    return float(m[1]) * _DURATION[m[2] or "s"]


def parse_size(value: object) -> object:
    """Bytes from 900000, "900kB", "64MiB" or "1GB"."""
    if not isinstance(value, str):
        return value
    m = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", value.lower())
    if m is None or m[2] not in _SIZE:
        raise ValueError(f'{value!r} is not a size; write 900000, "900kB" or "64MiB"')
    return int(float(m[1]) * _SIZE[m[2]])


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
"""A duration of zero or more, in float seconds."""

PositiveSeconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
"""A duration above zero, in float seconds."""

ByteCount = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
"""A size in bytes."""


class Password(SecretStr):
    """A secret of which nothing is ever shown; of a plain SecretStr, a URL, all but the password is."""
