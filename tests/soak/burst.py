"""Twenty times the database's capacity for 30 s: all of it accepted in milliseconds, and all of it stored."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.report import Target, record, versions
from tests.servers.postgres import Postgres
from tests.system import burst_run
from tests.system.harness import Site

SECONDS = 30.0
TIMEOUT = 30.0


def run() -> int:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
    ):
        site = Site(Path(folder), postgres.create_database())
        try:
            site.migrate()
            outcome = burst_run.run(site, postgres, seconds=SECONDS, timeout=TIMEOUT, idle=20)
        finally:
            site.close()
    gateway, direct = outcome.gateway, outcome.direct
    targets = [
        Target("offered / the database's capacity", outcome.rate / outcome.capacity, 19.9, at_most=False),
        Target("orders that the load could not send", direct.not_sent + gateway.not_sent, 0, at_most=True),
        Target("share that the direct endpoint failed", direct.failed / direct.sent, 0.5, at_most=False),
        Target("orders that the gateway did not answer 202", gateway.failed, 0, at_most=True),
        Target("p99 of the gateway in seconds", gateway.p99 or 0.0, outcome.bound, at_most=True),
        Target(
            "orders accepted and not stored",
            gateway.sent + outcome.idle.sent - outcome.stored,
            0,
            at_most=True,
        ),
        Target("lost", outcome.lost, 0, at_most=True),
        Target("duplicated", outcome.duplicated, 0, at_most=True),
    ]
    return record(
        "soak-burst",
        {**asdict(outcome), "bound": outcome.bound},
        targets,
        versions("uvloop", "sqlalchemy", "psycopg"),
        command="make soak ONLY=burst",
    )


PARTS: dict[str, Callable[[], int]] = {"burst": run}
