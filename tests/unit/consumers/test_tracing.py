"""Spans of consumers: one per batch, linked to the requests that the messages came with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from consumers.sinks.traced import TracedSink, traced
from forebay import telemetry
from forebay.brokers.api import Delivery
from forebay.errors import SettingsError, SinkUnavailable
from forebay.settings import load
from forebay.sinks import WriteResult
from forebay.storage.schema import migrate
from forebay.wiring import broker_opener, make_database, make_fleet
from tests.unit.cli.installation import delivery
from tests.unit.gateway.support import running
from tests.waiting import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Plain:
    destination = "plain"
    cheap_probe = True

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        if self.error is not None:
            raise self.error
        return [WriteResult(message_id=d.message.id) for d in batch]

    async def probe(self) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What is exported while this test has a provider of its own."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    return exporter


def traced_message(body: bytes = b"{}", parent: str = PARENT) -> Delivery:
    found = delivery(body)
    found.message.headers = {"traceparent": parent, "tracestate": "congo=1"}
    return found


def linked(span: ReadableSpan) -> list[str]:
    return [f"{link.context.trace_id:032x}" for link in span.links]


def test_without_a_provider_a_sink_is_left_as_it_is() -> None:
    sink = Plain()
    assert traced(sink, "orders") is sink


async def test_a_batch_is_one_span_linked_to_each_request_once(spans: InMemorySpanExporter) -> None:
    other = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    sink = traced(Plain(), "orders")
    await sink.write(
        [
            traced_message(),
            traced_message(),
            traced_message(parent=other),
            traced_message(parent="nonsense"),
            delivery(),
        ]
    )

    [span] = spans.get_finished_spans()
    assert linked(span) == [TRACE, "4bf92f3577b34da6a3ce929d0e0e4736"]
    assert span.links[0].context.trace_state.get("congo") == "1"
    assert span.name == "process orders"
    assert dict(span.attributes or {})["messaging.batch.message_count"] == 5


async def test_a_failure_is_named_in_the_span_and_its_text_is_not(spans: InMemorySpanExporter) -> None:
    sink = traced(Plain(SinkUnavailable("s3cret row")), "orders")
    with pytest.raises(SinkUnavailable):
        await sink.write([delivery()])

    [span] = spans.get_finished_spans()
    assert dict(span.attributes or {})["error.type"] == "SinkUnavailable"
    assert "s3cret" not in span.to_json()
    assert getattr(sink, "cheap_probe", False), "what else the sink has is still there"


async def test_from_the_request_to_the_span_of_the_consumer(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    """Through a gateway, the embedded queue and the consumers of a real installation."""
    settings = load(
        environ={
            "FOREBAY_BROKER__URL": f"sqlite:///{tmp_path}/queue.db",
            "FOREBAY_DATABASE__URL": f"sqlite:///{tmp_path}/forebay.db",
            "FOREBAY_QUEUE_NAMES": "orders",
        },
        cwd=tmp_path,
    ).settings
    database = make_database(settings)
    migrate(database)
    async with running(broker_opener=broker_opener(settings.broker)) as gateway:
        answer = await gateway.post(b"{}", headers={"traceparent": PARENT, "tracestate": "congo=1"})
        assert answer.status_code == 202
        async with broker_opener(settings.broker)() as broker:
            fleet = make_fleet(settings, broker, database, registry=CollectorRegistry())
            fleet.add("orders", settings.queue("orders"))
            stop = asyncio.Event()
            consuming = asyncio.create_task(fleet.run(stop))
            await until(lambda: bool(spans.get_finished_spans()))
            stop.set()
            await consuming
    database.dispose()

    assert [linked(span) for span in spans.get_finished_spans() if span.name == "process orders"] == [[TRACE]]


def test_asked_for_without_the_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"forebay\[tracing\]"):
        telemetry.configure_tracing()


def test_unasked_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    telemetry.configure_tracing()
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert not isinstance(traced(Plain(), "orders"), TracedSink)
