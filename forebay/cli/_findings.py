"""What `forebay doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TIMEOUT = 15.0
"""How long broker or database may take to answer before that is the finding."""

Verdict = Literal["ok", "warn", "fail"]
"""From good to bad."""


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    verdict: Verdict
    text: str
    fix: str = ""
