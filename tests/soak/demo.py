"""`forebay demo` on a PostgreSQL and a RabbitMQ of its own: both killed, nobody refused, nothing lost."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable

from bench.report import Target, record, versions
from tests.system.harness import FOREBAY


def run() -> int:
    with tempfile.TemporaryDirectory(prefix="forebay-soak-") as folder:
        began = time.monotonic()
        done = subprocess.run(
            [FOREBAY, "demo", "--json"], cwd=folder, stdout=subprocess.PIPE, text=True, timeout=600
        )
        took = time.monotonic() - began
    found = json.loads(done.stdout)
    figures = {**found, "took": round(took, 1)}
    ledger = found["ledger"]
    targets = [
        Target("exit code", done.returncode, 0, at_most=True),
        Target("parts that were killed", _killed(found), 2, at_most=False),
        Target("orders that the gateway did not answer 202", found["forebay"]["failed"], 0, at_most=True),
        Target("orders that the direct endpoint failed", found["direct"]["failed"], 1, at_most=False),
        Target("lost", ledger["lost"], 0, at_most=True),
        Target("duplicated", ledger["duplicated"], 0, at_most=True),
        Target("still waiting", ledger["waiting"], 0, at_most=True),
        Target("dead, beside the poison message", ledger["dead"] - 1, 0, at_most=True),
        Target("seconds from the start to the ledger", took, 120, at_most=True),
    ]
    return record(
        "soak-demo", figures, targets, versions("apsw", "pika", "psycopg"), command="make soak ONLY=demo"
    )


def _killed(found: dict[str, dict[str, str]]) -> int:
    return sum(found[part]["fate"] == "killed" for part in ("database", "broker"))


PARTS: dict[str, Callable[[], int]] = {"demo": run}
