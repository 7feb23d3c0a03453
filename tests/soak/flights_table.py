"""All flights into a typed table with one in a hundred poison, then repaired, on each broker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from bench.report import Target, record, versions
from tests import flights
from tests.servers.postgres import Postgres
from tests.soak.steps import Steps
from tests.system import faults_run as faults
from tests.system import flights_table_run
from tests.system.faults_run import Broker
from tests.system.harness import Site

KILLS = 4
CORRECTIONS = 1_000

Opened = Callable[[Path], AbstractContextManager[Broker]]

BROKERS: dict[str, tuple[Opened, str]] = {
    "sqlite": (faults.sqlite, "apsw"),
    "rabbitmq": (lambda _: faults.rabbitmq(), "pika"),
    "kafka": (lambda _: faults.kafka(), "aiokafka"),
}


def _run(broker: str) -> int:
    opened, package = BROKERS[broker]
    part = f"flights-table-{broker}"
    steps = Steps(part)
    steps.step("all flights", partial(_flights, opened))
    figures, must = steps.results["all flights"]["figures"], steps.results["all flights"]["must"]
    # Each is to be exactly so: neither more nor less.
    targets = [Target(what, abs(value - bound), 0, at_most=True) for what, (value, bound) in must.items()]
    code = record(
        f"soak-{part}", figures, targets, versions(package, "psycopg"), command=f"make soak ONLY={part}"
    )
    steps.forget()
    return code


def _flights(opened: Opened) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
        opened(Path(folder)) as broker,
    ):
        site = Site(Path(folder), postgres.create_database())
        try:
            site.migrate()
            outcome = flights_table_run.run(
                site, broker.url, count=flights.COUNT, kills=KILLS, corrections=CORRECTIONS, within=3_600
            )
        finally:
            site.close()
    return {"figures": outcome.figures(), "must": flights_table_run.bounds(outcome)}


PARTS: dict[str, Callable[[], int]] = {f"flights-table-{broker}": partial(_run, broker) for broker in BROKERS}
