"""Order by key through failures: 100,000 messages over 1,000 keys, one of two consumers killed six times."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from bench.report import Target, record, versions
from tests.servers.postgres import Postgres
from tests.system import faults_run as faults
from tests.system import order_run
from tests.system.faults_run import Broker
from tests.system.harness import Site

MESSAGES = 100_000
KEYS = 1_000
KILLS = 6


def run_sqlite() -> int:
    return _run("order-sqlite", faults.sqlite, versions("apsw", "psycopg"))


def run_kafka() -> int:
    return _run("order-kafka", lambda _: faults.kafka(), versions("aiokafka", "psycopg"))


def _run(
    part: str, opened: Callable[[Path], AbstractContextManager[Broker]], packages: dict[str, str]
) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
        opened(Path(folder)) as broker,
    ):
        site = Site(Path(folder), postgres.create_database())
        try:
            site.migrate()
            outcome = order_run.run(site, broker.url, count=MESSAGES, keys=KEYS, kills=KILLS, within=3_600)
        finally:
            site.close()
    targets = [
        Target("inversions", outcome.inversions, 0, at_most=True),
        Target("lost", outcome.lost, 0, at_most=True),
        Target("twice", outcome.twice, 0, at_most=True),
        Target("dead beyond those rejected", outcome.dead - outcome.rejected, 0, at_most=True),
    ]
    figures = {**asdict(outcome), "seconds": round(outcome.seconds, 1)}
    return record(f"soak-{part}", figures, targets, packages, command=f"make soak ONLY={part}")


PARTS: dict[str, Callable[[], int]] = {"order-sqlite": run_sqlite, "order-kafka": run_kafka}
