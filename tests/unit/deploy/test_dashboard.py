"""The dashboard of deploy/grafana: what it asks exists, and is PromQL."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.unit.deploy.dashboard import DASHBOARD, PANELS, QUERIES, RECORDED, ROOT, RULES, Query, names
from tests.unit.deploy.test_alerts import ran
from tests.unit.test_metrics_table import told

GRAFANA = ROOT / "deploy" / "grafana"
SERIES = {name for name, _, _ in told()}
WITH_SUFFIX = re.compile(r"_(bucket|sum|count)$")


def unknown(expr: str) -> set[str]:
    return {name for name in names(expr) if WITH_SUFFIX.sub("", name) not in SERIES and name not in RECORDED}


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: q.panel)
def test_a_panel_asks_for_what_there_is(query: Query) -> None:
    assert not unknown(query.expr)


def test_recorded_series_are_made_of_what_there_is() -> None:
    rules = yaml.safe_load(RULES)["groups"][0]["rules"]
    assert {rule["record"]: unknown(rule["expr"]) for rule in rules if unknown(rule["expr"])} == {}


def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"query:{n}", "expr": query.expr} for n, query in enumerate(QUERIES)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    ran("check", "rules", str(file))


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    taken = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for at in (panel["gridPos"],)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_dashboard_uses_the_datasource_that_is_provisioned() -> None:
    provisioning = GRAFANA / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "forebay.yml").read_text())["providers"]

    asked = {t["datasource"]["uid"] for panel in PANELS for t in [panel, *panel["targets"]]}
    assert asked == {source["uid"]}
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert all(panel["description"] for panel in PANELS)
