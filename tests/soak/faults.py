"""Ten of each fault under 1,000 messages a second on each broker, and the same with a weakened part."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from bench.report import Target, record, versions
from tests.servers.postgres import Postgres
from tests.soak.steps import Steps
from tests.system import faults_run as faults
from tests.system.faults_run import Broker, Fault
from tests.system.harness import Site

RATE = 1_000.0
TIMES = 10

Opener = Callable[[], AbstractContextManager[Broker]]

PROCESSES = (faults.gateway_killed, faults.consumer_killed, faults.consumer_killed_after_commit)
SERVER = (*PROCESSES, faults.broker_restarted, faults.broker_stopped)
CLUSTER = (*PROCESSES, faults.leader_killed, faults.follower_killed, faults.leader_stopped)
KAFKA_CLUSTER = (*CLUSTER, faults.controller_killed, faults.coordinator_killed)
NODE_KILLED = {"leader_killed", "follower_killed", "controller_killed", "coordinator_killed"}
"""After these the longest time without a 202 has a bound."""


def run_sqlite() -> int:
    return _all_of("sqlite", faults.sqlite, None, PROCESSES, versions("apsw"))


def run_rabbitmq() -> int:
    proxied = partial(faults.rabbitmq, proxied=True)
    return _all_of("rabbitmq", lambda _: faults.rabbitmq(), proxied, SERVER, versions("pika"))


def run_rabbitmq3() -> int:
    opened, proxied = partial(faults.rabbitmq, nodes=3), partial(faults.rabbitmq, nodes=3, proxied=True)
    return _all_of("rabbitmq3", lambda _: opened(), proxied, CLUSTER, versions("pika"), gap=2.0)


def run_kafka() -> int:
    proxied = partial(faults.kafka, proxied=True)
    return _all_of("kafka", lambda _: faults.kafka(), proxied, SERVER, versions("aiokafka"))


def run_kafka3() -> int:
    opened, proxied = partial(faults.kafka, nodes=3), partial(faults.kafka, nodes=3, proxied=True)
    return _all_of("kafka3", lambda _: opened(), proxied, KAFKA_CLUSTER, versions("aiokafka"), gap=5.0)


def _all_of(
    broker: str,
    opened: Callable[[Path], AbstractContextManager[Broker]],
    proxied: Opener | None,
    kinds: Sequence[Fault],
    packages: dict[str, str],
    *,
    gap: float | None = None,
) -> int:
    """Each kind is a step with a load of its own. `gap`: the longest without a 202 when a node was killed."""
    part = f"faults-{broker}"
    steps = Steps(part)
    for kind in kinds:
        steps.step(kind.__name__, partial(_run, opened, [kind] * TIMES))
    if proxied is not None:
        # The proxies cost time of their own, so nothing else is measured through them.
        cut = faults.cut_before_confirm
        steps.step(cut.__name__, partial(_run, lambda _: proxied(), [cut] * TIMES))
    targets = [
        Target(f"{kind}: {what}", result[what], bound, at_most=True)
        for kind, result in steps.results.items()
        for what, bound in _BOUNDS.items()
    ]
    if gap is not None:
        targets += [
            Target(f"{kind}: longest gap", steps.results[kind]["longest_gap"], gap, at_most=True)
            for kind in sorted(steps.results.keys() & NODE_KILLED)
        ]
    code = record(f"soak-{part}", dict(steps.results), targets, packages, command=f"make soak ONLY={part}")
    steps.forget()
    return code


_BOUNDS = {
    "lost": 0, "unknown": 0, "dead_letters": 0, "most_attempts": 1,
    "verify_exit": 0, "verify_lost": 0, "verify_duplicated": 0, "verify_altered": 0,
}  # fmt: skip


def _run(
    opened: Callable[[Path], AbstractContextManager[Broker]], kinds: Sequence[Fault], **how: Any
) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
        opened(Path(folder)) as broker,
    ):
        site = Site(Path(folder), postgres.create_database())
        try:
            site.migrate()
            outcome = faults.run(site, broker, kinds, rate=RATE, **how)
        finally:
            site.close()
    return {
        "times": len(outcome.injuries),
        "accepted": outcome.accepted,
        "seconds": round(outcome.seconds, 1),
        "rate_before": round(outcome.rate_before),
        "longest_gap_before": round(outcome.longest_gap_before, 3),
        "longest_gap": round(outcome.longest_gap(), 3),
        "median_gap": round(statistics.median(i.gap for i in outcome.injuries), 3),
        "longest_overcome": round(max(i.overcome for i in outcome.injuries), 1),
        "slowest_answer": round(outcome.slowest_answer, 2),
        "retries": outcome.retries,
        "lost": outcome.lost,
        "unknown": outcome.unknown,
        "dead_letters": outcome.dead_letters,
        "most_attempts": outcome.most_attempts,
        "verify_exit": outcome.verify_exit,
        **{f"verify_{name}": outcome.verify[name] for name in ("lost", "waiting", "duplicated", "altered")},
    }


def run_teeth() -> int:
    """What is weakened must lose messages, and be found out."""
    rabbitmq: Opener = faults.rabbitmq
    kafka: Opener = faults.kafka
    kafka3: Opener = partial(faults.kafka, nodes=3)
    weakened: dict[str, tuple[Opener, list[Fault], dict[str, str]]] = {
        "rabbitmq, publisher confirms off": (
            rabbitmq, [faults.broker_restarted] * 3, {"gateway": "confirms_off"}),
        "kafka3, acks=1": (kafka3, [faults.leader_killed_alone] * 3, {"gateway": "acks_1"}),
        "kafka, auto-commit": (kafka, [faults.consumer_killed] * 3, {"consumer": "auto_commit"}),
        "rabbitmq, acknowledged before the commit": (
            rabbitmq, [faults.consumer_killed] * 3, {"consumer": "ack_first"}),
        "kafka, acknowledged before the commit": (
            kafka, [faults.consumer_killed] * 3, {"consumer": "ack_first"}),
    }  # fmt: skip
    steps = Steps("teeth")
    for name, (opened, kinds, how) in weakened.items():
        steps.step(name, partial(_weakened, opened, kinds, how))
    targets = []
    for name, result in steps.results.items():
        missed = result["verify_lost"] + result["verify_waiting"]
        targets.append(Target(f"{name}: lost", result["lost"], 1, at_most=False))
        targets.append(Target(f"{name}: missed by verify", missed, result["lost"], at_most=False))
        targets.append(Target(f"{name}: exit code of verify", result["verify_exit"], 1, at_most=False))
    packages = versions("pika", "aiokafka")
    code = record("soak-teeth", dict(steps.results), targets, packages, command="make soak ONLY=teeth")
    steps.forget()
    return code


def _weakened(opened: Opener, kinds: Sequence[Fault], how: dict[str, str]) -> dict[str, Any]:
    return _run(lambda _: opened(), kinds, weakened=True, **how)


PARTS: dict[str, Callable[[], int]] = {
    "faults-sqlite": run_sqlite,
    "faults-rabbitmq": run_rabbitmq,
    "faults-rabbitmq3": run_rabbitmq3,
    "faults-kafka": run_kafka,
    "faults-kafka3": run_kafka3,
    "teeth": run_teeth,
}
