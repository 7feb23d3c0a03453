"""
How long a person waits for a command: `forebay --help`, and `forebay dev` on a folder it has used before.

Wall time, the median of several starts, since the first may read everything from the disk.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.report import Series, Target, record, versions
from tests.system.harness import FOREBAY, Site

ROUNDS = 7
HELP = 0.3
AGAIN = 3.0
"""Seconds."""


def timed(run: Callable[[], object]) -> Series:
    series = Series()
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        series.add(time.perf_counter() - began)
    return series


def dev_again(site: Site) -> Series:
    """From the command until /readyz says ready; the first start, which makes the files, is not counted."""
    ready = Series()
    for number in range(ROUNDS + 1):
        began = time.perf_counter()
        process = site.dev()
        if number:
            ready.add(time.perf_counter() - began)
        assert process.stop() == 0, process.tail()
    return ready


def main() -> int:
    asked = timed(lambda: subprocess.run([FOREBAY, "--help"], capture_output=True, check=True))
    with tempfile.TemporaryDirectory(prefix="forebay-bench-", ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), f"sqlite:///{Path(folder) / 'forebay.db'}")
        try:
            again = dev_again(site)
        finally:
            site.close()
    figures: dict[str, object] = {"method": f"wall time, the median of {ROUNDS}"}
    for name, series in (("forebay --help", asked), ("forebay dev, again, until ready", again)):
        figures[name] = {"seconds": round(series.median, 3), "spread": series.spread}
    targets = [
        Target("seconds for forebay --help", asked.median, HELP, at_most=True),
        Target("seconds until forebay dev is ready again", again.median, AGAIN, at_most=True),
    ]
    return record("start", figures, targets, versions("typer", "fastapi", "uvicorn"))


if __name__ == "__main__":
    sys.exit(main())
