"""docs/observability.md has a table of all metrics; here it is compared with what /metrics can tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from consumers.gauges import FleetGauges
from consumers.metrics import ConsumerMetrics
from consumers.status import QueueStatus
from forebay.figures import Figures, Place
from gateway.metrics import GatewayMetrics

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"
ROW = re.compile(r"^\| `(forebay_\w+)(?:\{([\w,]+)\})?` \| (\w+) \|", re.MULTILINE)


class Idle:
    """A fleet without queues: its gauges are all there, and have no samples."""

    broker = "memory"
    figures: Mapping[Place, Figures] = {}
    dead_letters: Mapping[str, int] = {}

    def looked_ago(self) -> float | None:
        return None

    def snapshot(self) -> Sequence[QueueStatus]:
        return []


def told() -> set[tuple[str, tuple[str, ...], str]]:
    """Name, labels and kind of every metric of ours."""
    registry = CollectorRegistry()
    metrics = [*vars(GatewayMetrics(registry)).values(), *vars(ConsumerMetrics(registry)).values()]
    families: list[Any] = [m for m in metrics if hasattr(m, "_labelnames")]
    found = {(m.describe()[0].name, tuple(m._labelnames), m._type) for m in families}
    found |= {(f.name, tuple(f._labelnames), f.type) for f in FleetGauges(Idle()).collect()}  # type: ignore[attr-defined]
    found.add(("forebay_build", ("version",), "info"))
    return {(_exposed(name, kind), labels, kind) for name, labels, kind in found}


def _exposed(name: str, kind: str) -> str:
    """As a query names it."""
    return name + {"counter": "_total", "info": "_info"}.get(kind, "")


def test_every_metric_is_in_the_table_and_no_other() -> None:
    rows = {(m[1], tuple(m[2].split(",")) if m[2] else (), m[3]) for m in ROW.finditer(DOCUMENT.read_text())}

    assert rows == told()
