"""Spans of the requests that send messages: one of the request, one of what it hands to the broker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Message, Receive, Scope, Send

from gateway.routes import Endpoint

CONTEXT = (b"traceparent", b"tracestate")


def tracing() -> bool:
    """Whether somebody has set it up."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def traced(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """The endpoints with spans where tracing is set up; else the endpoints themselves, at no cost."""
    return tuple(TracedEndpoint(endpoint) for endpoint in endpoints) if tracing() else endpoints


class TracedEndpoint:
    """
    An endpoint whose requests are spans.

    The server span continues the client's trace, or begins one. Below it is a producer span, whose
    context goes with the message in place of the client's (W3C traceparent and tracestate): consumers
    continue from there. A request that is not sampled is traced no further, and its context is kept.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._tracer = trace.get_tracer("forebay")
        self._contexts = TraceContextTextMapPropagator()

    def matches(self, path: str) -> bool:
        return self._endpoint.matches(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        carried = {n.decode("latin-1"): v.decode("latin-1") for n, v in headers if n in CONTEXT}
        route, name = _route(scope["path"])
        server = self._tracer.start_span(
            f"{scope['method']} {route}",
            context=self._contexts.extract(carried),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "http.route": route,
                "url.path": scope["path"][:200],
                "url.scheme": scope.get("scheme", "http"),
            },
        )
        producer = self._tracer.start_span(
            f"send {name}",
            context=trace.set_span_in_context(server),
            kind=SpanKind.PRODUCER,
            attributes={
                "messaging.system": "forebay",
                "messaging.operation.type": "send",
                "messaging.destination.name": name,
            },
        )

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                server.set_attribute("http.response.status_code", status)
                if (id := _message_id(message.get("headers", ()))) is not None:
                    producer.set_attribute("messaging.message.id", id)
                if status >= 500:
                    server.set_status(StatusCode.ERROR)
                    producer.set_status(StatusCode.ERROR)
                producer.end()
            await send(message)

        kept = {} if server.is_recording() else carried
        if server.is_recording():
            self._contexts.inject(kept, trace.set_span_in_context(producer))
        others = [pair for pair in headers if pair[0] not in CONTEXT]
        replaced = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in kept.items()]
        try:
            await self._endpoint(dict(scope, headers=[*others, *replaced]), receive, telling)
        except Exception as error:
            # By class, not by text: it may hold what was sent.
            server.set_attribute("error.type", type(error).__name__)
            server.set_status(StatusCode.ERROR)
            raise
        finally:
            if producer.is_recording():  # nothing was answered: the client left
                producer.end()
            server.end()


def _route(path: str) -> tuple[str, str]:
    """The address as it is documented, so that spans have few names; and the queue, target or source."""
    _, _, kind, name, *rest = [*path.split("/"), "", ""][:6]
    if kind == "queues":
        return f"/v1/queues/{{queue}}/{rest[0]}", name[:63]
    return f"/v1/{kind}/{{name}}", name[:63]


def _message_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    for name, value in headers:
        if name == b"location" and value.startswith(b"/v1/messages/"):
            return value[len(b"/v1/messages/") :].decode("latin-1")
    return None
