"""Order by key through failures: what an `ordered` subscription promises, where `ordering` is "by_key"."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from forebay.brokers.api import Ack, Broker, DeadLetter, Delivery, Release, Retry, Settlement, Subscription
from forebay.brokers.naming import dead_letter_queue
from forebay.errors import SettingsError
from forebay.message import Message
from forebay.testing.broker_contract.harness import (
    FAILURE,
    BrokerHarness,
    ContractTests,
    collect,
    drain,
    fresh_name,
    ids,
    message,
    publish,
)
from forebay.testing.broker_contract.model import Loop

CONNECTIONS = 2
QUIET = 0.3
"""Seconds in which what must not come would have come."""


def of_key(key: str | None, count: int) -> list[Message]:
    return [message(f"{key} {n}".encode(), key=key) for n in range(count)]


class OrderContract(ContractTests):
    @pytest.fixture
    async def by_key(self, broker: Broker) -> None:
        if broker.capabilities.ordering != "by_key":
            pytest.skip("this broker keeps no order by key")

    async def test_order_by_key_is_refused_where_it_cannot_be_kept(self, broker: Broker, queue: str) -> None:
        if broker.capabilities.ordering == "by_key":
            pytest.skip("this broker keeps order by key")
        with pytest.raises(SettingsError, match="order"):
            async with broker.subscribe(queue, prefetch=1, ordered=True):
                pass

    @pytest.mark.parametrize("end", [Ack, DeadLetter])
    async def test_a_retry_parks_its_key_and_the_others_flow(
        self, harness: BrokerHarness, broker: Broker, queue: str, by_key: None, end: type[Settlement]
    ) -> None:
        bad, good, free = of_key("bad", 3), of_key("good", 2), of_key(None, 2)
        await publish(broker, queue, [bad[0], bad[1], good[0], free[0]])
        async with broker.subscribe(queue, prefetch=20, ordered=True) as subscription:
            held = {d.message.id: d for d in await collect(subscription, 4, harness.patience)}
            assert (
                await subscription.settle(
                    [
                        Retry(held[bad[0].id], 1.0, FAILURE),
                        Release(held[bad[1].id]),
                        Ack(held[good[0].id]),
                        Ack(held[free[0].id]),
                    ]
                )
                == []
            )
            await publish(broker, queue, [bad[2], good[1], free[1]])
            others = await collect(subscription, 2, harness.patience)
            assert sorted(ids(others)) == sorted(ids([good[1], free[1]]))
            await subscription.settle([Ack(d) for d in others])

            [first] = await subscription.receive(1, 1.0 + harness.patience)
            assert (first.message.id, first.attempt) == (bad[0].id, 2)
            assert await subscription.receive(5, QUIET) == [], "nothing passes a failed message on loan"
            await subscription.settle([Ack(first) if end is Ack else DeadLetter(first, FAILURE)])
            rest = await collect(subscription, 2, harness.patience)
            assert ids(rest) == ids(bad[1:])

    async def test_a_parked_key_is_lent_to_nobody_else(
        self, harness: BrokerHarness, broker: Broker, queue: str, by_key: None
    ) -> None:
        sent = of_key("k", 3)
        await publish(broker, queue, sent[:2])
        async with (
            broker.subscribe(queue, prefetch=1, ordered=True) as one,
            harness.open() as other,
            other.subscribe(queue, prefetch=10, ordered=True) as two,
        ):
            holder, idle = one, two
            held = await one.receive(1, QUIET) or await two.receive(1, harness.patience)
            if one.share().in_hand == 0:
                holder, idle = two, one
            assert ids(held) == [sent[0].id]
            await holder.settle([Retry(held[0], QUIET, FAILURE)])
            await publish(broker, queue, sent[2:])
            got: list[Delivery] = []
            for _ in range(60):
                for s in (holder, idle):
                    batch = await s.receive(5, 0.1)
                    got += batch
                    await s.settle([Ack(d) for d in batch])
                if len(got) >= 3:
                    break
        assert ids(got) == ids(sent)
        assert [d.attempt for d in got] == [2, 1, 1]

    async def test_what_is_released_in_any_order_comes_back_in_publish_order(
        self, harness: BrokerHarness, broker: Broker, queue: str, by_key: None
    ) -> None:
        sent = of_key("k", 6)
        await publish(broker, queue, sent)
        async with broker.subscribe(queue, prefetch=6, ordered=True) as subscription:
            held = await collect(subscription, 6, harness.patience)
            random.Random(1).shuffle(held)
            assert await subscription.settle([Release(d) for d in held[:3]]) == []
            assert await subscription.settle([Release(d) for d in held[3:]]) == []
            assert ids(await collect(subscription, 6, harness.patience)) == ids(sent)

    async def test_from_the_failure_on_receive_returns_nothing_that_was_behind_it(
        self, harness: BrokerHarness, broker: Broker, queue: str, by_key: None
    ) -> None:
        """Also of what was on its way to this subscription already."""
        sent = of_key("k", 200)
        await publish(broker, queue, sent)
        async with broker.subscribe(queue, prefetch=100, ordered=True) as subscription:
            [first] = await collect(subscription, 1, harness.patience)
            behind: list[Delivery] = []
            for pause in range(5):
                # Cut off, so that what was lent to them waits inside the subscription.
                receiving = asyncio.create_task(subscription.receive(10, 60))
                await asyncio.sleep(pause * 0.001)
                receiving.cancel()
                await asyncio.wait([receiving])
                behind += [] if receiving.cancelled() else receiving.result()
            receiving = asyncio.create_task(subscription.receive(90, QUIET))
            await asyncio.sleep(0)
            behind += receiving.result() if receiving.done() else []
            waits = not receiving.done()
            await subscription.settle([Retry(first, 3 * QUIET, FAILURE), *[Release(d) for d in behind]])
            if waits:
                assert await receiving == []
            [again] = await collect(subscription, 1, harness.patience + 1)
            assert (again.message.id, again.attempt) == (sent[0].id, 2)
            await subscription.settle([Ack(again)])
            assert ids(await collect(subscription, 99, harness.patience)) == ids(sent[1:100])

    async def test_a_failed_message_is_still_first_and_counted_after_its_consumer_is_gone(
        self, harness: BrokerHarness, broker: Broker, queue: str, by_key: None
    ) -> None:
        sent = of_key("k", 3)
        await publish(broker, queue, sent)
        for attempt in (1, 2, 3):
            async with harness.open() as other, other.subscribe(queue, prefetch=2, ordered=True) as mine:
                held = await collect(mine, 2 if attempt == 1 else 1, harness.patience)
                assert (held[0].message.id, held[0].attempt) == (sent[0].id, attempt)
                await mine.settle([Retry(held[0], 0, FAILURE)])
        async with broker.subscribe(queue, prefetch=10, ordered=True) as subscription:
            [held_on] = await collect(subscription, 1, harness.patience)
            assert (held_on.message.id, held_on.attempt) == (sent[0].id, 4)
            # Left unsettled, it is as before.
        async with broker.subscribe(queue, prefetch=10, ordered=True) as subscription:
            [last] = await collect(subscription, 1, harness.patience)
            assert (last.message.id, last.attempt) == (sent[0].id, 4)
            assert await subscription.receive(5, QUIET) == []
            await subscription.settle([DeadLetter(last, FAILURE)])
            assert ids(await collect(subscription, 2, harness.patience)) == ids(sent[1:])
        [dead] = await drain(broker, dead_letter_queue(queue), 1, harness.patience)
        assert dead.death is not None
        assert dead.death.attempts == 4

    async def test_many_keys_fail_at_once_and_each_keeps_its_order(
        self, harness: BrokerHarness, broker: Broker, queue: str, by_key: None
    ) -> None:
        keys = [f"k{n}" for n in range(150)]
        sent = {key: of_key(key, 4) for key in keys}
        await publish(broker, queue, [sent[key][n] for n in range(4) for key in keys])
        seen: dict[str, list[str]] = {key: [] for key in keys}
        async with broker.subscribe(queue, prefetch=1_000, ordered=True) as subscription:
            quiet = 0
            while sum(map(len, seen.values())) < 600 and quiet < 100:
                batch = await subscription.receive(300, 0.1)
                quiet = 0 if batch else quiet + 1
                failed: set[str] = set()
                settlements: list[Settlement] = []
                for d in batch:
                    key = d.message.key or ""
                    if key in failed:
                        settlements.append(Release(d))
                    elif d.attempt == 1:
                        failed.add(key)
                        settlements.append(Retry(d, 0.05, FAILURE))
                    else:
                        seen[key].append(d.message.id)
                        settlements.append(Ack(d))
                assert await subscription.settle(settlements) == []
        assert seen == {key: ids(sent[key]) for key in keys}

    async def test_without_order_what_was_parked_comes_as_anything_else(
        self, harness: BrokerHarness, broker: Broker, queue: str, by_key: None
    ) -> None:
        """The queue's setting may change while something is parked."""
        sent = of_key("k", 3)
        await publish(broker, queue, sent)
        async with broker.subscribe(queue, prefetch=1, ordered=True) as subscription:
            [first] = await collect(subscription, 1, harness.patience)
            await subscription.settle([Retry(first, 0.1, FAILURE)])
            assert await subscription.receive(1, 0.05) == []
        got = await drain(broker, queue, 3, harness.patience)
        assert {d.message.id: d.attempt for d in got} == {sent[0].id: 2, sent[1].id: 1, sent[2].id: 1}

    def test_no_history_of_failures_turns_two_messages_of_a_key_round(self, harness: BrokerHarness) -> None:
        class Machine(OrderMachine):
            def __init__(self) -> None:
                super().__init__(harness)

        machine = Loop()
        try:
            if machine.run(_ordering(harness)) != "by_key":
                pytest.skip("this broker keeps no order by key")
        finally:
            machine.close()
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=harness.histories,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


