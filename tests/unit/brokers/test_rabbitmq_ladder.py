"""Delays are made of few steps, never early, and late by little."""

from __future__ import annotations

import pytest

from forebay.brokers.rabbitmq.ladder import step
from forebay.brokers.rabbitmq.settings import RabbitMQSettings

DELAYS = RabbitMQSettings().delays


def steps(delay: float) -> list[float]:
    """Those that a message takes which spends no time between them."""
    taken: list[float] = []
    while sum(taken) < delay:
        taken.append(step(DELAYS, delay - sum(taken)))
    return taken


def test_a_delay_takes_the_longest_step_first() -> None:
    assert steps(1300) == [900, 300, 60, 15, 15, 5, 5]


def test_a_step_that_is_hardly_too_long_is_taken_instead_of_many_short_ones() -> None:
    assert steps(59) == [60]
    assert steps(58) == [15, 15, 15, 5, 5, 1, 1, 1]


@pytest.mark.parametrize("delay", [0.01, 0.9, 1, 4.2, 7, 61, 599.5, 3600, 86_400])
def test_no_delay_is_early_and_none_is_late_by_more_than_the_smallest_step_and_two_per_cent(
    delay: float,
) -> None:
    assert delay <= sum(steps(delay)) <= delay * 1.02 + DELAYS[0]
