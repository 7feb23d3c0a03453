"""When a queue is certainly empty, and when a run that empties queues is over."""

from __future__ import annotations

import pytest

from consumers.emptiness import ARRIVES, COMES_BACK_SOON, Emptiness, Returns, UntilEmpty
from forebay.brokers.api import Depth
from forebay.figures import Figures, Place

ORDERS: Place = ("rabbit", "orders")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def figures(
    waiting: int | None = 0, in_hand: int | None = 0, scheduled: int | None = 0, *, age: float | None = None
) -> dict[Place, Figures]:
    depth = Depth(waiting=waiting, scheduled=scheduled, in_hand=in_hand, bytes=None, oldest_age=None)
    return {ORDERS: Figures(depth=depth, reported_age=age)}


class Run:
    def __init__(self) -> None:
        self.clock = Clock()
        self.returns = Returns(clock=self.clock)
        self.until_empty = UntilEmpty(self.returns, between=1.0, clock=self.clock)

    def looks(self, found: dict[Place, Figures], *, times: int = 2) -> bool:
        """Whether it is over after so many looks, a second apart."""
        for _ in range(times):
            over = self.until_empty.over([ORDERS], found)
            self.clock.now += 1.0
        return over


def test_a_report_from_before_the_queue_was_empty_proves_nothing() -> None:
    """Its consumer may have taken the last message since."""
    emptiness: Emptiness[str] = Emptiness()

    emptiness.saw("orders", True, age=4.0, now=100.0, between=1.0)
    emptiness.saw("orders", True, age=4.0, now=102.0, between=1.0)
    assert "orders" not in emptiness.certain
    emptiness.saw("orders", True, age=0.5, now=103.0, between=1.0)
    assert "orders" in emptiness.certain
    emptiness.saw("orders", False, age=0.5, now=104.0, between=1.0)
    assert "orders" not in emptiness.certain


def test_one_look_at_an_empty_queue_is_not_enough() -> None:
    run = Run()

    assert not run.looks(figures(), times=1)
    assert run.looks(figures(), times=1)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(figures(waiting=1), id="something waits"),
        pytest.param(figures(in_hand=1), id="another consumer has something in hand"),
        pytest.param(figures(waiting=None), id="nobody knows what waits"),
        pytest.param(figures(in_hand=None), id="nobody knows what is in hand"),
        pytest.param({}, id="the broker does not answer"),
    ],
)
def test_it_goes_on_while(found: dict[Place, Figures]) -> None:
    assert not Run().looks(found, times=10)


def test_messages_delayed_by_their_sender_are_left_for_their_time() -> None:
    assert Run().looks(figures(scheduled=7))


def test_a_message_that_is_due_again_soon_is_waited_for() -> None:
    run = Run()
    run.returns.note(20.0)

    assert not run.looks(figures(scheduled=1), times=20)
    run.clock.now += ARRIVES + 0.1
    assert run.looks(figures(), times=1)


def test_a_message_that_is_due_again_much_later_is_left() -> None:
    run = Run()
    run.returns.note(COMES_BACK_SOON + 1)

    assert run.looks(figures(scheduled=1))
    assert run.returns.last > run.clock()
