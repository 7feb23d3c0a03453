"""One trace from an HTTP request to the row in the database, through real processes and a real collector."""

from __future__ import annotations

from pathlib import Path

from tests.servers.otlp import Collector, collecting
from tests.system.harness import Site, http, until

STORY = ["POST /v1/queues/{queue}/messages", "send orders", "process orders", "write database"]

SERVICES = ["forebay-gateway", "forebay-gateway", "forebay-consumer", "forebay-consumer"]


def context_of(site: Site, id: str) -> list[str]:
    """The parts of the context that the stored message carries: version, trace, span, flags."""
    [(context,)] = site.sql(f"select headers->>'traceparent' from messages where id = '{id}'")
    return str(context).split("-")


def told(collector: Collector, metric: str, **labels: str) -> float:
    """The last value that came."""
    found = [
        r["value"]
        for r in collector.records
        if r.get("metric") == metric and labels.items() <= r["labels"].items()
    ]
    return float(found[-1]) if found else 0.0


def test_one_trace_from_the_request_to_the_row(site: Site, tmp_path: Path) -> None:
    site.queues = "orders"
    with collecting(tmp_path) as collector:
        site.variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        gateway, consumer = site.gateway(), site.consumer()
        theirs = "0af7651916cd43dd8448eb211c80319c"
        traces = []
        for number, client in enumerate([{"traceparent": f"00-{theirs}-b7ad6b7169203331-01"}, {}], 1):
            sent = http("POST", f"{site.url}/v1/queues/orders/messages", b"{}", client)
            assert sent.status == 202
            consumer.until(lambda n=number: site.stored() == n, within=60.0, what="a row")  # type: ignore[misc]
            _, trace, span, _ = context_of(site, sent.json["id"])
            traces.append(trace)

            until(lambda t=trace: collector.spans(t).keys() == set(STORY), what="the row's trace")  # type: ignore[misc]
            spans = collector.spans(trace)
            assert span == spans["send orders"]["id"]
            assert [spans[name]["service"] for name in STORY] == SERVICES
            assert [spans[name]["parent"] for name in STORY[1:]] == [spans[name]["id"] for name in STORY[:3]]
        assert traces[0] == theirs
        assert traces[1] != theirs

        until(
            lambda: told(collector, "forebay_gateway_messages", queue="orders", outcome="accepted") == 2,
            what="the gateway's count",
        )
        until(
            lambda: told(collector, "forebay_consumer_messages", queue="orders", outcome="stored") == 2,
            what="the consumer's count",
        )
        assert told(collector, "forebay_consumer_write_seconds", queue="orders") == 2
        assert (gateway.stop(), consumer.stop()) == (0, 0)
