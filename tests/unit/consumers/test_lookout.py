"""A database that is back is noticed at once, and nothing else is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from consumers import lookout as module
from consumers.breaker import BreakerState, CircuitBreaker
from consumers.lookout import Lookout
from consumers.settings import BreakerSettings
from forebay.errors import SinkMisconfigured, SinkUnavailable
from tests.unit.consumers.fakes import MemorySink
from tests.waiting import until

DOWN = SinkUnavailable("connection refused")


class Watched:
    """A breaker that waits for an hour, and a sink that counts how often it is asked."""

    def __init__(self) -> None:
        self.breaker = CircuitBreaker(
            BreakerSettings(failure_threshold=1, recovery_time=3_600.0, max_recovery_time=3_600.0),
            rng=random.Random(0),
        )
        self.sink = MemorySink()
        self.asked = 0
        probe = self.sink.probe

        async def counted() -> None:
            self.asked += 1
            await probe()

        self.sink.probe = counted  # type: ignore[method-assign]

    def fail(self, error: Exception) -> None:
        ticket = self.breaker.begin()
        assert ticket is not None
        self.breaker.failed(ticket, error)

    async def looks(self, count: int) -> None:
        enough = self.asked + count
        await until(lambda: self.asked >= enough)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(Lookout(self.breaker, self.sink).run())
        await asyncio.sleep(0)
        yield
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)


async def test_a_database_that_answers_again_is_tried_at_once() -> None:
    watched = Watched()
    async with watched.running():
        watched.sink.down = DOWN
        watched.fail(DOWN)
        await watched.looks(3)
        assert watched.breaker.state is BreakerState.OPEN
        watched.sink.down = None
        await until(lambda: watched.breaker.state is BreakerState.HALF_OPEN)


async def test_one_that_answers_and_takes_nothing_is_left_to_the_breaker() -> None:
    watched = Watched()
    async with watched.running():
        watched.fail(DOWN)
        await watched.looks(10)
        assert watched.breaker.state is BreakerState.OPEN


@pytest.mark.parametrize(
    "error", [SinkMisconfigured("no rights"), SinkUnavailable("later", retry_after=60.0)]
)
async def test_what_asks_for_someone_or_for_silence_is_not_woken(error: Exception) -> None:
    watched = Watched()
    watched.sink.down = DOWN
    async with watched.running():
        watched.fail(error)
        await asyncio.sleep(0.1)  # Time in which a mistaken lookout would see it come back.
        watched.sink.down = None
        await asyncio.sleep(0.1)
        assert watched.breaker.state is BreakerState.OPEN


async def test_a_second_outage_is_noticed_like_the_first() -> None:
    watched = Watched()
    async with watched.running():
        for _ in range(2):
            watched.sink.down = DOWN
            watched.fail(DOWN)
            await watched.looks(2)
            watched.sink.down = None
            await until(lambda: watched.breaker.state is BreakerState.HALF_OPEN)
            ticket = watched.breaker.begin()
            assert ticket is not None
            watched.breaker.succeeded(ticket, 1)


async def test_nobody_is_asked_while_all_is_well() -> None:
    watched = Watched()
    async with watched.running():
        await asyncio.sleep(0.1)  # Time in which a mistaken lookout would ask.
        assert watched.asked == 0
