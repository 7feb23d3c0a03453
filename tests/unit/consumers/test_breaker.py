from __future__ import annotations

import math
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumers.breaker import RETRY_AFTER_CAP, BreakerState, CircuitBreaker
from consumers.settings import BreakerSettings
from forebay.errors import SinkMisconfigured, SinkUnavailable
from tests.unit.consumers.build import FakeClock

DOWN = SinkUnavailable("connection refused")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def breaker(
    clock: FakeClock, *, threshold: int = 1, recovery: float = 1.0, longest: float = 30.0
) -> CircuitBreaker:
    chosen = BreakerSettings(failure_threshold=threshold, recovery_time=recovery, max_recovery_time=longest)
    return CircuitBreaker(chosen, clock=clock, rng=random.Random(0))


def fail(b: CircuitBreaker, error: Exception = DOWN) -> None:
    ticket = b.begin()
    assert ticket is not None
    b.failed(ticket, error)


def succeed(b: CircuitBreaker, batch_size: int = 8) -> None:
    ticket = b.begin()
    assert ticket is not None
    b.succeeded(ticket, batch_size)


def test_it_opens_at_the_threshold_and_not_before(clock: FakeClock) -> None:
    b = breaker(clock, threshold=3)
    fail(b)
    fail(b)
    assert b.retry_after() == 0.0
    fail(b)
    assert b.state is BreakerState.OPEN
    assert b.begin() is None
    assert b.reason == "connection refused"


def test_only_failures_in_a_row_count(clock: FakeClock) -> None:
    b = breaker(clock, threshold=2)
    fail(b)
    succeed(b)
    fail(b)
    assert b.state is BreakerState.CLOSED


def test_half_open_lets_one_message_through_at_a_time(clock: FakeClock) -> None:
    b = breaker(clock)
    fail(b)
    clock.advance(b.retry_after())

    assert b.state is BreakerState.HALF_OPEN
    assert b.batch_limit(500) == 1
    assert b.begin() is not None
    assert b.begin() is None
    assert b.retry_after() == math.inf


def test_an_abandoned_probe_frees_the_way_for_the_next(clock: FakeClock) -> None:
    b = breaker(clock)
    fail(b)
    clock.advance(b.retry_after())
    ticket = b.begin()
    assert ticket is not None
    b.abandoned(ticket)

    assert b.retry_after() == 0.0
    assert b.begin() is not None


def test_batches_grow_again_from_one(clock: FakeClock) -> None:
    b = breaker(clock)
    fail(b)
    clock.advance(b.retry_after())
    sizes = []
    for _ in range(6):
        sizes.append(b.batch_limit(20))
        succeed(b, batch_size=20)

    assert sizes == [1, 2, 4, 8, 16, 20]


def test_one_failure_while_batches_grow_opens_it_again(clock: FakeClock) -> None:
    b = breaker(clock, threshold=3)
    for _ in range(3):
        fail(b)
    clock.advance(b.retry_after())
    succeed(b, batch_size=100)
    fail(b)

    assert b.state is BreakerState.OPEN


def test_the_wait_doubles_up_to_its_longest_with_a_quarter_of_jitter(clock: FakeClock) -> None:
    b = breaker(clock, recovery=1.0, longest=5.0)
    waits = []
    for _ in range(5):
        fail(b)
        waits.append(b.retry_after())
        clock.advance(b.retry_after())

    for wait, ceiling in zip(waits, [1.0, 2.0, 4.0, 5.0, 5.0], strict=True):
        assert 0.75 * ceiling <= wait <= ceiling


def test_the_wait_starts_small_again_once_the_destination_has_stood_its_ground(clock: FakeClock) -> None:
    b = breaker(clock, longest=1_000.0)
    for _ in range(6):
        fail(b)
        clock.advance(b.retry_after())
    for _ in range(4):
        succeed(b, batch_size=8)
    fail(b)

    assert b.retry_after() <= 1.0


def test_a_destination_that_asks_for_silence_gets_it_at_the_first_failure(clock: FakeClock) -> None:
    b = breaker(clock, threshold=3)
    fail(b, SinkUnavailable("busy", retry_after=77.0))

    assert b.retry_after() == pytest.approx(77.0)


