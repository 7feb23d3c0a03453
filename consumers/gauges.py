"""What /metrics tells of the moment: how the queues are, and what holds them back; found at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from consumers.status import QueueStatus
from forebay.brokers.naming import is_dead_letter_queue, origin_queue
from forebay.figures import Figures, Place, total

Room = Callable[[int, int], int | None]
"""Bytes that a queue of the broker in use still takes while it, and all queues, hold so many."""

REASONS = ("operator", "suspicious", "schedule", "unavailable", "misconfigured")


class Watchable(Protocol):
    """What `consumers.fleet.Fleet` is to a scrape."""

    @property
    def broker(self) -> str: ...

    @property
    def figures(self) -> Mapping[Place, Figures]: ...

    @property
    def dead_letters(self) -> Mapping[str, int]: ...

    def looked_ago(self) -> float | None: ...

    def snapshot(self) -> Sequence[QueueStatus]: ...


class FleetGauges(Collector):
    """
    The time series that are true at the scrape and count nothing.

    What a queue holds is the same from every consumer, since each asks the broker and reads the
    others' reports: dashboards take the largest by queue and broker, then add up the brokers.
    """

    def __init__(self, fleet: Watchable, room: Room = lambda of_queue, of_all: None) -> None:
        self._fleet = fleet
        self._room = room

    def describe(self) -> Iterable[Metric]:
        """Nothing yet: a fleet that has not begun knows none of its queues."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from _queues(self._fleet.figures)
        yield self._rooms()
        looked = _gauge("forebay_queue_looked_seconds", "Seconds since a consumer looked at the queues.", ())
        if (ago := self._fleet.looked_ago()) is not None:
            looked.add_metric((), ago)
        yield looked
        dead = _gauge(
            "forebay_dead_letters",
            "Dead letters in the database that nobody has dealt with, by the queue they come from.",
            ("queue",),
        )
        for queue, count in list(self._fleet.dead_letters.items()):
            dead.add_metric((queue,), count)
        yield dead
        yield from _consumers(self._fleet.snapshot())

    def _rooms(self) -> Metric:
        family = _gauge(
            "forebay_queue_room_bytes",
            "Bytes of bodies that the queue still takes, by the settings, and the disk of an embedded queue.",
            ("queue",),
        )
        in_use = self._fleet.broker
        held = {
            queue: found.depth.bytes
            for (broker, queue), found in list(self._fleet.figures.items())
            if broker == in_use and found.depth.bytes is not None and not is_dead_letter_queue(queue)
        }
        for queue, size in held.items():
            if (left := self._room(size, sum(held.values()))) is not None:
                family.add_metric((queue,), left)
        return family


def _queues(figures: Mapping[Place, Figures]) -> Iterator[Metric]:
    labels = ("queue", "broker")
    waiting = _gauge("forebay_queue_waiting", "Messages that could be taken now.", labels)
    scheduled = _gauge(
        "forebay_queue_scheduled",
        "Messages that wait for their time: delayed, or between two attempts.",
        labels,
    )
    in_hand = _gauge("forebay_queue_in_hand", "Messages on loan to a consumer.", labels)
    size = _gauge("forebay_queue_bytes", "Bytes of the bodies of all of these.", labels)
    oldest = _gauge("forebay_queue_oldest_seconds", "Since the oldest of these was accepted.", labels)
    dead = _gauge("forebay_queue_dead", "Given up, and not yet archived in the database.", labels)
    for (broker, name), found in list(figures.items()):
        depth, at = found.depth, (origin_queue(name), broker)
        given: list[tuple[GaugeMetricFamily, float | None]] = [(dead, total(depth))]
        if not is_dead_letter_queue(name):
            given = [
                (waiting, depth.waiting),
                (scheduled, depth.scheduled),
                (in_hand, depth.in_hand),
                (size, depth.bytes),
                (oldest, 0.0 if total(depth) == 0 else depth.oldest_age),
            ]
        for family, value in given:
            if value is not None:  # What nobody knows has no sample; 0 would be a lie.
                family.add_metric(at, value)
    yield from (waiting, scheduled, in_hand, size, oldest, dead)


def _consumers(found: Iterable[QueueStatus]) -> Iterator[Metric]:
    paused = _gauge(
        "forebay_consumer_queue_paused",
        "1 while this process takes nothing from the queue, by reason: operator, suspicious, schedule;"
        " unavailable and misconfigured are the destination's.",
        ("queue", "reason"),
    )
    since = _gauge("forebay_consumer_queue_paused_seconds", "For how long, where that is known.", ("queue",))
    next_try = _gauge(
        "forebay_consumer_next_try_seconds",
        "Until the destination is tried again, or the schedule opens; only while it is paused.",
        ("queue",),
    )
    connected = _gauge(
        "forebay_consumer_connected", "1 while this process has the queue's broker at hand.", ("queue",)
    )
    busy = _gauge(
        "forebay_consumer_busy_seconds", "How long the slowest step under way has taken so far.", ("queue",)
    )
    by_queue: dict[str, list[QueueStatus]] = {}
    for status in found:
        if not is_dead_letter_queue(status.queue):
            by_queue.setdefault(status.queue, []).append(status)
    for queue, of in by_queue.items():
        # Of the broker in use, which comes first; an old one shares its pauses.
        status = of[0]
        for reason in REASONS:
            paused.add_metric((queue, reason), float(reason == _reason(status)))
        if status.paused_for is not None:
            since.add_metric((queue,), status.paused_for)
        if status.next_try_in is not None and status.next_try_in != float("inf"):
            next_try.add_metric((queue,), status.next_try_in)
        connected.add_metric((queue,), float(status.state in ("running", "paused")))
        busy.add_metric((queue,), max(one.busy_for for one in of))
    yield from (paused, since, next_try, connected, busy)


def _reason(status: QueueStatus) -> str | None:
    if status.paused_by == "destination":
        return "misconfigured" if status.needs_someone else "unavailable"
    return status.paused_by


def _gauge(name: str, text: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)
