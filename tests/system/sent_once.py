"""Messages that are sent once each, without an idempotency key, while things die: what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.harness import Site


@dataclass(kw_only=True)
class SentOnce:
    accepted: int
    failed: int
    """Requests without a 202: no answer, or another one."""
    lost: int
    doubled: int
    """Rows beyond one for each message: stored, and of no id that a client was told."""
    rate: float
    """Messages accepted per second."""
    slowest: float
    """Seconds that the slowest answer took."""
    seconds: float
    verify_exit: int
    verify: dict[str, Any]

    def check(self) -> None:
        """All were accepted, and each is there once, as it was sent."""
        assert self.failed == 0, self
        assert self.lost == 0, self
        assert self.doubled == 0, self
        assert self.verify_exit == 0, self.verify
        for name in ("lost", "duplicated", "altered", "dead"):
            assert self.verify[name] == 0, self.verify


def recorded_and_stored(site: Site, record: Path, queue: str) -> tuple[list[str], list[str]]:
    """What clients were told, and what the database has: each message as its id and its body's SHA-256."""
    with record.open() as lines:
        recorded = [line.removesuffix(f" {queue}\n") for line in lines]
    rows = site.sql(f"select id || ' ' || encode(sha256(body), 'hex') from messages where queue = '{queue}'")
    return recorded, [row[0] for row in rows]
