from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.retry import ExponentialBackoff, Forever
from consumers.settings import RetrySettings

ERROR = ValueError("no")


@settings(deadline=None)
@given(
    attempt=st.integers(1, 10_000),
    base=st.floats(0.001, 100),
    cap=st.floats(0.001, 10_000),
    seed=st.integers(0, 1_000),
)
def test_a_delay_is_never_above_the_cap_nor_above_its_doubling(
    attempt: int, base: float, cap: float, seed: int
) -> None:
    policy = ExponentialBackoff(max_attempts=10**9, base=base, cap=cap, rng=random.Random(seed))

    delay = policy.next_delay(attempt, ERROR, age=0.0)

    assert delay is not None
    assert 0.0 <= delay <= min(cap, base * 2.0 ** min(attempt - 1, 60))


def test_the_jitter_is_full() -> None:
    """Delays of the same attempt fill the whole range, so that a burst of failures is spread."""
    policy = ExponentialBackoff(base=8.0, rng=random.Random(1))

    delays = [policy.next_delay(1, ERROR, age=0.0) or 0.0 for _ in range(1_000)]

    assert min(delays) < 0.1
    assert max(delays) > 7.9
    assert sum(delays) / len(delays) == pytest.approx(4.0, abs=0.3)


def test_the_last_attempt_is_the_last() -> None:
    policy = ExponentialBackoff(max_attempts=3)

    assert policy.next_delay(2, ERROR, age=0.0) is not None
    assert policy.next_delay(3, ERROR, age=0.0) is None


def test_an_old_message_is_given_up_early() -> None:
    policy = ExponentialBackoff(max_age=60.0)

    assert policy.next_delay(2, ERROR, age=59.0) is not None
    assert policy.next_delay(2, ERROR, age=61.0) is None


def test_a_message_that_only_waited_is_not_given_up_at_its_first_failure() -> None:
    """After an outage of a day the whole backlog is old; one stumble must not end it all."""
    assert ExponentialBackoff(max_age=60.0).next_delay(1, ERROR, age=1_000_000.0) is not None


def test_the_schedule_says_how_long_it_takes_at_worst() -> None:
    steps = ExponentialBackoff.of(RetrySettings(max_attempts=5, base=1.0, cap=3.0)).schedule()

    assert [(s.attempt, s.longest_delay, s.latest) for s in steps] == [
        (1, 1.0, 1.0),
        (2, 2.0, 3.0),
        (3, 3.0, 6.0),
        (4, 3.0, 9.0),
    ]


def test_a_dead_letter_on_its_way_to_the_archive_is_never_given_up() -> None:
    delay = Forever(cap=10.0).next_delay(1_000_000, ERROR, age=1e9)

    assert delay is not None
    assert delay <= 10.0
