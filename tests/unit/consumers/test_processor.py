from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from consumers.processor import MAX_ATTEMPT_REASON, MAX_REASON, Processor, failure_of
from consumers.retry import ExponentialBackoff, Forever
from consumers.sinks import NotTried
from forebay.brokers.api import Ack, DeadLetter, Release, Retry, Settlement
from forebay.errors import (
    IdempotencyConflict,
    MessageRejected,
    Reject,
    RetryLater,
    SinkMisconfigured,
    SinkUnavailable,
)
from forebay.sinks import WriteResult
from tests.unit.consumers.build import NOON, delivery

RETRY = ExponentialBackoff(max_attempts=8, rng=random.Random(0))
PROCESSOR = Processor(retry=RETRY, destination="database")


def settle_one(error: Exception | None, *, attempt: int = 1) -> Settlement:
    d = delivery("a", attempt=attempt)
    return PROCESSOR.settle([d], [WriteResult(message_id="a", error=error)], NOON)[0]


@pytest.mark.parametrize("error", [SinkUnavailable("down"), SinkMisconfigured("no permission"), NotTried()])
def test_what_met_an_outage_in_the_middle_of_a_batch_is_handed_back_uncounted(error: Exception) -> None:
    assert settle_one(error, attempt=8) == Release(delivery("a", attempt=8))


def test_what_is_stored_is_acknowledged() -> None:
    assert settle_one(None) == Ack(delivery("a"))


def test_a_duplicate_is_acknowledged_too() -> None:
    d = delivery("a")
    assert PROCESSOR.settle([d], [WriteResult(message_id="a", duplicate=True)], NOON) == [Ack(d)]


@pytest.mark.parametrize("error", [SinkUnavailable("connection refused"), SinkMisconfigured("no table")])
def test_an_outage_costs_no_attempts(error: Exception) -> None:
    """While the sink is down messages are handed back uncounted, even on their last attempt."""
    last_try = delivery("a", attempt=8)

    assert PROCESSOR.settle_failed_call([last_try], error, NOON) == [Release(last_try)]


def test_a_rejected_message_dies_at_once_with_the_reason() -> None:
    settled = settle_one(
        MessageRejected("23514 messages_check", error_class="CheckViolation", detail="row (7)")
    )

    assert isinstance(settled, DeadLetter)
    assert settled.failure.reason == "23514 messages_check"
    assert settled.failure.error_class == "CheckViolation"
    assert settled.failure.destination == "database"
    assert settled.failure.detail == "row (7)"
    assert settled.new_id is None


def test_a_conflict_rests_under_its_own_id() -> None:
    settled = settle_one(IdempotencyConflict("a", "b"))

    assert isinstance(settled, DeadLetter)
    assert settled.new_id == "b"
    assert settled.failure.error_class == "idempotency-conflict"


def test_a_handler_names_its_own_delay() -> None:
    settled = settle_one(RetryLater(30))

    assert isinstance(settled, Retry)
    assert settled.delay == 30


def test_asking_for_later_ends_with_the_attempts() -> None:
    assert isinstance(settle_one(RetryLater(30), attempt=8), DeadLetter)


def test_an_unknown_error_is_worth_another_try() -> None:
    settled = settle_one(ValueError("odd"), attempt=3)

    assert isinstance(settled, Retry)
    assert 0.0 <= settled.delay <= 4.0


def test_the_last_failed_attempt_is_a_dead_letter() -> None:
    assert isinstance(settle_one(ValueError("odd"), attempt=8), DeadLetter)


def test_what_the_sink_did_not_get_to_is_handed_back() -> None:
    assert isinstance(settle_one(NotTried()), Release)


def test_the_age_of_a_message_counts_from_when_it_could_first_be_delivered() -> None:
    """One that was delayed for days, or sent back from the dead letters, has its retries before it."""
    old, two_days = OSError("boom"), timedelta(days=2)
    waited = delivery("a", attempt=2, accepted_at=NOON - two_days)
    delayed = delivery("a", attempt=2, accepted_at=NOON - two_days, not_before=NOON - timedelta(minutes=1))

    [given_up] = PROCESSOR.settle([waited], [WriteResult(message_id="a", error=old)], NOON)
    [tried_again] = PROCESSOR.settle([delayed], [WriteResult(message_id="a", error=old)], NOON)

    assert isinstance(given_up, DeadLetter)
    assert isinstance(tried_again, Retry)


