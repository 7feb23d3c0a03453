"""
A collector of OpenTelemetry, as small as can be: takes OTLP over HTTP and writes down what came.

A process of its own, on a free loopback port: `python -m tests.servers.otlp PORT FILE`.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.servers.postgres import free_port
from tests.system.harness import until


@dataclass
class Collector:
    url: str
    file: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        """Everything that came so far: spans by "span", data points by "metric"."""
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def spans(self, trace: str | None = None) -> dict[str, dict[str, Any]]:
        """By name, of one trace."""
        return {r["span"]: r for r in self.records if "span" in r and trace in (None, r["trace"])}


@contextmanager
def collecting(folder: Path) -> Iterator[Collector]:
    port = free_port()
    file = folder / "otlp.ndjson"
    file.touch()
    process = subprocess.Popen([sys.executable, "-m", "tests.servers.otlp", str(port), str(file)])
    collector = Collector(f"http://127.0.0.1:{port}", file)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(collector.url, timeout=2):
                return True
        except OSError:
            return False

    try:
        until(answers, what="the collector")
        yield collector
    finally:
        process.kill()
        process.wait(10)


def _records(path: str, body: bytes) -> Iterator[dict[str, Any]]:
    if path == "/v1/traces":
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _service(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    yield {
                        "span": span.name,
                        "service": service,
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                    }
    else:
        for measured in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            service = _service(measured.resource.attributes)
            for of in measured.scope_metrics:
                for metric in of.metrics:
                    kind = metric.WhichOneof("data") or ""
                    for point in getattr(metric, kind).data_points:
                        labels = {a.key: a.value.string_value for a in point.attributes}
                        value = point.count if kind == "histogram" else point.as_double
                        yield {
                            "metric": metric.name,
                            "kind": kind,
                            "service": service,
                            "labels": labels,
                            "value": value,
                        }


def _service(attributes: Any) -> str:
    return next((str(a.value.string_value) for a in attributes if a.key == "service.name"), "")


class _Handler(BaseHTTPRequestHandler):
    file: Path

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        lines = "".join(json.dumps(record) + "\n" for record in _records(self.path, body))
        with self.file.open("a") as file:
            file.write(lines)
        self._answer()

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    _Handler.file = Path(sys.argv[2])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
