"""What a scrape of a consumer tells of the moment; what nobody knows is not told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prometheus_client import CollectorRegistry

from consumers.gauges import FleetGauges
from consumers.status import QueueStatus
from forebay.brokers.api import Depth
from forebay.figures import Figures, Place
from tests.unit.consumers.test_health import FINE


def held(
    waiting: int,
    *,
    scheduled: int | None = None,
    in_hand: int | None = None,
    bytes: int | None = None,
    oldest_age: float | None = None,
) -> Figures:
    return Figures(
        depth=Depth(waiting=waiting, scheduled=scheduled, in_hand=in_hand, bytes=bytes, oldest_age=oldest_age)
    )


class Fleet:
    """Two queues: of one all is known, of the other only what waits."""

    broker = "b"
    dead_letters: Mapping[str, int] = {"orders": 3}
    figures: Mapping[Place, Figures] = {
        ("b", "orders"): held(7, scheduled=1, in_hand=2, bytes=640, oldest_age=12.5),
        ("b", "orders.dead"): held(4, scheduled=0, in_hand=0, bytes=9, oldest_age=1.0),
        ("b", "clicks"): held(5),
    }

    def __init__(self, *statuses: QueueStatus) -> None:
        self._statuses = statuses

    def looked_ago(self) -> float | None:
        return 2.0

    def snapshot(self) -> Sequence[QueueStatus]:
        return self._statuses


def told(fleet: Fleet, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(FleetGauges(fleet, lambda of_queue, of_all: 10_000 - of_all))
    return registry.get_sample_value(f"forebay_{name}", labels)


def test_what_a_queue_holds_is_told_as_far_as_it_is_known() -> None:
    fleet = Fleet()

    assert told(fleet, "queue_waiting", queue="orders", broker="b") == 7
    assert told(fleet, "queue_dead", queue="orders", broker="b") == 4
    assert told(fleet, "queue_oldest_seconds", queue="orders", broker="b") == 12.5
    assert told(fleet, "queue_waiting", queue="clicks", broker="b") == 5
    assert told(fleet, "queue_in_hand", queue="clicks", broker="b") is None
    assert told(fleet, "queue_waiting", queue="orders.dead", broker="b") is None
    assert told(fleet, "dead_letters", queue="orders") == 3


def test_how_much_room_is_left_where_it_is_known_what_is_used() -> None:
    assert told(Fleet(), "queue_room_bytes", queue="orders") == 10_000 - 640
    assert told(Fleet(), "queue_room_bytes", queue="clicks") is None


def test_a_destination_that_is_away_and_one_that_refuses_us_are_told_apart() -> None:
    away = replace(FINE, state="paused", paused_by="destination", paused_for=120.0, next_try_in=5.0)
    fleet = Fleet(away, replace(away, queue="clicks", needs_someone=True))

    def reasons(queue: str) -> list[str]:
        words = ("unavailable", "misconfigured", "operator")
        return [r for r in words if told(fleet, "consumer_queue_paused", queue=queue, reason=r)]

    assert (reasons("orders"), reasons("clicks")) == (["unavailable"], ["misconfigured"])
    assert told(fleet, "consumer_queue_paused_seconds", queue="orders") == 120
    assert told(fleet, "consumer_next_try_seconds", queue="orders") == 5


def test_a_queue_that_runs_is_paused_by_nobody_and_connected() -> None:
    fleet = Fleet(FINE, replace(FINE, queue="clicks", state="reconnecting"))

    assert told(fleet, "consumer_queue_paused", queue="orders", reason="operator") == 0
    assert told(fleet, "consumer_queue_paused_seconds", queue="orders") is None
    assert told(fleet, "consumer_connected", queue="orders") == 1
    assert told(fleet, "consumer_connected", queue="clicks") == 0
