from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.pace import BURST, RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_rate_there_is_no_limit() -> None:
    limit = RateLimit(None)
    assert (limit.closed_for(), limit.reserve(500)) == (0.0, 500)


def test_a_slow_rate_lets_one_pass_at_a_time() -> None:
    clock = Clock()
    limit = RateLimit(0.5, clock=clock)
    assert limit.closed_for() == 0.0
    assert limit.reserve(500) == 1
    assert limit.closed_for() == pytest.approx(2.0)
    clock.now += 2.0
    assert limit.closed_for() == 0.0


def test_what_was_not_taken_is_given_back() -> None:
    clock = Clock()
    limit = RateLimit(1_000.0, clock=clock)
    clock.now += 10
    limit.closed_for()
    assert limit.reserve(500) == 100
    limit.refund(90)
    assert limit.reserve(500) == 90


def test_a_rate_that_is_changed_holds_from_now_on() -> None:
    clock = Clock()
    limit = RateLimit(1.0, clock=clock)
    limit.reserve(1)
    limit.change(None)
    assert limit.closed_for() == 0.0
    limit.change(10.0)
    clock.now += 0.1
    assert limit.closed_for() == pytest.approx(0.0, abs=1e-9)


@given(
    st.floats(0.1, 5_000),
    st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 500), st.floats(0, 1)), max_size=50),
)
def test_never_more_than_the_rate_and_one_burst(rate: float, steps: list[tuple[float, int, float]]) -> None:
    clock = Clock()
    limit = RateLimit(rate, clock=clock)
    taken = 0
    for pause, wanted, share in steps:
        clock.now += pause
        if limit.closed_for() > 0:
            continue
        granted = limit.reserve(wanted)
        assert 1 <= granted <= wanted
        used = int(granted * share)
        limit.refund(granted - used)
        taken += used
    assert taken <= (clock.now - 100.0) * rate + max(1.0, rate * BURST) + 1
