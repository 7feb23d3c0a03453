"""
Spans and figures for OpenTelemetry, where its own OTEL_* variables ask for them.

They are sent by OTLP over HTTP. What is sampled, sent where and with which headers, is up to those
variables. Without them nothing is imported and nothing costs.
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from forebay import __version__
from forebay.errors import SettingsError

log = structlog.get_logger()

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from prometheus_client import CollectorRegistry

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
LAST_EXPORT = 2.0
"""Seconds that sending what is left may hold up the end of a process, once for spans and once for figures."""
DEFAULT_INTERVAL = 60_000.0
"""Milliseconds between two exports of figures, as OpenTelemetry has it."""


def asked_for(signal: str) -> str | None:
    """The variable that asks for "TRACES" or "METRICS"; None: none does, or another one forbids it."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp").strip().lower() == "none":
        return None
    names = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", ENDPOINT)
    return next((name for name in names if os.environ.get(name)), None)


def configure_tracing(service: str) -> None:
    """
    Send spans to where the variables say; without them, or with a provider set already, nothing.

    `service` is the process's name there, unless OTEL_SERVICE_NAME has another.

    Raises:
        SettingsError: they ask for it, and the libraries are not installed.
    """
    if (variable := asked_for("TRACES")) is None:
        return
    from opentelemetry import trace

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise _not_installed(variable) from None
    provider = TracerProvider(resource=_resource(service), shutdown_on_exit=False)
    _at_the_end(provider.shutdown)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def export_figures(service: str, registry: CollectorRegistry) -> None:
    """
    Send the figures of `registry` every OTEL_METRIC_EXPORT_INTERVAL milliseconds, and once more at the end.

    The same as /metrics tells, under the same names; sums are cumulative. Nothing without the variables.

    Raises:
        SettingsError: they ask for it, and the libraries are not installed.
    """
    if (variable := asked_for("METRICS")) is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        from forebay.otel_figures import Figures
    except ImportError:
        raise _not_installed(variable) from None
    exporter, figures = OTLPMetricExporter(), Figures(registry, _resource(service))
    stopped = threading.Event()

    def send() -> None:
        while not stopped.wait(_interval()):
            try:
                # It says itself what cannot be sent, and what it tries again.
                exporter.export(figures.now())
            except Exception as error:
                log.warning("figures were not exported", reason=f"{type(error).__name__}: {error}")

    def end() -> None:
        stopped.set()
        exporter.export(figures.now())
        exporter.shutdown()

    threading.Thread(target=send, name="forebay-otlp-figures", daemon=True).start()
    _at_the_end(end)


def _at_the_end(last: Callable[[], object]) -> None:
    """
    Have `last`, which sends what is left, called when the process ends, and wait a moment for it.

    No longer: a collector that is away must not hold up a stop. The thread is begun now; at the
    end of a process none can be.
    """
    over = threading.Event()

    def send() -> None:
        over.wait()
        last()

    thread = threading.Thread(target=send, name="forebay-otlp-end", daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join(LAST_EXPORT)

    atexit.register(end)


def _interval() -> float:
    """Seconds."""
    try:
        return max(0.1, float(os.environ["OTEL_METRIC_EXPORT_INTERVAL"]) / 1_000)
    except (KeyError, ValueError):
        return DEFAULT_INTERVAL / 1_000


def _resource(service: str) -> Resource:
    """Who sends; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = Resource(
        {
            "service.name": service,
            "service.version": __version__,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
    )
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())


def _not_installed(variable: str) -> SettingsError:
    return SettingsError(
        f"{variable} is set, and OpenTelemetry is not installed: pip install 'forebay[tracing]', or unset it"
    )
