"""
`make bench`: every part in turn, or those named; an interrupted run goes on where it stopped.
After all of them, the README's table and the plots are written anew.

Which parts of the current run are done is kept in .cache/bench; the figures are in bench/results.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.report import BELOW_TARGET
from bench.table import main as write_table

PARTS = (
    "start",
    "ingest",
    "ingest_brokers",
    "keys",
    "workers",
    "batch",
    "embedded_publish",
    "publish",
    "sink_write",
    "table_write",
    "consume",
    "drain",
    "backlog",
    "gateway_backlog",
    "disk",
    "proxies",
)
DONE = Path(__file__).parent.parent / ".cache" / "bench"


def main(only: list[str]) -> int:
    unknown = set(only) - set(PARTS)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    DONE.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in only or PARTS:
        mark = DONE / part
        if not only and mark.exists():
            print(f"{part}: done earlier in this run (rm -r .cache/bench starts anew)")
            continue
        code = subprocess.run([sys.executable, "-m", f"bench.{part}"]).returncode
        if code != 0:
            failed.append(part)
        if not only and code in (0, BELOW_TARGET):
            mark.touch()
    if not only and all((DONE / part).exists() for part in PARTS):
        for part in PARTS:
            (DONE / part).unlink()
    if not only:
        write_table([])
    if failed:
        print(f"below target, or failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
