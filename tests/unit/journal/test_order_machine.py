"""Any order of outages, half failures, crashes and new messages: each key's messages take effect in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from forebay.brokers.api import PublishResult
from forebay.brokers.memory import MemoryBroker, MemoryServer
from forebay.errors import BrokerUnavailable, PublishUnconfirmed
from forebay.journal.draining import Drain
from forebay.journal.journal import Journal
from forebay.message import Message
from gateway.outlets.outlet import Outlet, State
from gateway.outlets.publishing import Outlets

KEYS = ("a", "b", None)


class Broker(MemoryBroker):
    """Takes what it is told to: all, nothing, or the first few, and of these it may confirm fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.next_takes: int | None = None
        self.next_confirms: int | None = None
        self.arrived: list[Message] = []

    async def publish(
        self, queue: str, messages: Sequence[Message], *, timeout: float
    ) -> list[PublishResult]:
        if self.away:
            raise BrokerUnavailable("away")
        takes, self.next_takes = self.next_takes, None
        confirms, self.next_confirms = self.next_confirms, None
        takes = len(messages) if takes is None else min(takes, len(messages))
        confirms = takes if confirms is None else min(confirms, takes)
        self.arrived += messages[:takes]
        unknown = PublishUnconfirmed("the connection was lost")
        return [
            PublishResult(message_id=m.id, durability="synced")
            if i < confirms
            else PublishResult(message_id=m.id, error=unknown)
            for i, m in enumerate(messages)
        ]


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.broker = Broker()
        self.disk = MemoryServer()
        self.accepted: list[Message] = []
        self.count = 0
        self.start()

    def run(self, work: object) -> object:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    def start(self) -> None:
        """A process begins, with what an earlier one left in the journal."""

        async def opened() -> None:
            self.outlet = Outlet("broker", self.broker, changed=lambda: None)
            self.outlets = Outlets(
                [self.outlet], budget=1.0, may_journal=lambda _: True, may_fall_back=lambda _: True
            )
            self.journal_broker = MemoryBroker(self.disk)
            self.outlets.journal = await Journal.of(
                self.journal_broker, name="journal", max_bytes=10**9, max_age=1e9
            )

        self.run(opened())

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4))
    def post(self, keys: list[str | None]) -> None:
        """Requests that arrive together; each is answered before the next rule."""
        messages = []
        for key in keys:
            self.count += 1
            messages.append(Message(id=f"{self.count:04}", body=b"x", key=key, accepted_at=datetime.now(UTC)))
        results = self.run(self.outlets.publish("orders", messages, timeout=5))
        assert isinstance(results, list)
        assert all(r.ok for r in results), results
        self.accepted += messages

    @rule()
    def broker_goes_away(self) -> None:
        self.broker.away = True

    @rule()
    def broker_comes_back(self) -> None:
        self.broker.away = False
        self.outlet.state = State.TRIAL

    @rule(takes=st.integers(0, 3), confirms=st.integers(0, 3))
    def connection_is_lost_in_the_next_publish(self, takes: int, confirms: int) -> None:
        self.broker.next_takes, self.broker.next_confirms = takes, confirms

    @rule()
    def drain(self) -> None:
        journal = self.outlets.journal
        assert journal is not None
        if journal.holds("orders"):
            self.run(Drain(journal, "orders", target=self.outlets.target).run_once())

    @rule()
    def killed(self) -> None:
        """What the journal has stays; leases of the dead end."""
        self.run(self.outlet.close())
        self.run(self.journal_broker.close())
        self.start()

    @invariant()
    def journal_knows_what_it_holds(self) -> None:
        journal = self.outlets.journal
        assert journal is not None
        stored = sum(len(q.entries) for q in self.disk.queues.values())
        assert journal.messages == stored

    def teardown(self) -> None:
        self.broker.next_takes = self.broker.next_confirms = None
        self.broker_comes_back()
        for _ in range(3):
            self.drain()
        self.check_everything()
        self.run(self.outlet.close())
        with suppress(Exception):
            self.run(self.journal_broker.close())
        self.loop.close()

    def check_everything(self) -> None:
        effects = list(dict.fromkeys(m.id for m in self.broker.arrived))
        assert set(effects) == {m.id for m in self.accepted}
        keys = {m.id: m.key for m in self.accepted}
        for key in KEYS:
            if key is not None:
                got = [id_ for id_ in effects if keys[id_] == key]
                assert got == [m.id for m in self.accepted if m.key == key]


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestOrder = Machine.TestCase
