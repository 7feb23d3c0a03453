"""What the consumers measure, each with its unit and a sentence, and the tally behind `snapshot()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumers.breaker import BreakerState, CircuitBreaker
from consumers.emptiness import Returns
from forebay.brokers.api import Ack, DeadLetter, Release, Retry, Settlement, all_done

MAX_ERROR_CLASSES = 50
"""Error classes that get a time series of their own; a handler could raise any number of them."""

_ONE_CALL = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SINCE_ACCEPTANCE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200, 86_400)
"""Seconds, up to a day: an outage is in it."""


class ConsumerMetrics:
    """The consumers' time series of one process. Metric names are a promise to dashboards."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.messages = Counter(
            "forebay_consumer_messages",
            "Deliveries settled, by outcome: stored, duplicate, retried, dead, released.",
            ["queue", "outcome"],
            registry=registry,
        )
        self.failures = Counter(
            "forebay_consumer_failures",
            "Failed attempts, by error class and by what follows: retried or dead.",
            ["queue", "error_class", "outcome"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "forebay_consumer_batch_size",
            "Messages in one call of the sink.",
            ["queue"],
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000),
            registry=registry,
        )
        self.write_seconds = Histogram(
            "forebay_consumer_write_seconds",
            "Time of one call of the sink, in seconds.",
            ["queue"],
            buckets=_ONE_CALL,
            registry=registry,
        )
        self.latency_seconds = Histogram(
            "forebay_consumer_latency_seconds",
            "From acceptance to the end of the sink's call, in seconds; the oldest message of each batch.",
            ["queue"],
            buckets=_SINCE_ACCEPTANCE,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "forebay_consumer_wait_seconds",
            "From acceptance to the sink's call, in seconds; the oldest message of each batch.",
            ["queue"],
            buckets=_SINCE_ACCEPTANCE,
            registry=registry,
        )
        self.settle_seconds = Histogram(
            "forebay_consumer_settle_seconds",
            "Time that the broker took to settle one batch, in seconds.",
            ["queue"],
            buckets=_ONE_CALL,
            registry=registry,
        )
        self.paused = Gauge(
            "forebay_consumer_paused",
            "1 while nothing is taken because of this destination, by reason: unavailable, misconfigured.",
            ["destination", "reason"],
            registry=registry,
        )
        self.half_open = Gauge(
            "forebay_consumer_half_open",
            "1 while the next message is sent to this destination as a probe.",
            ["destination"],
            registry=registry,
        )
        self.restarts = Counter(
            "forebay_consumer_restarts",
            "Times a worker began again, by cause: broker or bug.",
            ["queue", "cause"],
            registry=registry,
        )
        self._error_classes: set[str] = set()

    def begin(self, queue: str) -> None:
        """Count from zero: of a series that begins with its first event, no increase is ever seen."""
        for outcome in ("stored", "duplicate", "retried", "dead", "released"):
            self.messages.labels(queue, outcome)
        for cause in ("broker", "bug"):
            self.restarts.labels(queue, cause)

    def bounded(self, error_class: str) -> str:
        """`error_class`, or "other" once there are too many different ones."""
        if error_class in self._error_classes or len(self._error_classes) < MAX_ERROR_CLASSES:
            self._error_classes.add(error_class)
            return error_class
        return "other"

    def show_breaker(self, destination: str, breaker: CircuitBreaker) -> None:
        paused = breaker.state is not BreakerState.CLOSED
        self.paused.labels(destination, "unavailable").set(paused and not breaker.misconfigured)
        self.paused.labels(destination, "misconfigured").set(paused and breaker.misconfigured)
        self.half_open.labels(destination).set(breaker.state is BreakerState.HALF_OPEN)


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many deliveries of one queue were settled how, since the process started."""

    metrics: ConsumerMetrics
    queue: str
    returns: Returns = field(default_factory=Returns)
    """Of the process."""
    stored: int = 0
    duplicates: int = 0
    retried: int = 0
    dead: int = 0
    released: int = 0
    restarts: int = 0
    last_error: str | None = None
    """The reason of the last failed attempt."""

    def __post_init__(self) -> None:
        self.metrics.begin(self.queue)

    def wrote(self, *, size: int, seconds: float, latency: float) -> None:
        """One call of the sink ended."""
        self.metrics.batch_size.labels(self.queue).observe(size)
        self.metrics.write_seconds.labels(self.queue).observe(seconds)
        self.metrics.latency_seconds.labels(self.queue).observe(latency)
        self.metrics.wait_seconds.labels(self.queue).observe(max(0.0, latency - seconds))

    def settled(self, settlements: Sequence[Settlement], duplicates: int, *, seconds: float) -> None:
        """
        The broker has taken these settlements in so many seconds.

        `duplicates` of the acknowledged ones were not new.
        """
        self.metrics.settle_seconds.labels(self.queue).observe(seconds)
        outcomes: dict[str, int] = {}
        if all_done(settlements):
            outcomes["stored"], settlements = len(settlements), ()
        for settlement in settlements:
            match settlement:
                case Ack():
                    outcome = "stored"
                case Retry(failure=failure, delay=delay):
                    outcome = "retried"
                    self._failed(failure.error_class, failure.reason, outcome)
                    self.returns.note(delay)
                case DeadLetter(failure=failure):
                    outcome = "dead"
                    self._failed(failure.error_class, failure.reason, outcome)
                case Release():
                    outcome = "released"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if duplicates:
            outcomes["stored"] -= duplicates
            outcomes["duplicate"] = duplicates
        for outcome, count in outcomes.items():
            self.metrics.messages.labels(self.queue, outcome).inc(count)
        self.stored += outcomes.get("stored", 0)
        self.duplicates += duplicates
        self.retried += outcomes.get("retried", 0)
        self.dead += outcomes.get("dead", 0)
        self.released += outcomes.get("released", 0)

    def restarted(self, cause: str) -> None:
        self.restarts += 1
        self.metrics.restarts.labels(self.queue, cause).inc()

    def _failed(self, error_class: str, reason: str, outcome: str) -> None:
        self.last_error = reason
        self.metrics.failures.labels(self.queue, self.metrics.bounded(error_class), outcome).inc()
