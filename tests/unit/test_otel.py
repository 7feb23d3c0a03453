"""When OpenTelemetry is asked for, and the figures as it has them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.metrics.export import Histogram, Metric, Sum
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, Counter
from prometheus_client import Histogram as PrometheusHistogram

from forebay.otel import asked_for
from forebay.otel_figures import Figures

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ENDPOINT, "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


def test_one_variable_asks_for_spans_and_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (asked_for("TRACES"), asked_for("METRICS")) == (None, None)

    monkeypatch.setenv(ENDPOINT, "http://collector:4318")

    assert (asked_for("TRACES"), asked_for("METRICS")) == (ENDPOINT, ENDPOINT)


def test_each_can_be_left_out_and_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://collector:4318")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    assert (asked_for("TRACES"), asked_for("METRICS")) == (ENDPOINT, None)

    monkeypatch.delenv(ENDPOINT)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces")
    assert asked_for("TRACES") == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"

    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert asked_for("TRACES") is None


def exported(registry: CollectorRegistry) -> Metric:
    [resource] = Figures(registry, Resource({})).now().resource_metrics
    [metric] = resource.scope_metrics[0].metrics
    return metric


def test_a_counter_is_a_sum_that_only_grows() -> None:
    registry = CollectorRegistry()
    Counter("forebay_things", "Things.", ["queue"], registry=registry).labels("orders").inc(3)

    metric = exported(registry)

    assert isinstance(metric.data, Sum)
    assert (metric.name, metric.data.is_monotonic) == ("forebay_things", True)
    assert [(p.attributes, p.value) for p in metric.data.data_points] == [({"queue": "orders"}, 3.0)]


def test_a_histogram_counts_between_its_bounds() -> None:
    registry = CollectorRegistry()
    seconds = PrometheusHistogram("forebay_some_seconds", "Seconds.", buckets=(1, 2), registry=registry)
    for value in (0.5, 1.5, 1.5, 9.0):
        seconds.observe(value)

    metric = exported(registry)

    assert isinstance(metric.data, Histogram)
    [point] = metric.data.data_points
    assert (metric.unit, point.bucket_counts, point.explicit_bounds) == ("s", [1, 2, 1], [1.0, 2.0])
    assert (point.count, point.sum) == (4, 12.5)
