"""The commit before this one rolled to this one and back under load, ten times; and broken versions."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.report import Target, record, versions
from tests.servers.postgres import Postgres
from tests.soak.steps import Steps
from tests.system import rolling_run
from tests.system.harness import Site
from tests.system.releases import BROKEN
from tests.system.rolling_run import N, Rolled

TIMES = 10
TOGETHER = 2
"""So many times in one go: the run goes on there if it is interrupted."""
RATE = 500.0


def run() -> int:
    steps = Steps("rolling")
    steps.step("broken versions", partial(_run, ["old"], broken=list(BROKEN)))
    for number in range(TIMES // TOGETHER):
        steps.step(f"forward and back {number + 1}", partial(_run, ["old", *["new", "old"] * TOGETHER]))
    results = steps.results.values()
    figures = {
        "forward_and_back": TIMES,
        "from": steps.results["broken versions"]["from"],
        "stopped": steps.results["broken versions"]["stopped"],
        "accepted": sum(one["accepted"] for one in results),
        "least_rate": min(one["rate"] for one in results),
        "slowest": max(one["slowest"] for one in results),
        "looks": sum(one["looks"] for one in results),
        "seconds": round(sum(one["seconds"] for one in results)),
    }
    targets = [
        *(
            Target(what, sum(one[what] for one in results), 0, at_most=True)
            for what in ("failed", "lost", "doubled")
        ),
        *(
            Target(f"verify: {what}", sum(one["verify"][what] for one in results), 0, at_most=True)
            for what in ("lost", "duplicated", "altered", "dead")
        ),
        Target("least in rotation", min(one["least_in_rotation"] for one in results), N, at_most=False),
        Target("broken versions stopped", len(figures["stopped"]), len(BROKEN), at_most=False),
    ]
    code = record(
        "soak-rolling", figures, targets, versions("apsw", "psycopg"), command="make soak ONLY=rolling"
    )
    steps.forget()
    return code


def _run(order: Sequence[str], *, broken: Sequence[str] = ()) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="forebay-soak-", ignore_cleanup_errors=True) as folder,
        Postgres() as postgres,
    ):
        site = Site(Path(folder), postgres.create_database())
        this = Rolled(site)
        try:
            previous = this.releases.add_previous("old")
            this.releases.add("new")
            for how in broken:
                this.releases.add_broken(how, good="old")
            outcome = rolling_run.run(this, order, broken=broken, rate=RATE)
        finally:
            this.close()
            site.close()
    outcome.check()
    return {**asdict(outcome), "from": previous}


PARTS = {"rolling": run}
