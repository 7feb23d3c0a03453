"""However a deadline moves: it expires when it has come, once, and one timer is enough."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.deadline import Deadline


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A loop, as far as timers go."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.made = 0

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: Callable[[], None]) -> Timer:
        self.made += 1
        self.timers.append(Timer(at, call))
        return self.timers[-1]

    @property
    def running(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def go(self, until: float) -> None:
        while due := [timer for timer in self.running if timer.at <= until]:
            first = min(due, key=lambda timer: timer.at)
            self.now = max(self.now, first.at)
            self.timers.remove(first)
            first.call()
        self.now = until


class Moving(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.expired: list[float] = []
        self.deadline = Deadline(
            cast(asyncio.AbstractEventLoop, self.clock), lambda: self.expired.append(self.clock.now)
        )
        self.at = math.inf

    @rule(seconds=st.integers(1, 20))
    def set(self, seconds: int) -> None:
        self.deadline.after(seconds)
        self.at = self.clock.now + seconds

    @rule(how=st.sampled_from(["clear", "cancel"]))
    def none(self, how: str) -> None:
        getattr(self.deadline, how)()
        self.at = math.inf

    @rule(seconds=st.integers(0, 30))
    def wait(self, seconds: int) -> None:
        until = self.clock.now + seconds
        due = [self.at] if self.at <= until else []
        self.expired.clear()
        self.clock.go(until)
        assert self.expired == due
        if due:
            self.at = math.inf

    @invariant()
    def one_timer_at_most(self) -> None:
        assert len(self.clock.running) <= 1


Moving.TestCase.settings = settings(max_examples=200, deadline=None)
TestMoving: Any = Moving.TestCase


def test_one_that_only_moves_on_needs_no_new_timer() -> None:
    clock = Clock()
    deadline = Deadline(cast(asyncio.AbstractEventLoop, clock), lambda: None)
    deadline.set(1.0)
    for step in range(1_000):
        deadline.clear()
        deadline.set(2.0 + step)

    assert clock.made == 1
