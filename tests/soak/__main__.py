"""
`make soak`: the long proofs, each with a dated row in bench/results.

    make soak                  all of them
    make soak ONLY=flights     336,776 flights through five killed consumers and 20 s without database,
                               then again through five killed gateways
    make soak ONLY=flights-table    (or -sqlite, -rabbitmq, -kafka) all flights into a typed table, one in a
                               hundred spoiled: exactly these are dead; repaired and redriven none is
    make soak ONLY=power       20 power cuts, and one without fsync that must lose
    make soak ONLY=faults-...  (sqlite, rabbitmq, rabbitmq3, kafka, kafka3; 3: a cluster of three)
                               1,000 messages a second, ten of each fault under it
    make soak ONLY=replicas    the rate with 1, 2 and 4 consumers that take 20 ms per message, on all brokers
    make soak ONLY=teeth       the same with a weakened part, which must lose
    make soak ONLY=outage-...  (sqlite, rabbitmq, kafka) ten minutes without a database at 500 messages/s
    make soak ONLY=order-...   (sqlite, kafka) 100,000 messages over 1,000 keys, failing at random, while
                               one of two consumers is killed six times: no key may be turned round
    make soak ONLY=journal-... (rabbitmq, kafka) the broker killed under 2,000 messages a second, gone for
                               60 s: nobody is refused; then the same with the gateway killed meanwhile
    make soak ONLY=fallback    the same with the other broker as fallback: rows keep arriving
    make soak ONLY=forward     (or -sqlite, -rabbitmq, -kafka) one service calls another through us while that
                               is down for 30 s, slow, failing and back; a gateway and two consumers killed
    make soak ONLY=proxied     (or -sqlite, -rabbitmq) one of two gateways behind nginx killed ten times,
                               under 500 messages a second of clients without idempotency keys
    make soak ONLY=rolling     the commit before this one rolled to this one and back, ten times, under 500
                               requests a second through nginx; then versions that are broken
    make soak ONLY=reloads     nginx reloaded 20 times under 500 messages a second of clients that try once
    make soak ONLY=slow-clients     5,000 clients of one byte a second beside 500 good requests a second
    make soak ONLY=burst       20 times the database's capacity for 30 s, on it directly and on the gateway
    make soak ONLY=demo        forebay demo on servers of its own
    make soak ONLY=hostile     100,000 malformed requests at the socket: 4xx or closed, memory flat

Interrupted, it goes on at the step where it stopped: steps that are done are kept in
.cache/soak until the whole run is recorded.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.report import Target, record, versions
from tests import flights
from tests.servers.postgres import Postgres
from tests.soak import (
    burst,
    demo,
    faults,
    flights_table,
    forward,
    hostile,
    journal,
    order,
    outage,
    proxied,
    reloads,
    replicas,
    rolling,
    slow_clients,
)
from tests.soak.steps import Steps
from tests.system import flights_run
from tests.system.harness import Site
from tests.system.power import CannotCut, cut_power_once

CUTS = 20


def run_flights() -> int:
    steps = Steps("flights")
    steps.step("killed consumers", lambda: _flights(consumer_kills=5, gateway_kills=0, outage=20.0))
    steps.step("killed gateways", lambda: _flights(consumer_kills=5, gateway_kills=5, outage=0.0))
    targets = [
        Target(f"{run}: {what}", result["verify"][what], 0, at_most=True)
        for run, result in steps.results.items()
        for what in ("lost", "duplicated", "altered", "dead")
    ]
    code = record(
        "soak-flights",
        dict(steps.results),
        targets,
        versions("apsw", "psycopg"),
        command="make soak ONLY=flights",
    )
    steps.forget()
    return code


def _flights(*, consumer_kills: int, gateway_kills: int, outage: float) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
    ):
        site = Site(Path(folder), postgres.create_database())
        try:
            site.migrate()
            outcome = flights_run.run(
                site, postgres, count=flights.COUNT, consumer_kills=consumer_kills,
                gateway_kills=gateway_kills, outage=outage, within=3_600,
            )  # fmt: skip
        finally:
            site.close()
    flights_run.check(outcome)
    return {
        "flights": outcome.sent,
        "consumers_killed": outcome.consumer_kills,
        "gateways_killed": outcome.gateway_kills,
        "seconds_without_database": outcome.outage_seconds,
        "seconds": round(outcome.seconds, 1),
        "rows_with_the_right_digest": (outcome.bodies & outcome.expected).total(),
        "most_attempts": outcome.most_attempts,
        "verify": {k: v for k, v in outcome.verify.items() if isinstance(v, int | float | str | bool)},
    }


def run_power() -> int:
    steps = Steps("power")
    for number in range(1, CUTS + 1):
        after = random.Random(number).randint(20, 4_000)
        steps.step(f"cut {number}", partial(_cut, after=after))
    steps.step("without fsync", partial(_cut, after=2_000, weakened=True))
    cuts = [result for name, result in steps.results.items() if name.startswith("cut ")]
    control = steps.results["without fsync"]
    figures = {
        "cuts": len(cuts),
        "promised": sum(cut["promised"] for cut in cuts),
        "control_without_fsync": control,
    }
    targets = [
        Target("lost", sum(cut["lost"] for cut in cuts), 0, at_most=True),
        Target("altered", sum(cut["altered"] for cut in cuts), 0, at_most=True),
        Target("lost by the control without fsync", control["lost"], 1, at_most=False),
    ]
    code = record("soak-power", figures, targets, versions("apsw"), command="make soak ONLY=power")
    steps.forget()
    return code


def _cut(*, after: int, weakened: bool = False) -> dict[str, int]:
    with tempfile.TemporaryDirectory(prefix="forebay-power-", ignore_cleanup_errors=True) as folder:
        return asdict(cut_power_once(Path(folder) / "site", after=after, weakened=weakened))


PARTS: dict[str, Callable[[], int]] = {
    "flights": run_flights,
    "power": run_power,
    "replicas": replicas.run,
    **burst.PARTS,
    **demo.PARTS,
    **faults.PARTS,
    **journal.PARTS,
    **order.PARTS,
    **outage.PARTS,
    **proxied.PARTS,
    **reloads.PARTS,
    **flights_table.PARTS,
    **forward.PARTS,
    **hostile.PARTS,
    **rolling.PARTS,
    **slow_clients.PARTS,
}

GROUPS = {
    "flights-table": list(flights_table.PARTS),
    "forward": list(forward.PARTS),
    "proxied": list(proxied.PARTS),
}
"""Names for several parts."""


def main(only: list[str]) -> int:
    unknown = set(only) - PARTS.keys() - GROUPS.keys()
    if unknown:
        there = ", ".join([*PARTS, *GROUPS])
        print(f"no soak test {', '.join(sorted(unknown))}; there are: {there}", file=sys.stderr)
        return 2
    failed = []
    for part in [part for name in only for part in GROUPS.get(name, [name])] or PARTS:
        try:
            if PARTS[part]() != 0:
                failed.append(part)
        except CannotCut as reason:
            print(f"{part}: could not run: {reason}", file=sys.stderr)
            failed.append(part)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
