"""A broker that is gone for 60 s in the middle of 2,000 messages a second, and nobody is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.report import Target, record, versions
from tests.servers.postgres import Postgres
from tests.soak.steps import Steps
from tests.system import faults_run as faults
from tests.system import journal_run
from tests.system.faults_run import Broker
from tests.system.harness import Site

RATE = 2_000.0
GONE = 60.0

BROKERS: dict[str, Callable[[], AbstractContextManager[Broker]]] = {
    "rabbitmq": faults.rabbitmq,
    "kafka": faults.kafka,
}
REQUEST_TIMEOUT = 5.0
"""Seconds within which each request is answered, by default."""


def run_journal(name: str) -> int:
    part = f"journal-{name}"
    steps = Steps(part)
    steps.step("broker killed", partial(_run, name))
    kills: Sequence[Callable[[journal_run.Run], None]] = [journal_run.Run.kill_gateway]
    steps.step("and the gateway, too", partial(_run, name, meanwhile=kills))
    return _recorded(steps, part)


def run_fallback() -> int:
    steps = Steps("fallback")
    for name, other in (("rabbitmq", "kafka"), ("kafka", "rabbitmq")):
        steps.step(f"{name}, then {other}", partial(_run, name, other=other))
    more = [
        Target(f"{step}: {what}", result[what], bound, at_most=at_most)
        for step, result in steps.results.items()
        for what, bound, at_most in (("journaled", 0, True), ("stored_meanwhile", RATE * GONE / 4, False))
    ]
    # Across two brokers there is no order.
    return _recorded(steps, "fallback", more, without=("turned_round",))


def _recorded(steps: Steps, part: str, more: Sequence[Target] = (), *, without: Sequence[str] = ()) -> int:
    targets = [
        Target(f"{step}: {what}", result[what], bound, at_most=True)
        for step, result in steps.results.items()
        for what, bound in _BOUNDS.items()
        if what not in without
    ]
    packages = versions("apsw", "pika", "aiokafka")
    code = record(
        f"soak-{part}", dict(steps.results), [*targets, *more], packages, command=f"make soak ONLY={part}"
    )
    steps.forget()
    return code


_BOUNDS = {
    "lost": 0, "duplicated": 0, "altered": 0, "dead": 0, "most_attempts": 1, "verify_exit": 0,
    "refused_later": 0, "turned_round": 0, "slowest_answer": REQUEST_TIMEOUT,
}  # fmt: skip


def _run(name: str, *, other: str | None = None, **how: Any) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True)
        )
        postgres = stack.enter_context(Postgres())
        broker = stack.enter_context(BROKERS[name]())
        if other is not None:
            how |= {"fallback": stack.enter_context(BROKERS[other]()).url, "journal": False}
        site = Site(Path(folder), postgres.create_database())
        stack.callback(site.close)
        site.migrate()
        outcome = journal_run.run(site, broker, rate=RATE, gone=GONE, drain_within=600, **how)
    return asdict(outcome)


PARTS: dict[str, Callable[[], int]] = {
    **{f"journal-{name}": partial(run_journal, name) for name in BROKERS},
    "fallback": run_fallback,
}
