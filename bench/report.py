"""
How every benchmark measures and reports: CPU time of processes, medians of interleaved runs, one dated row.

A row of bench/results/<part>.jsonl holds the figures with the machine, the versions,
the commit and the command that reproduces them. Rows are only ever appended; a
figure that we lose stays there.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

BELOW_TARGET = 3
"""Exit code of a benchmark that ran to its end and missed a target: measured, recorded, lost."""


@dataclass
class Series:
    """What one variant cost in each round."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.values.append(value)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        return f"{min(self.values):.4g}..{max(self.values):.4g}"


def ratio(ours: Series, theirs: Series) -> float:
    """
    The median of the rounds' ratios.

    Both of a round ran within seconds of each other, so that a machine that is slow
    for a minute slows both; comparing medians of all rounds would not cancel that.
    """
    return statistics.median(a / b for a, b in zip(ours.values, theirs.values, strict=True))


def machine() -> dict[str, Any]:
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(*packages: str) -> dict[str, str]:
    found = {name: version(name) for name in packages}
    return {"python": platform.python_version(), "commit": _commit(), **found}


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=Path(__file__).parent, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip() or "not a checkout"


@dataclass
class Target:
    """A figure, the bound that the project sets itself, and whether it holds."""

    name: str
    value: float
    bound: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        bound = f"{'≤' if self.at_most else '≥'} {self.bound:g}"
        return f"{self.name}: {self.value:.3f} (target {bound}: {'met' if self.met else 'NOT met'})"


def record(
    part: str,
    figures: dict[str, Any],
    targets: Sequence[Target],
    packages: dict[str, str],
    *,
    command: str | None = None,
) -> int:
    """Print and append one dated row; return the exit code: 0, or BELOW_TARGET."""
    command = command or f"make bench ONLY={part}"
    row = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "part": part,
        "command": command,
        "machine": machine(),
        "versions": packages,
        "load_before": round(os.getloadavg()[0], 2),
        "figures": figures,
        "targets": {
            t.name: {
                "value": round(t.value, 4),
                "bound": t.bound,
                "at_most": t.at_most,
                "met": t.met,
            }
            for t in targets
        },
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{part}.jsonl").open("a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"\n{part}  {row['date']}")
    print("  " + ", ".join(f"{k} {v}" for k, v in machine().items()))
    print("  " + ", ".join(f"{k} {v}" for k, v in packages.items()))
    print(f"  {row['command']}")
    for name, value in figures.items():
        print(f"  {name}: {value}")
    for target in targets:
        print(f"  {target}")
    return 0 if all(t.met for t in targets) else BELOW_TARGET


def interleave(rounds: int, *variants: Callable[[], None]) -> None:
    """Run every variant once per round, in turns, so that a noisy minute hits all of them."""
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for variant in variants:
            variant()
