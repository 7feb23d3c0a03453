"""The figures of a Prometheus registry as OpenTelemetry has them. Needs its SDK."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from forebay import __version__

CUMULATIVE = AggregationTemporality.CUMULATIVE

Labels = tuple[tuple[str, str], ...]


class Figures:
    """Counters and histograms count from when this was made; a backend takes that as their start."""

    def __init__(self, registry: CollectorRegistry, resource: Resource) -> None:
        self._registry = registry
        self._resource = resource
        self._since = time.time_ns()

    def now(self) -> MetricsData:
        at = time.time_ns()
        metrics = [self._metric(family, at) for family in self._registry.collect() if family.samples]
        scope = ScopeMetrics(
            scope=InstrumentationScope("forebay", __version__), metrics=metrics, schema_url=""
        )
        return MetricsData([ResourceMetrics(resource=self._resource, scope_metrics=[scope], schema_url="")])

    def _metric(self, family: Family, at: int) -> Metric:
        data: Sum | Gauge | Histogram
        if family.type == "counter":
            totals = [s for s in family.samples if s.name.endswith("_total")]
            data = Sum(self._points(totals, at), CUMULATIVE, True)
        elif family.type == "histogram":
            data = Histogram(self._histograms(family.samples, at), CUMULATIVE)
        else:
            data = Gauge(self._points(family.samples, at))
        unit = "s" if family.name.endswith("_seconds") else "By" if family.name.endswith("_bytes") else "1"
        return Metric(name=family.name, description=family.documentation, unit=unit, data=data)

    def _points(self, samples: Iterable[Sample], at: int) -> list[NumberDataPoint]:
        return [NumberDataPoint(dict(s.labels), self._since, at, float(s.value)) for s in samples]

    def _histograms(self, samples: Iterable[Sample], at: int) -> list[HistogramDataPoint]:
        buckets: dict[Labels, list[tuple[float, float]]] = {}
        sums: dict[Labels, float] = {}
        for sample in samples:
            labels = tuple(item for item in sample.labels.items() if item[0] != "le")
            if sample.name.endswith("_bucket"):
                buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_sum"):
                sums[labels] = sample.value
        return [self._histogram(labels, of, sums[labels], at) for labels, of in buckets.items()]

    def _histogram(
        self, labels: Labels, buckets: list[tuple[float, float]], total: float, at: int
    ) -> HistogramDataPoint:
        """Prometheus counts all up to each bound; OpenTelemetry those between two."""
        counts, before = [], 0.0
        for _, upto in buckets:
            counts.append(int(upto - before))
            before = upto
        return HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=self._since,
            time_unix_nano=at,
            count=int(before),
            sum=total,
            bucket_counts=counts,
            explicit_bounds=[bound for bound, _ in buckets if not math.isinf(bound)],
            # Not kept, and optional on the wire.
            min=None,  # type: ignore[arg-type]
            max=None,  # type: ignore[arg-type]
        )
