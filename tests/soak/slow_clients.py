"""5,000 clients of one byte a second beside 500 good requests a second."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.report import Target, record, versions
from tests.system import slow_run
from tests.system.harness import Site

COUNT = 5_000
RATE = 500.0
SECONDS = 60.0


def run() -> int:
    with tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), "sqlite:///unused.db", queues="orders")
        try:
            outcome = slow_run.run(site, count=COUNT, rate=RATE, seconds=SECONDS)
        finally:
            site.close()
    print(outcome)
    targets = [
        Target("slow clients at once", outcome.slow["most_at_once"], COUNT * 0.9, at_most=False),
        Target("good requests per second", outcome.rate, RATE * 0.98, at_most=False),
        Target("good requests not answered 202 at once", outcome.not_at_once, 0, at_most=True),
        Target("seconds for the slowest good answer", outcome.slowest, 5.0, at_most=True),
    ]
    return record(
        "soak-slow-clients",
        asdict(outcome),
        targets,
        versions("uvloop"),
        command="make soak ONLY=slow-clients",
    )


PARTS: dict[str, Callable[[], int]] = {"slow-clients": run}
