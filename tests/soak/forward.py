"""A calls B through Forebay while B is down for 30 s, slow, failing and back; three processes are killed."""

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
from tests.servers.service import Service
from tests.system import faults_run as faults
from tests.system import forward_run
from tests.system.faults_run import Broker
from tests.system.forward_run import Phases
from tests.system.harness import Site

RATE = 20.0
PHASES = Phases(well=20.0, down=30.0, slow=30.0, failing=20.0)

BROKERS: dict[str, tuple[str, Callable[[Path], AbstractContextManager[Broker]]]] = {
    "sqlite": ("all", faults.sqlite),
    "rabbitmq": ("none", lambda _: faults.rabbitmq()),
    "kafka": ("all", lambda _: faults.kafka()),
}
"""With the order that is asked for: RabbitMQ keeps none through failures."""


def _run(name: str) -> int:
    order, opened = BROKERS[name]
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
        opened(Path(folder)) as broker,
        Service() as service,
    ):
        site = Site(Path(folder), postgres.create_database())
        try:
            site.migrate()
            outcome = forward_run.run(
                site, service, broker.url, rate=RATE, phases=PHASES, order=order, within=600
            )
        finally:
            site.close()
    print(outcome)
    figures: dict[str, Any] = {**asdict(outcome), "phases": asdict(PHASES)}
    targets = [
        Target("lost", outcome.lost, 0, at_most=True),
        Target("received", outcome.received, outcome.sent, at_most=False),
        Target("dead", outcome.dead, 0, at_most=True),
        Target("requests repeated by killed consumers", outcome.repeats, 16, at_most=True),
    ]
    if order == "all":
        targets.append(Target("inversions", outcome.inversions, 0, at_most=True))
    return record(
        f"soak-forward-{name}", figures, targets, versions("apsw", "pika", "aiokafka", "aiohttp"),
        command=f"make soak ONLY=forward-{name}",
    )  # fmt: skip


PARTS: dict[str, Callable[[], int]] = {f"forward-{name}": partial(_run, name) for name in BROKERS}
