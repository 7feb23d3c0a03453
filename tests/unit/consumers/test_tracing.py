"""Spans: of requests, of the messages that are processed, of the writes; in one trace all along."""

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
from forebay.brokers.api import Delivery
from forebay.errors import SettingsError, SinkUnavailable
from forebay.otel import configure_tracing
from forebay.settings import load
from forebay.sinks import WriteResult
from forebay.storage.schema import migrate
from forebay.wiring import broker_opener, make_database, make_fleet
from tests.unit.cli.installation import delivery
from tests.unit.gateway.support import ScriptedBroker, running
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


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def own_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


async def test_a_batch_is_written_once_and_processed_in_the_trace_of_each(
    spans: InMemorySpanExporter,
) -> None:
    other = "4bf92f3577b34da6a3ce929d0e0e4736"
    sink = traced(Plain(), "orders")
    await sink.write(
        [
            traced_message(),
            traced_message(),
            traced_message(parent=f"00-{other}-00f067aa0ba902b7-01"),
            traced_message(parent="nonsense"),
            delivery(),
        ]
    )

    [written] = named(spans, "write plain")
    processed = named(spans, "process orders")
    assert linked(written) == [TRACE, other], "each request once"
    assert written.links[0].context.trace_state.get("congo") == "1"
    assert dict(written.attributes or {})["messaging.batch.message_count"] == 5
    assert [trace_of(span) for span in processed] == [TRACE, TRACE, other]
    assert {*map(str, (linked(span) for span in processed))} == {str([trace_of(written)])}


async def test_a_message_alone_is_one_trace_down_to_the_write(spans: InMemorySpanExporter) -> None:
    await traced(Plain(), "orders").write([traced_message()])

    [written], [processed] = named(spans, "write plain"), named(spans, "process orders")
    assert trace_of(written) == trace_of(processed) == TRACE
    assert written.parent is not None
    assert f"{written.parent.span_id:016x}" == own_id(processed)


async def test_a_span_of_a_message_that_failed_says_by_what(spans: InMemorySpanExporter) -> None:
    class Refusing(Plain):
        async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
            return [WriteResult(message_id=d.message.id, error=ValueError("s3cret")) for d in batch]

    await traced(Refusing(), "orders").write([traced_message()])

    [processed] = named(spans, "process orders")
    assert dict(processed.attributes or {})["error.type"] == "ValueError"
    assert not any("s3cret" in span.to_json() for span in spans.get_finished_spans())


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
            await until(lambda: bool(named(spans, "process orders")))
            stop.set()
            await consuming
    database.dispose()

    story = ["POST /v1/queues/{queue}/messages", "send orders", "process orders", "write database"]
    found = [named(spans, name)[0] for name in story]
    assert [trace_of(span) for span in found] == [TRACE] * 4
    parents = [f"{span.parent.span_id:016x}" if span.parent else "" for span in found]
    ids = [own_id(span) for span in found]
    assert parents == [PARENT[36:52], *ids[:3]], "each begins where the one before it was"
    assert dict(found[0].attributes or {})["http.response.status_code"] == 202


async def test_a_request_that_is_not_sampled_keeps_its_context(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    unsampled = PARENT[:-2] + "00"
    broker = ScriptedBroker()
    async with running(broker) as gateway:
        assert (await gateway.post(b"{}", headers={"traceparent": unsampled})).status_code == 202

    assert broker.messages[0].headers["traceparent"] == unsampled
    assert not spans.get_finished_spans()


def test_asked_for_without_the_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"forebay\[tracing\]"):
        configure_tracing("forebay")


def test_unasked_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    configure_tracing("forebay")
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert not isinstance(traced(Plain(), "orders"), TracedSink)
