"""How the rate of draining grows with the replicas, with a handler that takes 20 ms per message."""

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
from tests.soak.steps import Steps
from tests.system import faults_run as faults
from tests.system.faults_run import Broker
from tests.system.harness import Site
from tests.system.replicas_run import Replicas

MESSAGES = 2_400
GROWTH = {2: 1.8, 4: 3.4}
"""The least by which so many replicas are faster than one."""

BROKERS: dict[str, Callable[[Path], AbstractContextManager[Broker]]] = {
    "sqlite": faults.sqlite,
    "rabbitmq": lambda _: faults.rabbitmq(),
    "kafka": lambda _: faults.kafka(),
}


def run() -> int:
    steps = Steps("replicas")
    targets = []
    for broker, opened in BROKERS.items():
        for replicas in (1, *GROWTH):
            steps.step(f"{broker}, {replicas}", partial(_run, opened, replicas))
        results = {n: steps.results[f"{broker}, {n}"] for n in (1, *GROWTH)}
        for replicas, growth in GROWTH.items():
            ratio = results[replicas]["per_second"] / results[1]["per_second"]
            targets.append(Target(f"{broker}: rate of {replicas} / of 1", ratio, growth, at_most=False))
        doubled = sum(result["doubled"] for result in results.values())
        targets.append(Target(f"{broker}: doubled", doubled, 0, at_most=True))
    code = record(
        "soak-replicas", dict(steps.results), targets, versions("apsw", "pika", "aiokafka"),
        command="make soak ONLY=replicas",
    )  # fmt: skip
    steps.forget()
    return code


def _run(opened: Callable[[Path], AbstractContextManager[Broker]], number: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
        opened(Path(folder)) as broker,
    ):
        site = Site(Path(folder), postgres.create_database())
        try:
            site.migrate()
            replicas = Replicas(site, broker.url, number)
            replicas.until_all_take_part()
            outcome = replicas.measure(MESSAGES)
            replicas.close()
        finally:
            site.close()
    return {**asdict(outcome), "per_second": round(outcome.per_second, 1)}
