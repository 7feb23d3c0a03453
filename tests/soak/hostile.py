"""100,000 malformed requests at the socket level."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.report import Target, record, versions
from tests.system import hostile
from tests.system.harness import Site

COUNT = 100_000
SLOW = 100
SEED = 20_261_126


def run() -> int:
    with tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), "sqlite:///unused.db", queues="orders")
        try:
            result = hostile.run(site, count=COUNT, seed=SEED, slow_ones=SLOW)
        finally:
            site.close()
    outcome = result.outcome
    for line in outcome.wrong[:20]:
        print(line)
    figures = {
        "malformed": outcome.sent,
        "slow": SLOW,
        "good_in_between": outcome.controls,
        "answers": dict(sorted(_by_answer(outcome.statuses).items())),
        "kinds_and_answers": len(outcome.statuses),
        "memory_grown_bytes": result.grown,
        "accepted": outcome.accepted,
        "stored": result.stored,
    }
    targets = [
        Target("malformed requests", outcome.sent, COUNT, at_most=False),
        Target("wrong answers", len(outcome.wrong), 0, at_most=True),
        Target(
            "stored but not accepted, or the other way",
            abs(result.stored - outcome.accepted),
            0,
            at_most=True,
        ),
        Target("memory grown, bytes", result.grown, hostile.FLAT, at_most=True),
    ]
    return record("soak-hostile", figures, targets, versions("httptools"), command="make soak ONLY=hostile")


def _by_answer(statuses: dict[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for kind, count in statuses.items():
        answer = kind.rpartition(": ")[2]
        found[answer] = found.get(answer, 0) + count
    return found


PARTS: dict[str, Callable[[], int]] = {"hostile": run}
