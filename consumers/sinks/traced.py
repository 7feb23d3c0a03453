"""A span for each batch that a sink writes, linked to the requests that its messages came with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from forebay.brokers.api import Delivery
from forebay.sinks import Sink, WriteResult

MOST_LINKS = 128
"""Links of one span; more are dropped by OpenTelemetry's own default limit."""


def traced(sink: Sink, queue: str) -> Sink:
    """The sink, with a span around each write where tracing is set up; else the sink itself, at no cost."""
    # Without a provider, spans are made of nothing and go nowhere.
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return sink
    return TracedSink(sink, queue)


class TracedSink:
    """
    A sink whose writes are spans.

    The messages of a batch come from many traces, so that no one of them can be the parent: the
    span is linked to the context of each (W3C traceparent and tracestate, which travel with a
    message). A handler's own spans are its children.
    """

    def __init__(self, sink: Sink, queue: str) -> None:
        self._sink = sink
        self._queue = queue
        self._tracer = trace.get_tracer("forebay")
        self._contexts = TraceContextTextMapPropagator()

    def __getattr__(self, name: str) -> Any:
        # What else the sink has, `cheap_probe` for one.
        return getattr(self._sink, name)

    @property
    def destination(self) -> str:
        return self._sink.destination

    async def write(self, batch: Sequence[Delivery]) -> list[WriteResult]:
        with self._tracer.start_as_current_span(
            f"process {self._queue}",
            kind=SpanKind.CONSUMER,
            links=self._links(batch),
            attributes={
                "messaging.system": "forebay",
                "messaging.operation.type": "process",
                "messaging.destination.name": self._queue,
                "messaging.batch.message_count": len(batch),
                "forebay.destination": self._sink.destination,
            },
            # Names only: an error's text may hold the values of a row.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                results = await self._sink.write(batch)
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise
            failed = sum(result.error is not None for result in results)
            if failed:
                span.set_attribute("forebay.failed_messages", failed)
                span.set_status(StatusCode.ERROR)
            return results

    async def probe(self) -> None:
        await self._sink.probe()

    async def close(self) -> None:
        await self._sink.close()

    def _links(self, batch: Sequence[Delivery]) -> list[Link]:
        links: dict[tuple[int, int], Link] = {}
        for delivery in batch:
            headers = delivery.message.headers
            if "traceparent" not in headers:
                continue
            context = trace.get_current_span(self._contexts.extract(headers)).get_span_context()
            if context.is_valid:
                links.setdefault(
                    (context.trace_id, context.span_id),
                    Link(context, {"messaging.message.id": delivery.message.id}),
                )
                if len(links) == MOST_LINKS:
                    break
        return list(links.values())
