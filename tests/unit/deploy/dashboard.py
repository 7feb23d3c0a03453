"""What the dashboard of deploy/grafana asks Prometheus."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy" / "grafana" / "dashboards" / "forebay.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@dataclass(frozen=True)
class Query:
    panel: str
    expr: str
    """As Grafana sends it, with all queues chosen."""


QUERIES = [
    Query(panel["title"], target["expr"].replace("$queue", ".*").replace("$__rate_interval", "1m"))
    for panel in PANELS
    for target in panel["targets"]
]

RULES = (ROOT / "deploy" / "prometheus" / "rules" / "forebay.yml").read_text()
RECORDED = set(re.findall(r"- record: (\S+)", RULES))


def names(expr: str) -> set[str]:
    """The metrics that an expression names."""
    return set(re.findall(r"\bforebay[_:][\w:]+", re.sub(r'"[^"]*"', "", expr)))
