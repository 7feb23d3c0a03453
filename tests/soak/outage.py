"""Ten minutes without a database at 500 messages a second, on each broker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.report import Target, record, versions
from tests.servers.postgres import Postgres
from tests.system import faults_run as faults
from tests.system import outage_run
from tests.system.faults_run import Broker
from tests.system.harness import Site

RATE = 500.0
OUTAGE = 600.0

BROKERS: dict[str, Callable[[Path], AbstractContextManager[Broker]]] = {
    "sqlite": faults.sqlite,
    "rabbitmq": lambda _: faults.rabbitmq(),
    "kafka": lambda _: faults.kafka(),
}


def _run(name: str) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
        BROKERS[name](Path(folder)) as broker,
    ):
        site = Site(Path(folder), postgres.create_database())
        site.settings["BROKER__URL"] = broker.url
        try:
            site.migrate()
            outcome = outage_run.run(site, postgres, rate=RATE, outage=OUTAGE)
        finally:
            site.close()
    print(outcome)
    figures: dict[str, Any] = asdict(outcome)
    targets = [
        Target("lost", outcome.lost, 0, at_most=True),
        Target("duplicated", outcome.duplicated, 0, at_most=True),
        Target("dead", outcome.dead, 0, at_most=True),
        Target("most attempts", outcome.most_attempts, 1, at_most=True),
        Target("seconds to the first row", outcome.first_row, 2.0, at_most=True),
        Target("rate of the drain / of the ingress", outcome.drain_rate / outcome.rate, 2.0, at_most=False),
    ]
    return record(
        f"soak-outage-{name}", figures, targets, versions("apsw", "pika", "aiokafka"),
        command=f"make soak ONLY=outage-{name}",
    )  # fmt: skip


PARTS: dict[str, Callable[[], int]] = {f"outage-{name}": partial(_run, name) for name in BROKERS}
