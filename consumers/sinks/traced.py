"""Spans of consumers: one of each message that is processed, one of each write that a sink does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from forebay.brokers.api import Delivery
from forebay.sinks import Sink, WriteResult

MOST_TRACED = 128
"""Messages of one batch that get a span; more links are dropped by OpenTelemetry's own default limit."""


def traced(sink: Sink, queue: str) -> Sink:
    """The sink, with spans around each write where tracing is set up; else the sink itself, at no cost."""
    # Without a provider, spans are made of nothing and go nowhere.
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return sink
    return TracedSink(sink, queue)


class TracedSink:
    """
    A sink whose writes are spans.

    Each message that came with a context (W3C traceparent and tracestate, which travel with it) gets a
    span `process <queue>` in its own trace: from the request to the row it is one trace. The write is
    a span `write <destination>`. With one message it is the child of that one's span; a batch comes from
    many traces, so that none can be the parent: then it has a trace of its own, with links both ways.
    A handler's own spans are its children.
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
        came_from = self._came_from(batch)
        if len(batch) == 1 and came_from:
            [(delivery, context)] = came_from
            processing = {delivery.message.id: self._processing(delivery, context)}
            writing = self._writing(batch, parent=processing[delivery.message.id])
        else:
            # Of one request there may be many messages.
            requests = {(c.trace_id, c.span_id): Link(c) for _, c in came_from}
            writing = self._writing(batch, links=[*requests.values()])
            seen_in = [Link(writing.get_span_context())]
            processing = {d.message.id: self._processing(d, c, seen_in) for d, c in came_from}
        try:
            with trace.use_span(
                writing,
                end_on_exit=True,
                # Names only: an error's text may hold the values of a row.
                record_exception=False,
                set_status_on_exception=False,
            ):
                return self._told(await self._write(batch, writing, processing), processing)
        finally:
            for span in processing.values():
                span.end()

    async def _write(
        self, batch: Sequence[Delivery], writing: Span, processing: dict[str, Span]
    ) -> list[WriteResult]:
        try:
            results = await self._sink.write(batch)
        except Exception as error:
            for span in (writing, *processing.values()):
                _failed(span, error)
            raise
        failed = sum(result.error is not None for result in results)
        if failed:
            writing.set_attribute("forebay.failed_messages", failed)
            writing.set_status(StatusCode.ERROR)
        return results

    def _told(self, results: list[WriteResult], processing: dict[str, Span]) -> list[WriteResult]:
        for result in results:
            span = processing.get(result.message_id)
            if span is not None and result.error is not None:
                _failed(span, result.error)
        return results

    async def probe(self) -> None:
        await self._sink.probe()

    async def close(self) -> None:
        await self._sink.close()

    # ---- spans

    def _writing(
        self, batch: Sequence[Delivery], *, parent: Span | None = None, links: Sequence[Link] = ()
    ) -> Span:
        return self._tracer.start_span(
            f"write {self._sink.destination}",
            context=None if parent is None else trace.set_span_in_context(parent),
            kind=SpanKind.CLIENT,
            links=links,
            attributes={
                "messaging.destination.name": self._queue,
                "messaging.batch.message_count": len(batch),
                "forebay.destination": self._sink.destination,
            },
        )

    def _processing(self, delivery: Delivery, context: SpanContext, links: Sequence[Link] = ()) -> Span:
        return self._tracer.start_span(
            f"process {self._queue}",
            context=trace.set_span_in_context(trace.NonRecordingSpan(context)),
            kind=SpanKind.CONSUMER,
            links=links,
            attributes={
                "messaging.system": "forebay",
                "messaging.operation.type": "process",
                "messaging.destination.name": self._queue,
                "messaging.message.id": delivery.message.id,
                "forebay.attempt": delivery.attempt,
            },
        )

    def _came_from(self, batch: Sequence[Delivery]) -> list[tuple[Delivery, SpanContext]]:
        """The messages that came with a context that can be read, as many as get a span."""
        found: list[tuple[Delivery, SpanContext]] = []
        for delivery in batch:
            headers = delivery.message.headers
            if "traceparent" not in headers:
                continue
            context = trace.get_current_span(self._contexts.extract(headers)).get_span_context()
            if context.is_valid:
                found.append((delivery, context))
                if len(found) == MOST_TRACED:
                    break
        return found


def _failed(span: Span, error: BaseException) -> None:
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(StatusCode.ERROR)
