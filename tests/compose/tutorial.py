"""
The tutorial's project in the stack, as docs/tutorial.md says; its consumer dies by `docker kill -s KILL`.

The victim stops at an exact point (tests/system/sabotage.py, mounted into its container)
and is killed there: with three orders inserted and nothing committed, and with a batch
committed and not acknowledged. The stack's own consumers then take over.
"""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from tests.compose.stack import ROOT, Stack
from tests.system import sabotage
from tests.system.harness import FOREBAY, until

PROJECT = ROOT / "examples" / "tutorial"
MOMENTS = ("stay_in_handler", "stay_handled")
SENT = [json.loads(line) for line in (PROJECT / "orders.ndjson").read_text().splitlines()]
COUNT = len(SENT) * len(MOMENTS)

# What there is, how often an order was handled beyond the first time, and what left the stock.
FOUND = """
    SELECT count(*), count(*) - count(DISTINCT message_id), (SELECT sum(1000 - copies) FROM stock) FROM orders
"""


def run(stack: Stack, folder: Path) -> dict[str, Any]:
    """The orders done and done twice, and how many rows there were when each consumer was killed."""
    shop = stack.changed_by("examples/tutorial/compose.override.yml")
    shop.compose("build", "--quiet", "consumer")
    shop.up("--scale", "consumer=0")
    shop.sql((PROJECT / "schema.sql").read_text())
    figures: dict[str, Any] = {"done": 0}
    for moment in MOMENTS:
        before = found(shop)[0]
        victim = shop.compose(
            "run", "-d", "--no-deps", "-T", "-v", f"{sabotage.__file__}:/sabotage.py:ro",
            "--entrypoint", "python", "consumer", "/sabotage.py", moment, "consume",
        ).split()[-1]  # fmt: skip
        record = f"{moment}.txt"
        subprocess.run(
            [
                FOREBAY, "send", "orders", "--ndjson", str(PROJECT / "orders.ndjson"),
                "--record", str(folder / record),
            ],
            check=True, capture_output=True, timeout=120, env=stack.sender,
        )  # fmt: skip
        until(partial(stays, victim), within=90, what=f"{moment} in the victim", every=0.5)
        figures[f"rows_when_killed_{moment}"] = rows = found(shop)[0] - before
        assert (rows == 0) == (moment == "stay_in_handler"), f"{moment}: {rows} rows were committed"
        subprocess.run(["docker", "kill", "-s", "KILL", victim], check=True, capture_output=True)
        shop.up("--scale", "consumer=2")
        figures["done"] += verified(shop, folder, record)
        shop.up("--scale", "consumer=0")
        subprocess.run(["docker", "rm", "-f", victim], check=True, capture_output=True)
    rows, figures["twice"], gone = found(shop)
    copies = sum(order["copies"] for order in SENT) * len(MOMENTS)
    assert (rows, gone) == (COUNT, copies), (
        f"{rows} rows and {gone} copies gone; {COUNT} and {copies} expected"
    )
    return figures


def found(shop: Stack) -> tuple[int, int, int]:
    rows, twice, gone = shop.sql(FOUND + ";").strip().split("|")
    return int(rows), int(twice), int(gone)


def stays(container: str) -> bool:
    done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True)
    return sabotage.STAYS in done.stdout


def verified(shop: Stack, folder: Path, record: str) -> int:
    """The orders of this record that were handled, when none of them waits any longer."""
    done = shop.verify(folder / record)
    assert (done["dead"], done["lost"], done["duplicated"], done["altered"]) == (0, 0, 0, 0), done
    return int(done["done"])
