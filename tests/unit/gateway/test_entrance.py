"""A message that is here whole takes its place in one step, with the outcome and the accounts of three."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from forebay.brokers.api import Durability
from gateway.admission import Admission
from gateway.answer import Answer
from gateway.callers import ANYONE, Caller, Queues
from gateway.entrance import Entrance, Ticket
from gateway.headers import Meta
from gateway.metrics import GatewayMetrics
from gateway.quotas import Quota
from gateway.settings import GatewaySettings
from tests.unit.gateway.support import ScriptedBroker

SIZES = st.sampled_from([0, 1, 40, 60, 100, 101, 500])

STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["anyone", "limited", "narrow", "sharing", "shared"]),
            st.sampled_from(["orders", "clicks"]),
            SIZES,
            st.sampled_from([None, "journaled", "synced", "replicated"]),
        ),
        st.floats(0, 2),  # time passes
        st.integers(0, 5),  # one of those in work is over
    ),
    max_size=30,
)


@dataclass
class World:
    """One gateway's entrance, and those who come."""

    now: float = 0.0
    inside: list[Ticket] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = GatewaySettings(max_in_flight=4, max_in_flight_bytes=300, max_body_bytes=100)
        self.metrics = GatewayMetrics(CollectorRegistry())
        self.entrance = Entrance(ScriptedBroker(), settings, metrics=self.metrics)
        self.budget = Admission(2, 150)
        self.quota = Quota(rate=2, burst=3, bytes_per_second=100, clock=lambda: self.now)
        self.callers = {
            "anyone": ANYONE,
            "limited": Caller(tenant="a", name="limited", quota=self.quota, max_body_bytes=60),
            "narrow": Caller(tenant="b", name="narrow", queues=Queues(["orders"])),
            "sharing": Caller(tenant="c", name="sharing", budget=self.budget, quota=self.quota),
            "shared": Caller(tenant="c", name="shared", budget=self.budget),
        }

    @property
    def accounts(self) -> list[object]:
        held = [(a.count, a.size) for a in (self.entrance._admission, self.budget)]
        refused = [
            s for family in self.metrics.refused.collect() for s in family.samples if "_total" in s.name
        ]
        return [held, self.quota.headers(), [(s.labels, s.value) for s in refused]]

    def in_three_steps(self, caller: Caller, queue: str, meta: Meta, size: int) -> Ticket | Answer:
        entered = self.entrance.enter(queue, meta, caller, size=size)
        if isinstance(entered, Answer):
            return entered
        return (
            (self.entrance.grow(entered, size) if size else None) or self.entrance.place(entered) or entered
        )

    def at_once(self, caller: Caller, queue: str, meta: Meta, size: int) -> Ticket | Answer:
        return self.entrance.enter_whole(queue, meta, caller, size)


@given(STEPS)
def test_in_one_step_as_in_three(
    steps: list[tuple[str, str, int, Durability | None] | float | int],
) -> None:
    async def compare() -> None:
        slow, quick = World(), World()
        for step in steps:
            if isinstance(step, tuple):
                who, queue, size, durability = step
                meta = Meta()
                meta.durability = durability
                told = slow.in_three_steps(slow.callers[who], queue, meta, size)
                said = quick.at_once(quick.callers[who], queue, meta, size)
                assert isinstance(told, Answer) == isinstance(said, Answer)
                if isinstance(told, Answer) and isinstance(said, Answer):
                    assert (told.status, told.body) == (said.status, said.body)
                elif isinstance(told, Ticket) and isinstance(said, Ticket):
                    slow.inside.append(told)
                    quick.inside.append(said)
            elif isinstance(step, float):
                slow.now += step
                quick.now += step
            elif step < len(slow.inside):
                slow.entrance.abandon(slow.inside.pop(step))
                quick.entrance.abandon(quick.inside.pop(step))
            assert slow.accounts == quick.accounts

    asyncio.run(compare())