async def _ordering(harness: BrokerHarness) -> str:
    async with harness.open() as broker:
        return broker.capabilities.ordering


class OrderMachine(RuleBasedStateMachine):
    """
    Two connections with an ordered subscription each, on one queue with three keys.

    What a subscription gets of a key must be the next in publish order behind what it holds
    already, with nothing of that key in the other's hand, and nothing behind a failed message.
    """

    KEYS = ("a", "b", "c", None)

    def __init__(self, harness: BrokerHarness) -> None:
        super().__init__()
        self.harness = harness
        self.loop = Loop()
        self.queue = fresh_name()
        self.waiting: dict[str | None, list[str]] = {key: [] for key in self.KEYS}
        """Ids in publish order, until they are settled for good."""
        self.attempts: dict[str, int] = {}
        self.loans: list[list[Delivery]] = [[] for _ in range(CONNECTIONS)]
        self.draining: list[set[str]] = [set() for _ in range(CONNECTIONS)]
        """Keys of which something was sent back, and more is still in hand."""
        self.dead = 0
        self.stacks = [AsyncExitStack() for _ in range(CONNECTIONS)]
        self.brokers: list[Broker] = []
        self.subscriptions: list[Subscription] = []
        self.loop.run(self.start())

    async def start(self) -> None:
        for stack in self.stacks:
            broker = await stack.enter_async_context(self.harness.open())
            await broker.declare(self.queue)
            self.brokers.append(broker)
            self.subscriptions.append(await stack.enter_async_context(self.subscribe(broker)))

    def subscribe(self, broker: Broker):  # type: ignore[no-untyped-def]  # whatever the driver's is
        return broker.subscribe(self.queue, prefetch=8, ordered=True)

    who = st.integers(0, CONNECTIONS - 1)

    @rule(who=who, keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=6))
    def publish(self, who: int, keys: list[str | None]) -> None:
        sent = [message(key=key) for key in keys]
        self.loop.run(publish(self.brokers[who], self.queue, sent))
        for m in sent:
            self.waiting[m.key].append(m.id)
            self.attempts[m.id] = 1

    @rule(who=who, count=st.integers(1, 6))
    def receive(self, who: int, count: int) -> None:
        for d in self.loop.run(self.subscriptions[who].receive(count, self.harness.look)):
            self.got(who, d)

    def got(self, who: int, d: Delivery) -> None:
        key, id_ = d.message.key, d.message.id
        assert d.attempt == self.attempts[id_], "attempts miscounted"
        assert all(id_ not in ids(loan) for loan in self.loans), "lent twice"
        assert id_ in self.waiting[key], "delivered after its end"
        if key is not None:
            assert key not in self.draining[who], "lent while something that was behind it is in hand"
            others = [x for n, loan in enumerate(self.loans) if n != who for x in loan]
            assert key not in {x.message.key for x in others}, "a key in two hands"
            before = self.waiting[key][: self.waiting[key].index(id_)]
            assert set(before) <= set(ids(self.loans[who])), "lent before an earlier one of its key"
            assert not any(self.attempts[x] > 1 for x in before), "lent behind one that has failed"
        self.loans[who].append(d)

    @rule(
        who=who,
        picks=st.lists(
            st.tuples(
                st.integers(0, 999), st.sampled_from(("ack", "retry", "dead", "release")), st.booleans()
            ),
            min_size=1,
            max_size=6,
        ),
        shuffled=st.randoms(use_true_random=False),
    )
    def settle(self, who: int, picks: list[tuple[int, str, bool]], shuffled: random.Random) -> None:
        loan = self.loans[who]
        settlements: list[Settlement] = []
        for index, chosen, at_once in picks:
            if not loan:
                break
            key = loan[index % len(loan)].message.key
            kind = "release" if key in self.draining[who] else chosen
            mine = [d for d in loan if d.message.key == key]
            mine.sort(key=lambda d: self.waiting[d.message.key].index(d.message.id))
            first, *behind = mine
            loan.remove(first)
            if kind in ("retry", "release"):
                if kind == "retry":
                    self.attempts[first.message.id] += 1
                    settlements.append(Retry(first, 0, FAILURE))
                else:
                    settlements.append(Release(first))
                # The duty of who retries or releases: what it holds behind it goes back too, now or later.
                if key is not None and at_once:
                    for d in behind:
                        loan.remove(d)
                        settlements.append(Release(d))
                elif key is not None:
                    self.draining[who].add(key)
            else:
                settlements.append(Ack(first) if kind == "ack" else DeadLetter(first, FAILURE))
                self.dead += kind == "dead"
                self.waiting[key].remove(first.message.id)
        shuffled.shuffle(settlements)
        self.draining[who] &= {d.message.key for d in loan if d.message.key is not None}
        assert self.loop.run(self.subscriptions[who].settle(settlements)) == []

    @rule(who=who)
    def reconnect(self, who: int) -> None:
        async def again() -> None:
            await self.stacks[who].aclose()
            broker = await self.stacks[who].enter_async_context(self.harness.open())
            self.brokers[who] = broker
            self.subscriptions[who] = await self.stacks[who].enter_async_context(self.subscribe(broker))

        self.loop.run(again())
        self.loans[who].clear()
        self.draining[who].clear()

    def teardown(self) -> None:
        async def rest() -> list[Delivery]:
            for stack in self.stacks:
                await stack.aclose()
            self.loans = [[] for _ in range(CONNECTIONS)]
            self.draining = [set() for _ in range(CONNECTIONS)]
            out: list[Delivery] = []
            expected = sum(map(len, self.waiting.values()))
            async with self.harness.open() as broker, self.subscribe(broker) as subscription:
                for _ in range(1 + 10 * round(self.harness.patience)):
                    batch = await subscription.receive(4, 0.1 if len(out) < expected else 0)
                    for d in batch:
                        self.got(0, d)
                        self.loans[0].clear()
                        self.waiting[d.message.key].remove(d.message.id)
                        out.append(d)
                    await subscription.settle([Ack(d) for d in batch])
                    if len(out) >= expected and not batch:
                        break
                assert len(out) == expected
                dead = await drain(broker, dead_letter_queue(self.queue), self.dead, self.harness.patience)
                assert len(dead) == self.dead
            return out

        try:
            self.loop.run(rest())
        finally:
            self.loop.close()
