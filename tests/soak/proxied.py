"""One of two gateways killed ten times behind nginx, under 500 messages a second without idempotency keys."""

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
from tests.system import proxied_run
from tests.system.faults_run import Broker
from tests.system.harness import Site

RATE = 500.0
KILLS = 10

BROKERS: dict[str, Callable[[Path], AbstractContextManager[Broker]]] = {
    "sqlite": faults.sqlite,
    "rabbitmq": lambda _: faults.rabbitmq(),
}


def _run(name: str) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
        BROKERS[name](Path(folder)) as broker,
    ):
        site = Site(Path(folder), postgres.create_database())
        site.settings["BROKER__URL"] = broker.url
        site.migrate()
        outcome = proxied_run.run(site, rate=RATE, kills=KILLS)
    print(outcome)
    figures: dict[str, Any] = asdict(outcome)
    figures["verify"] = {k: v for k, v in outcome.verify.items() if isinstance(v, int | float | str | bool)}
    targets = [
        Target("failed", outcome.failed, 0, at_most=True),
        Target("lost", outcome.lost, 0, at_most=True),
        Target("doubled", outcome.doubled, 0, at_most=True),
        Target("verify: lost", outcome.verify["lost"], 0, at_most=True),
        Target("verify: duplicated", outcome.verify["duplicated"], 0, at_most=True),
        Target("requests that another gateway had to answer", outcome.asked_again, 1, at_most=False),
    ]
    return record(
        f"soak-proxied-{name}", figures, targets, versions("apsw", "pika"),
        command=f"make soak ONLY=proxied-{name}",
    )  # fmt: skip


PARTS: dict[str, Callable[[], int]] = {f"proxied-{name}": partial(_run, name) for name in BROKERS}