def test_the_destination_may_ask_for_a_longer_wait(clock: FakeClock) -> None:
    b = breaker(clock)
    fail(b, SinkUnavailable("busy", retry_after=77.0))

    assert b.retry_after() == pytest.approx(77.0)


def test_but_not_for_ever(clock: FakeClock) -> None:
    b = breaker(clock)
    fail(b, SinkUnavailable("busy", retry_after=1e9))

    assert b.retry_after() == pytest.approx(RETRY_AFTER_CAP)


def test_a_misconfiguration_opens_it_at_once_and_for_long(clock: FakeClock) -> None:
    b = breaker(clock, threshold=3, longest=30.0)
    fail(b, SinkMisconfigured("permission denied for table messages"))

    assert b.state is BreakerState.OPEN
    assert b.misconfigured
    assert b.retry_after() >= 0.75 * 30.0


def test_a_late_success_from_before_the_outage_does_not_close_it(clock: FakeClock) -> None:
    b = breaker(clock)
    early = b.begin()
    assert early is not None
    fail(b)
    b.succeeded(early, 8)

    assert b.state is BreakerState.OPEN


def test_a_call_prepared_before_it_opened_is_not_made_any_more(clock: FakeClock) -> None:
    b = breaker(clock)
    early = b.begin()
    assert early is not None
    assert b.holds(early)
    fail(b)

    assert not b.holds(early)


def test_listeners_hear_of_every_change(clock: FakeClock) -> None:
    b = breaker(clock)
    heard: list[str] = []
    b.on_change(lambda: heard.append(b.state))
    fail(b)
    clock.advance(b.retry_after())
    succeed(b)

    assert heard == ["open", "closed"]


class BreakerMachine(RuleBasedStateMachine):
    """Any order of calls, outcomes and pauses: it never lets two probes out, and never gets stuck."""

    @initialize(threshold=st.integers(1, 4), seed=st.integers(0, 99))
    def start(self, threshold: int, seed: int) -> None:
        self.clock = FakeClock()
        chosen = BreakerSettings(failure_threshold=threshold, recovery_time=1.0, max_recovery_time=8.0)
        self.breaker = CircuitBreaker(chosen, clock=self.clock, rng=random.Random(seed))
        self.out: list[int] = []
        self.probes: list[int] = []

    @rule()
    def begin(self) -> None:
        half_open = self.breaker.state is BreakerState.HALF_OPEN
        ready = self.breaker.retry_after() == 0.0
        ticket = self.breaker.begin()
        assert (ticket is not None) == ready
        if ticket is not None:
            self.out.append(ticket)
            if half_open:
                self.probes.append(ticket)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "failed", "misconfigured", "abandoned"]))
    def end(self, data: st.DataObject, how: str) -> None:
        ticket = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        if ticket in self.probes and ticket not in self.out:
            self.probes.remove(ticket)
        match how:
            case "succeeded":
                self.breaker.succeeded(ticket, 8)
            case "failed":
                self.breaker.failed(ticket, DOWN)
            case "misconfigured":
                self.breaker.failed(ticket, SinkMisconfigured("no permission"))
            case _:
                self.breaker.abandoned(ticket)

    @rule(seconds=st.floats(0.0, 10.0))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def the_limit_is_in_its_bounds(self) -> None:
        if hasattr(self, "breaker"):
            assert 1 <= self.breaker.batch_limit(8) <= 8

    @invariant()
    def open_means_that_nothing_begins_and_that_it_says_why(self) -> None:
        if not hasattr(self, "breaker") or self.breaker.state is not BreakerState.OPEN:
            return
        assert self.breaker.begin() is None
        assert self.breaker.reason
        assert 0.0 < self.breaker.retry_after() <= 8.0

    @invariant()
    def it_recovers_when_every_call_has_ended(self) -> None:
        if hasattr(self, "breaker") and not self.out and self.breaker.state is BreakerState.HALF_OPEN:
            assert self.breaker.retry_after() == 0.0


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(deadline=None)  # a busy machine is no failure
