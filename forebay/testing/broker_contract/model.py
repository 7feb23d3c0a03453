"""Every accepted id is acknowledged once, dead once, or still there: random histories against a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from forebay.brokers.api import Ack, Broker, DeadLetter, Delivery, Release, Retry, Settlement, Subscription
from forebay.brokers.naming import dead_letter_queue
from forebay.testing.broker_contract.harness import (
    FAILURE,
    BrokerHarness,
    ContractTests,
    collect,
    fresh_name,
    messages,
    publish,
)

T = TypeVar("T")
CONNECTIONS = 2
STUCK = 120.0
"""Seconds after which one step of a history is a failure, whatever it waits for."""


class Loop:
    """An event loop in a thread of its own: connections stay alive between two steps of a history."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, action: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(STUCK)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STUCK)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class LedgerMachine(RuleBasedStateMachine):
    """
    Two connections, each with one subscription, do what they like with one queue.

    The model is the ledger: attempts of each id that waits, and the sets of those
    on loan, done and dead. At the end everything left is drained and must add up.

    What is done next never depends on what a `receive` found: a server that pushes
    finds now one message and now two, and Hypothesis wants the same choices to mean
    the same history. So a choice is a number, taken modulo what is there.
    """

    def __init__(self, harness: BrokerHarness) -> None:
        super().__init__()
        self.harness = harness
        self.loop = Loop()
        self.queue = fresh_name()
        self.attempts: dict[str, int] = {}
        self.loans: list[dict[str, Delivery]] = [{} for _ in range(CONNECTIONS)]
        self.done: set[str] = set()
        self.dead: set[str] = set()
        self.stale: list[Delivery] = []
        self.stacks: list[AsyncExitStack] = [AsyncExitStack() for _ in range(CONNECTIONS)]
        self.brokers: list[Broker] = []
        self.subscriptions: list[Subscription] = []
        self.run(self.start())

    def run(self, action: Coroutine[None, None, T]) -> T:
        return self.loop.run(action)

    async def start(self) -> None:
        for stack in self.stacks:
            broker = await stack.enter_async_context(self.harness.open())
            await broker.declare(self.queue)
            self.brokers.append(broker)
            self.subscriptions.append(
                await stack.enter_async_context(broker.subscribe(self.queue, prefetch=8))
            )

    who = st.integers(0, CONNECTIONS - 1)
    index = st.integers(0, 999)
    kind = st.sampled_from(("ack", "retry", "dead", "release"))

    @rule(who=who, count=st.integers(1, 5))
    def publish(self, who: int, count: int) -> None:
        sent = messages(count)
        self.run(publish(self.brokers[who], self.queue, sent))
        self.attempts.update({m.id: 1 for m in sent})

    @rule(who=who, count=st.integers(1, 6))
    def receive(self, who: int, count: int) -> None:
        for d in self.run(self.subscriptions[who].receive(count, self.harness.look)):
            id_ = d.message.id
            assert not any(id_ in loan for loan in self.loans), "lent twice"
            assert id_ not in self.done, "delivered after its ack"
            assert id_ not in self.dead, "delivered after its death"
            assert d.attempt == self.attempts[id_], "attempts miscounted"
            self.loans[who][id_] = d

    @rule(who=who, picks=st.lists(st.tuples(index, kind), min_size=1, max_size=6))
    def settle(self, who: int, picks: list[tuple[int, str]]) -> None:
        loan = self.loans[who]
        settlements: list[Settlement] = []
        for index, kind in picks[: len(loan)]:
            id_ = sorted(loan)[index % len(loan)]
            d = loan.pop(id_)
            if kind == "ack":
                settlements.append(Ack(d))
                self.done.add(id_)
            elif kind == "retry":
                settlements.append(Retry(d, 0, FAILURE))
                self.attempts[id_] += 1
            elif kind == "dead":
                settlements.append(DeadLetter(d, FAILURE))
                self.dead.add(id_)
            else:
                settlements.append(Release(d))
            self.stale.append(d)
        assert self.run(self.subscriptions[who].settle(settlements)) == []

    @rule(who=who, index=index)
    def settle_again(self, who: int, index: int) -> None:
        if self.stale:
            old = self.stale[index % len(self.stale)]
            assert self.run(self.subscriptions[who].settle([Ack(old)])) == [old]

    @rule(who=who)
    def reconnect(self, who: int) -> None:
        async def again() -> None:
            await self.stacks[who].aclose()
            broker = await self.stacks[who].enter_async_context(self.harness.open())
            self.brokers[who] = broker
            subscription = broker.subscribe(self.queue, prefetch=8)
            self.subscriptions[who] = await self.stacks[who].enter_async_context(subscription)

        self.run(again())
        self.stale += self.loans[who].values()
        self.loans[who].clear()

    def teardown(self) -> None:
        async def rest() -> tuple[list[Delivery], list[Delivery]]:
            for stack in self.stacks:
                await stack.aclose()
            async with self.harness.open() as broker:
                expected = len(self.attempts) - len(self.done) - len(self.dead)
                return (
                    await everything(broker, self.queue, expected, self.harness.patience),
                    await everything(
                        broker, dead_letter_queue(self.queue), len(self.dead), self.harness.patience
                    ),
                )

        try:
            waiting, dead = self.run(rest())
        finally:
            self.loop.close()
        found = sorted(d.message.id for d in waiting)
        assert found == sorted(set(self.attempts) - self.done - self.dead)
        assert {d.message.id: d.attempt for d in waiting} == {id_: self.attempts[id_] for id_ in found}
        assert sorted(d.message.id for d in dead) == sorted(self.dead)


async def everything(broker: Broker, queue: str, expected: int, within: float) -> list[Delivery]:
    """All that a queue holds, with one look more for what should not be there."""
    async with broker.subscribe(queue, prefetch=expected + 1) as subscription:
        out = await collect(subscription, expected, within)
        return out + await subscription.receive(1, 0.0)


class ModelContract(ContractTests):
    def test_the_ledger_adds_up_after_any_history(self, harness: BrokerHarness) -> None:
        class Machine(LedgerMachine):
            def __init__(self) -> None:
                super().__init__(harness)

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=harness.histories,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
