"""Every panel of the dashboard shows something, asked of a real Prometheus that scrapes real processes."""

from __future__ import annotations

from pathlib import Path

from tests.servers import prometheus
from tests.servers.postgres import free_port
from tests.system.harness import Site, until
from tests.unit.deploy.dashboard import QUERIES

WHILE_ALL_IS_FINE = {
    "Attempts and deferrals",
    "Drained in",
    "Full in",
    "Given up, by reason",
    "What fires",
}
"""Panels that show a dash or nothing then."""


def test_every_panel_shows_something(site: Site, tmp_path: Path) -> None:
    site.queues = "orders"
    site.settings["GATEWAY__JOURNAL"] = str(tmp_path / "journal")
    port = free_port()
    site.gateway()
    consumer = site.start("consume", "--port", str(port), log="consume")
    with prometheus.running(tmp_path, {"gateway": site.port, "consumer": port}) as server:
        sent = iter(range(10_000))
        seen: list[set[str]] = []

        def dark() -> set[str]:
            # Counters grow between two scrapes, and once a key is sent again.
            assert site.post("orders", b"%d" % next(sent)).status == 202
            assert site.post("orders", b"again", Idempotency_Key="a").status == 202
            assert site.post("nowhere", b"{}").status == 404
            seen.append({q.panel for q in QUERIES if not server.query(q.expr)} - WHILE_ALL_IS_FINE)
            return seen[-1]

        try:
            consumer.until(lambda: not dark(), within=60.0, every=0.5)
        except AssertionError as error:
            raise AssertionError(f"panels that show nothing: {seen[-1]}") from error
        assert {q.panel for q in QUERIES} >= WHILE_ALL_IS_FINE
        # Prometheus reaches both, and no rule fails.
        until(lambda: [s["value"][1] for s in server.query("up")] == ["1", "1"], what="two targets")
        assert {rule["health"] for rule in server.rules()} == {"ok"}
