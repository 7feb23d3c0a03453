"""Few bad messages are given up; a flood of them stops the queue, and not one too many dies."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.budget import DeadLetterBudget
from consumers.settings import BudgetSettings
from forebay.brokers.api import Ack, DeadLetter, Delivery, Failure, Release, Retry, Settlement
from forebay.ids import new_id
from forebay.message import Message


def delivery() -> Delivery:
    message = Message(id=new_id(), body=b"", accepted_at=datetime.now(UTC))
    return Delivery(message=message, queue="orders", attempt=1, receipt=None)


def dead(count: int, error_class: str = "CheckViolation") -> list[Settlement]:
    failure = Failure(reason="23514 CheckViolation", error_class=error_class)
    return [DeadLetter(delivery(), failure) for _ in range(count)]


def good(count: int) -> list[Settlement]:
    return [Ack(delivery()) for _ in range(count)]


def died(settlements: list[Settlement]) -> int:
    return sum(isinstance(s, DeadLetter) for s in settlements)


def test_one_in_a_hundred_may_be_bad_for_ever() -> None:
    budget = DeadLetterBudget(BudgetSettings())
    for _ in range(1_000):
        assert died(budget.spend(good(495) + dead(5))) == 5
    assert budget.reason is None


def test_a_run_without_a_single_success_stops_it() -> None:
    budget = DeadLetterBudget(BudgetSettings(max_run=50))
    settled = budget.spend(dead(80))

    assert died(settled) == 50
    assert all(isinstance(s, Release) for s in settled[50:])
    assert budget.reason == (
        "suspicious failure rate: 50 messages in a row were given up and none succeeded;"
        " the last with CheckViolation: 23514 CheckViolation"
    )


def test_tokens_are_earned_by_successes_and_not_saved_without_end() -> None:
    budget = DeadLetterBudget(BudgetSettings(allowance=10, earned=0.5, max_share=1.0))
    budget.spend(good(10_000))
    died_now = died(budget.spend(dead(15)))
    assert died_now == 10
    assert "10 messages were given up beyond one for every 2 that succeeded" in str(budget.reason)


def test_a_share_of_the_last_messages_stops_it() -> None:
    budget = DeadLetterBudget(
        BudgetSettings(allowance=10_000, earned=1.0, max_share=0.25, window=100, max_run=10_000)
    )
    budget.spend(good(1_000))
    total = 0
    for _ in range(200):
        total += died(budget.spend(good(1) + dead(1)))
    assert budget.reason is not None
    assert "of the last" in budget.reason
    assert 20 <= total <= 60


@pytest.mark.parametrize("error_class", ["expired", "idempotency-conflict", "crashed"])
def test_what_says_nothing_about_our_code_does_not_count(error_class: str) -> None:
    budget = DeadLetterBudget(BudgetSettings(max_run=5))
    assert died(budget.spend(dead(500, error_class))) == 500
    assert budget.reason is None


def test_stopped_it_still_lets_go_what_succeeded_and_what_is_to_be_retried() -> None:
    budget = DeadLetterBudget(BudgetSettings(max_run=1))
    budget.spend(dead(2))
    retry = Retry(delivery(), 1.0, Failure(reason="", error_class="x"))
    settled = budget.spend([*good(1), retry, *dead(1)])
    assert [type(s) for s in settled] == [Ack, Retry, Release]


def test_an_operator_restores_it_and_may_allow_more() -> None:
    budget = DeadLetterBudget(BudgetSettings(max_run=5))
    changes: list[str | None] = []
    budget.on_change(lambda: changes.append(budget.reason))
    budget.spend(dead(10))
    budget.restore(allowance=20)
    assert died(budget.spend(dead(40))) == 25
    assert [bool(c) for c in changes] == [True, False, True]


def test_it_can_be_switched_off() -> None:
    budget = DeadLetterBudget(BudgetSettings(enabled=False, max_run=1))
    assert died(budget.spend(dead(1_000))) == 1_000


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60),
    st.integers(1, 50),
    st.sampled_from([0.05, 0.1, 0.5, 1.0]),
    st.integers(1, 50),
)
def test_never_more_die_than_the_limits_allow(
    batches: list[tuple[int, int]], allowance: int, earned: float, max_run: int
) -> None:
    settings = BudgetSettings(allowance=allowance, earned=earned, max_run=max_run, max_share=1.0)
    budget = DeadLetterBudget(settings)
    succeeded = given_up = run = 0
    for ok, bad in batches:
        settled = budget.spend(good(ok) + dead(bad))
        assert len(settled) == ok + bad
        assert sum(isinstance(s, Ack) for s in settled) == ok
        now = died(settled)
        succeeded += ok
        given_up += now
        run = (0 if ok else run) + now
        assert run <= max_run
        assert given_up <= allowance + succeeded * earned + 1e-6
        assert budget.reason is not None or now == bad
