"""What the gateway counts. With several workers, /metrics is the sum over all of them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""Where workers keep their figures; prometheus_client reads this name when it is imported."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_MESSAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(slots=True, kw_only=True)
class PublishFigures:
    """Those of one queue, looked up by its name once."""

    body_bytes: Counter
    seconds: Histogram
    messages: Histogram


class GatewayMetrics:
    """Labels are declared queues and names from our own tables, so that clients cannot make up new ones."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._of_publishes: dict[str, PublishFigures] = {}
        self.messages = Counter(
            "forebay_gateway_messages_total",
            "Messages by what became of them: accepted, duplicate, or the name of the problem answered.",
            ["queue", "outcome"],
            registry=registry,
        )
        self.body_bytes = Counter(
            "forebay_gateway_body_bytes_total", "Bytes of accepted bodies.", ["queue"], registry=registry
        )
        self.refused = Counter(
            "forebay_gateway_refused_total",
            "Requests answered with a problem before a message was made of them, by problem.",
            ["problem"],
            registry=registry,
        )
        self.deliveries = Counter(
            "forebay_gateway_deliveries_total",
            "Webhooks by what came of their check: verified, ping, challenge,"
            " missing, malformed, wrong, expired.",
            ["source", "outcome"],
            registry=registry,
        )
        self.refused_by_key = Counter(
            "forebay_gateway_refused_by_key_total",
            "The same, of requests with a valid API key, by its name.",
            ["key", "problem"],
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "forebay_gateway_stage_seconds",
            "How long a stage took: admit, from the headers to the end of a body that came in pieces; commit,"
            " the longest that a message waited for its publish; confirm, the publish.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.publish_seconds = Histogram(
            "forebay_gateway_publish_seconds",
            "How long one publish took, which all messages in it waited for.",
            ["queue"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.publish_messages = Histogram(
            "forebay_gateway_publish_messages",
            "How many messages shared one publish.",
            ["queue"],
            buckets=_MESSAGES,
            registry=registry,
        )
        self.in_flight = Gauge(
            "forebay_gateway_in_flight",
            "Requests in work, as of the last publish.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.in_flight_bytes = Gauge(
            "forebay_gateway_in_flight_bytes",
            "Body bytes held for requests in work, as of the last publish.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.outlet_messages = Counter(
            "forebay_gateway_outlet_messages_total",
            "Messages stored, by where: the broker, one of its fallbacks, or the journal.",
            ["outlet"],
            registry=registry,
        )
        self.outlet_works = Gauge(
            "forebay_gateway_outlet_works",
            "1 while this broker takes messages, 0 while it is left out.",
            ["outlet"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.journal_messages = Gauge(
            "forebay_journal_messages",
            "Messages in the journals of this gateway.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.journal_bytes = Gauge(
            "forebay_journal_bytes",
            "Bytes of their bodies.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.journal_oldest = Gauge(
            "forebay_journal_oldest_seconds",
            "How long ago the oldest of them was accepted.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.journal_limit = Gauge(
            "forebay_journal_limit_bytes",
            "Bytes of bodies at which no more are taken: gateway.journal_max_bytes.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.journal_set_aside = Gauge(
            "forebay_journal_set_aside",
            "Messages in the journals that the broker refused for good; they stay there.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.waiting = Gauge(
            "forebay_gateway_waiting",
            "Requests that wait for what becomes of their message.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.forwarded = Counter(
            "forebay_gateway_forwarded_total",
            "Forwarded requests that were stored, by what their senders got: the service's own answer"
            " (answered) or a 202 (accepted).",
            ["target", "outcome"],
            registry=registry,
        )
        self.ready = Gauge(
            "forebay_gateway_ready",
            "1 if the last readiness check found that messages can be accepted durably.",
            registry=registry,
            multiprocess_mode="livemin",
        )

    @cached_property
    def commit_seconds(self) -> Histogram:
        return self.stage_seconds.labels("commit")

    @cached_property
    def confirm_seconds(self) -> Histogram:
        return self.stage_seconds.labels("confirm")

    def of_publishes(self, queue: str) -> PublishFigures:
        """What is counted of publishes to a declared queue."""
        figures = self._of_publishes.get(queue)
        if figures is None:
            figures = self._of_publishes[queue] = PublishFigures(
                body_bytes=self.body_bytes.labels(queue),
                seconds=self.publish_seconds.labels(queue),
                messages=self.publish_messages.labels(queue),
            )
        return figures

    def begin(self, queues: Iterable[str]) -> None:
        """Count what becomes of their messages from zero: a rate is known before the first of them."""
        for queue in queues:
            for outcome in ("accepted", "duplicate"):
                self.messages.labels(queue, outcome)


def render(registry: CollectorRegistry) -> bytes:
    """The text of /metrics: of this process, or summed over all workers."""
    directory = os.environ.get(MULTIPROCESS_DIR)
    if directory is None:
        return generate_latest(registry)
    with _locked(directory, fcntl.LOCK_SH):
        merged = CollectorRegistry()
        MultiProcessCollector(merged, path=directory)  # type: ignore[no-untyped-call]  # theirs has no types
        return generate_latest(merged)


def reap(directory: str, pid: int) -> None:
    """
    Fold a dead worker's counters into one file, so that sums never shrink and files do not pile up.

    Gauges of the living are simply dropped.
    """
    with _locked(directory, fcntl.LOCK_EX):
        mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]  # theirs has no types
        for kind in ("counter", "histogram"):
            dead = os.path.join(directory, f"{kind}_{pid}.db")
            if os.path.exists(dead):
                _fold(dead, os.path.join(directory, f"{kind}_0.db"))
                os.remove(dead)


def _fold(source: str, target: str) -> None:
    total = MmapedDict(target)  # type: ignore[no-untyped-call]  # theirs has no types
    try:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(source):  # type: ignore[no-untyped-call]
            before, _ = total.read_value(key)  # type: ignore[no-untyped-call]
            total.write_value(key, before + value, 0.0)  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]


@contextmanager
def _locked(directory: str, how: int) -> Iterator[None]:
    with Path(directory, "lock").open("a") as file:
        fcntl.flock(file, how)
        yield