def test_a_bad_message_leaves_its_neighbours_alone() -> None:
    batch = [delivery(i) for i in "abc"]
    results = [WriteResult(message_id=i) for i in "abc"]
    results[1].error = Reject("no such customer")

    settled = PROCESSOR.settle(batch, results, NOON)

    assert [type(s) for s in settled] == [Ack, DeadLetter, Ack]


def test_results_in_another_order_are_a_bug_and_not_an_acknowledgement() -> None:
    batch = [delivery("a"), delivery("b")]
    with pytest.raises(ValueError, match="aligned"):
        PROCESSOR.settle(batch, [WriteResult(message_id="b"), WriteResult(message_id="a")], NOON)


def test_a_call_that_fails_for_an_unknown_reason_counts_for_every_message() -> None:
    batch = [delivery("a"), delivery("b", attempt=8)]

    settled = PROCESSOR.settle_failed_call(batch, KeyError("x"), NOON)

    assert [type(s) for s in settled] == [Retry, DeadLetter]


def test_an_expired_message_is_a_dead_letter_and_the_others_are_not() -> None:
    late = delivery("a", expires_at=NOON)
    fresh = delivery("b", expires_at=NOON + timedelta(seconds=1))

    settled = PROCESSOR.expired([late, fresh, delivery("c")], NOON)

    assert [s.delivery for s in settled] == [late]
    assert isinstance(settled[0], DeadLetter)
    assert settled[0].failure.error_class == "expired"


def test_the_archiver_lets_nothing_die_a_second_time() -> None:
    archiver = Processor(retry=Forever(), destination="dead_letters", gives_up=False)
    old = delivery("a", attempt=1_000, expires_at=NOON - timedelta(days=9))
    results = [WriteResult(message_id="a", error=MessageRejected("22021"))]

    assert archiver.expired([old], NOON) == []
    assert isinstance(archiver.settle([old], results, NOON)[0], Retry)


def test_the_text_of_an_unknown_exception_is_not_a_reason() -> None:
    """It may quote the message, and reasons are listed and logged."""
    try:
        int("4111 1111 1111 1111")
    except ValueError as error:
        failure = failure_of(error, "handler:orders")

    assert "4111" not in failure.reason
    assert failure.reason.startswith("ValueError at consumers/test_processor.py:")
    assert "4111" in failure.detail
    assert "4111" not in repr(failure)


def test_a_reason_is_short_and_can_be_stored_anywhere() -> None:
    failure = failure_of(Reject("\0\ud800" + "x" * 10_000), "handler:orders")

    assert len(failure.reason) == MAX_REASON
    assert "\0" not in failure.reason
    failure.reason.encode()


def test_a_failed_attempt_is_added_to_the_history() -> None:
    processor = Processor(retry=RETRY, destination="database", worker="host:7")
    d = delivery("a", attempt=1)
    results = [WriteResult(message_id="a", error=RetryLater(30, "busy " + "x" * 500))]

    [settled] = processor.settle([d], results, NOON, 1.5)

    assert isinstance(settled, Retry)
    [attempt] = settled.history
    assert (attempt.number, attempt.failed_at, attempt.worker) == (1, NOON, "host:7")
    assert (attempt.seconds, attempt.error_class) == (1.5, "RetryLater")
    assert attempt.reason.startswith("busy xxx")
    assert len(attempt.reason) == MAX_ATTEMPT_REASON


def test_a_history_keeps_the_first_attempt_and_the_last_four() -> None:
    d = delivery("a")
    for number in range(1, 8):
        settled = PROCESSOR.settle_failed_call([d], ValueError("odd"), NOON, float(number))[0]
        assert isinstance(settled, Retry)
        d = replace(d, attempt=number + 1, history=settled.history)

    [dead] = PROCESSOR.settle_failed_call([d], ValueError("odd"), NOON)

    assert isinstance(dead, DeadLetter)
    assert [a.number for a in dead.history] == [1, 5, 6, 7, 8]


def test_what_expires_was_not_tried_once_more() -> None:
    d = delivery("a", attempt=2, expires_at=NOON)
    tried = PROCESSOR.settle_failed_call([delivery("a")], ValueError("odd"), NOON)[0]
    assert isinstance(tried, Retry)
    d = replace(d, history=tried.history)

    [dead] = PROCESSOR.expired([d], NOON)

    assert isinstance(dead, DeadLetter)
    assert dead.history == tried.history
