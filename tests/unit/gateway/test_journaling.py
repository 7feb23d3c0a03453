"""A gateway with a journal: what it answers, and where messages are, while its broker is away and after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forebay.brokers.api import Broker, PublishResult
from forebay.brokers.factory import open_journal
from forebay.brokers.settings import BrokerSettings
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.errors import (
    BrokerUnavailable,
    MessageTooLarge,
    PublishRejected,
    PublishUnconfirmed,
    SettingsError,
)
from forebay.message import Message
from gateway.outlets.opening import Elsewhere
from gateway.outlets.publishing import Outlets
from tests.unit.gateway.support import Running, ScriptedBroker, running
from tests.waiting import until

NO_LIMIT = BrokerSettings(sqlite=SQLiteSettings(min_free_bytes=0))


def elsewhere(**changes: Any) -> Elsewhere:
    defaults: dict[str, Any] = {
        "broker_takes": 900_000,
        "open_journal": partial(open_journal, settings=NO_LIMIT, max_body_bytes=900_000),
        "may_journal": lambda queue: True,
        "may_fall_back": lambda queue: True,
    }
    return Elsewhere(**(defaults | changes))


def journaling(
    broker: ScriptedBroker, directory: Path, *, other: Elsewhere | None = None, **settings: Any
) -> AbstractAsyncContextManager[Running]:
    defaults: dict[str, Any] = {"broker_budget": 0.2, "journal": directory}
    return running(broker, elsewhere=other or elsewhere(), **(defaults | settings))


class Away(ScriptedBroker):
    """A broker that can go away and come back."""

    def go(self) -> None:
        self.ping_error = BrokerUnavailable("connection refused")

    def come_back(self) -> None:
        self.ping_error = None

    async def publish(self, queue: str, messages: Any, *, timeout: float) -> list[PublishResult]:
        if self.ping_error is not None:
            raise self.ping_error
        return await super().publish(queue, messages, timeout=timeout)


def bodies(broker: ScriptedBroker, queue: str = "orders") -> list[bytes]:
    return [m.body for m in broker.queues.get(queue, [])]


async def comes_true(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.05)


async def test_while_the_broker_is_away_a_message_is_journaled_and_reaches_it_when_it_is_back(
    tmp_path: Path,
) -> None:
    broker = Away()
    async with journaling(broker, tmp_path) as gateway:
        assert (await gateway.post(b"before")).json()["durability"] == "synced"
        broker.go()
        answers = [await gateway.post(body) for body in (b"1", b"2", b"3")]
        assert [(a.status_code, a.json()["durability"]) for a in answers] == [(202, "journaled")] * 3

        broker.come_back()
        await until(lambda: len(bodies(broker)) == 4)
        assert bodies(broker) == [b"before", b"1", b"2", b"3"]
        after = await gateway.post(b"after")
        assert after.json()["durability"] == "synced"


async def test_the_budget_is_paid_once_and_not_by_every_request(tmp_path: Path) -> None:
    """A broker that takes connections and answers nothing."""
    broker = ScriptedBroker()
    async with journaling(broker, tmp_path) as gateway:
        broker.gate.clear()
        broker.ping_error = BrokerUnavailable("no answer")
        first = await gateway.post(b"1")
        assert (first.status_code, first.json()["durability"]) == (202, "journaled")
        asked = len(broker.publishes)
        for _ in range(5):
            assert (await gateway.post(b"x")).json()["durability"] == "journaled"
        assert len(broker.publishes) == asked


async def test_it_starts_without_its_broker(tmp_path: Path) -> None:
    broker = Away()
    there = False

    @asynccontextmanager
    async def opener() -> AsyncIterator[Broker]:
        if not there:
            raise BrokerUnavailable("connection refused")
        yield broker

    async with running(
        broker, broker_opener=opener, elsewhere=elsewhere(), journal=tmp_path, broker_budget=0.2
    ) as gateway:
        assert (await gateway.client.get("/readyz")).status_code == 200
        assert (await gateway.post(b"1")).json()["durability"] == "journaled"
        there = True
        await until(lambda: bodies(broker) == [b"1"], timeout=20)


async def test_a_driver_that_fails_unexpectedly_is_opened_again(tmp_path: Path) -> None:
    broker = ScriptedBroker()
    failures = [RuntimeError("a bug of a driver")]

    @asynccontextmanager
    async def opener() -> AsyncIterator[Broker]:
        if failures:
            raise failures.pop()
        yield broker

    async with running(
        broker, broker_opener=opener, elsewhere=elsewhere(), journal=tmp_path, broker_budget=0.2
    ) as gateway:
        assert (await gateway.post(b"1")).status_code == 202
        await until(lambda: bodies(broker) == [b"1"], timeout=20)


async def test_what_is_left_in_the_journal_is_drained_by_the_next_gateway(tmp_path: Path) -> None:
    broker = Away()
    async with journaling(broker, tmp_path) as gateway:
        broker.go()
        for n in range(20):
            await gateway.post(b"%d" % n, headers={"Forebay-Ordering-Key": f"k{n % 3}"})
    again = Away()
    async with journaling(again, tmp_path) as gateway:
        await until(lambda: len(bodies(again)) == 20)
    assert bodies(again) == [b"%d" % n for n in range(20)]


async def test_a_new_message_goes_behind_the_journaled_ones_of_its_ordering_key(tmp_path: Path) -> None:
    broker = Away()
    async with journaling(broker, tmp_path) as gateway:
        broker.go()
        await gateway.post(b"a1", headers={"Forebay-Ordering-Key": "a"})
        # It takes messages again, but its answers to what comes from the journal are late.
        broker.come_back()
        broker.gate.clear()
        await until(lambda: broker.running == 1)
        second = asyncio.create_task(gateway.post(b"a2", headers={"Forebay-Ordering-Key": "a"}))
        assert (await second).json()["durability"] == "journaled"
        broker.gate.set()
        await until(lambda: len(bodies(broker)) == 2)
    assert bodies(broker) == [b"a1", b"a2"]


async def test_a_stop_ends_what_still_drains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.outlets.keeping.LAST_DRAIN", 0.1)
    monkeypatch.setattr("gateway.outlets.keeping.LOOK_EVERY", 60.0)  # nothing drains before the stop
    broker = Away()
    async with journaling(broker, tmp_path) as gateway:
        broker.go()
        assert (await gateway.post(b"1")).json()["durability"] == "journaled"
        broker.come_back()
        assert gateway.app.parts is not None
        outlets = gateway.app.parts.ingest._broker
        assert isinstance(outlets, Outlets)
        await until(lambda: outlets.outlets[0].usable)
        broker.gate.clear()
        before = asyncio.all_tasks()
    assert [task for task in asyncio.all_tasks() - before if not task.done()] == []


async def test_what_asks_for_more_than_the_journal_gives_is_refused(tmp_path: Path) -> None:
    broker = Away(durability="replicated")
    async with journaling(broker, tmp_path) as gateway:
        broker.go()
        answer = await gateway.post(b"1", headers={"Prefer": "durability=replicated"})
        assert answer.status_code == 503
        assert answer.json()["type"] == "/problems/durability-unavailable"
        # An id is what a stored message has.
        assert "id" not in answer.json()
        assert "Nothing was stored" in answer.json()["detail"]
        assert "retry-after" in answer.headers
        broker.come_back()
        await until(lambda: gateway.app.parts is not None)
    assert bodies(broker) == []


async def test_a_message_that_is_too_large_is_refused_and_never_journaled(tmp_path: Path) -> None:
    broker = ScriptedBroker()
    broker.failures += [lambda m: PublishResult(message_id=m.id, error=MessageTooLarge(10, 5))]
    async with journaling(broker, tmp_path) as gateway:
        assert (await gateway.post(b"1")).status_code == 413
        await gateway.post(b"2")
    assert bodies(broker) == [b"2"]


async def test_an_unconfirmed_message_is_journaled_under_the_same_id(tmp_path: Path) -> None:
    broker = ScriptedBroker()
    broker.failures += [lambda m: PublishResult(message_id=m.id, error=PublishUnconfirmed("connection lost"))]
    async with journaling(broker, tmp_path) as gateway:
        answer = (await gateway.post(b"1")).json()
        assert answer["durability"] == "journaled"
        await until(lambda: len(broker.messages) == 1)
    assert broker.messages[0].id == answer["id"]


async def test_what_the_journal_stored_without_knowing_is_handed_on_all_the_same(tmp_path: Path) -> None:
    """A commit of which the disk said that it failed; nothing else comes, through which it would be seen."""
    unsure: list[bytes] = []

    @asynccontextmanager
    async def opener(path: Path) -> AsyncIterator[Broker]:
        async with open_journal(path, NO_LIMIT, max_body_bytes=900_000) as opened:
            inner = opened.publish

            async def publish(queue: str, messages: Any, *, timeout: float) -> list[PublishResult]:
                await inner(queue, messages, timeout=timeout)
                unsure.extend(m.body for m in messages)
                return [PublishResult(message_id=m.id, error=PublishUnconfirmed("?")) for m in messages]

            opened.publish = publish  # type: ignore[method-assign]
            yield opened

    broker = Away()
    async with journaling(broker, tmp_path, other=elsewhere(open_journal=opener)) as gateway:
        broker.go()
        answer = await gateway.post(b"1")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/outcome-unknown")
        assert unsure == [b"1"]
        broker.come_back()
        await until(lambda: bodies(broker) == [b"1"], timeout=20)


async def test_a_full_journal_says_so(tmp_path: Path) -> None:
    broker = Away()
    async with journaling(broker, tmp_path, journal_max_bytes=10) as gateway:
        broker.go()
        assert (await gateway.post(b"123456")).status_code == 202
        full = await gateway.post(b"123456")
        assert (full.status_code, full.json()["type"]) == (503, "/problems/journal-full")
        assert "retry-after" in full.headers
        assert (await gateway.post(b"1234")).status_code == 202
        assert (await gateway.post(b"1")).status_code == 503
        ready = await gateway.client.get("/readyz?verbose")
        assert ready.status_code == 503
        assert "gateway.journal_max_bytes" in ready.text
        assert "broker" not in [check["name"] for check in ready.json()["checks"]]
        broker.come_back()
        await until(lambda: len(bodies(broker)) == 2)

        async def ready_again() -> bool:
            return (await gateway.client.get("/readyz")).status_code == 200

        # A ping's answer is kept for a second.
        await comes_true(ready_again)


async def test_a_journal_takes_nothing_more_once_it_holds_something_too_old(tmp_path: Path) -> None:
    broker = Away()
    async with journaling(broker, tmp_path, journal_max_age=0.05) as gateway:
        broker.go()
        await gateway.post(b"1")

        async def refused() -> bool:
            return (await gateway.post(b"2")).status_code == 503

        await comes_true(refused)


async def test_a_message_that_the_broker_refuses_for_good_is_set_aside_and_holds_up_nobody(
    tmp_path: Path,
) -> None:
    broker = Away()

    def choosy(m: Message) -> PublishResult:
        if m.body == b"bad":
            return PublishResult(message_id=m.id, error=PublishRejected("no"))
        broker.queues["orders"].append(m)
        return PublishResult(message_id=m.id, durability="synced")

    async with journaling(broker, tmp_path) as gateway:
        broker.go()
        for body in (b"1", b"bad", b"2"):
            await gateway.post(body)
        broker.failures += [choosy] * 9
        broker.come_back()
        await until(lambda: bodies(broker) == [b"1", b"2"])

        async def told() -> bool:
            return "1 set aside" in (await gateway.client.get("/readyz?verbose")).text

        await comes_true(told)


async def test_it_says_since_when_it_is_journaling(tmp_path: Path) -> None:
    broker = Away()
    async with journaling(broker, tmp_path) as gateway:
        broker.go()
        await gateway.post(b"123")
        ready = await gateway.client.get("/readyz?verbose")
        assert ready.status_code == 200
        detail = {c["name"]: c["detail"] for c in ready.json()["checks"]}
        assert "journaling since 20" in detail["journal"]
        assert "connection refused" in detail["outlet broker"]
        figures = (await gateway.client.get("/metrics")).text
        assert 'forebay_gateway_outlet_works{outlet="broker"} 0.0' in figures
        assert 'forebay_gateway_outlet_messages_total{outlet="journal"} 1.0' in figures


async def test_a_queue_that_keeps_its_order_is_not_journaled_unless_it_says_so(tmp_path: Path) -> None:
    broker = Away()
    other = elsewhere(may_journal=lambda queue: queue != "orders")
    async with journaling(broker, tmp_path, other=other) as gateway:
        broker.go()
        assert (await gateway.post(b"1")).json()["type"] == "/problems/broker-unavailable"
        assert (await gateway.post(b"1", queue="clicks")).status_code == 202


async def test_delay_and_expiry_survive_the_journal(tmp_path: Path) -> None:
    broker = Away()
    async with journaling(broker, tmp_path) as gateway:
        broker.go()
        await gateway.post(b"1", headers={"Forebay-Delay": "3600", "Forebay-TTL": "7200"})
        broker.come_back()
        await until(lambda: len(broker.messages) == 1)
    [m] = broker.messages
    assert m.not_before is not None
    assert m.expires_at is not None
    assert 3_590 < (m.not_before - m.accepted_at).total_seconds() < 3_610


async def test_a_damaged_journal_is_set_aside_and_the_gateway_serves(tmp_path: Path) -> None:
    broker = Away()
    async with journaling(broker, tmp_path) as gateway:
        broker.go()
        for n in range(200):
            await gateway.post(b"%d " % n * 1_000)
    file = tmp_path / "journal-1.db"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2 + 777)
    again = Away()
    async with journaling(again, tmp_path) as gateway:
        assert (await gateway.post(b"new")).status_code == 202
        await until(lambda: len(bodies(again)) > 50, timeout=20)
    assert list((tmp_path / "damaged").glob("*.db"))
    assert len(set(bodies(again))) == len(bodies(again))


async def test_the_journal_of_a_dead_process_is_adopted_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.outlets.keeping.ADOPT_EVERY", 0.05)
    monkeypatch.setattr("gateway.outlets.keeping.ADOPT_AFTER", 0.2)
    away, there = Away(), Away()
    async with journaling(there, tmp_path) as alive:
        async with journaling(away, tmp_path) as dying:
            away.go()
            await dying.post(b"left")
            assert (tmp_path / "journal-2.db").exists()
        await until(lambda: bodies(there) == [b"left"], timeout=20)
        await until(lambda: not (tmp_path / "journal-2.db").exists())
        assert (await alive.post(b"x")).status_code == 202


async def test_a_fallback_takes_what_the_broker_does_not(tmp_path: Path) -> None:
    broker, second = Away(), ScriptedBroker()

    @asynccontextmanager
    async def opener() -> AsyncIterator[Broker]:
        yield second

    other = elsewhere(
        fallbacks=[("fallback-1", opener)], open_journal=None, may_fall_back=lambda queue: queue != "clicks"
    )
    async with journaling(broker, tmp_path, other=other, journal=None) as gateway:
        broker.go()
        assert (await gateway.post(b"1")).json()["durability"] == "synced"
        assert (await gateway.post(b"2", queue="clicks")).status_code == 503
        broker.come_back()

        async with asyncio.timeout(10):
            while b"3" not in bodies(broker):
                await gateway.post(b"3")
    assert bodies(second)[0] == b"1"
    assert not second.queues.get("clicks")


async def test_what_can_never_work_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="min_durability"):
        async with journaling(ScriptedBroker(durability="unsynced"), tmp_path / "a"):
            pass
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SettingsError, match=r"gateway\.journal"):
        async with journaling(ScriptedBroker(), tmp_path / "file"):
            pass


async def test_a_broker_that_answers_pings_and_stores_nothing_is_tried_by_what_is_journaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request pays the budget again: the journal's messages find out whether it works."""
    monkeypatch.setattr("forebay.journal.draining.TIMEOUT", 0.1)
    broker = ScriptedBroker()
    async with journaling(broker, tmp_path) as gateway:
        broker.gate.clear()
        await gateway.post(b"1")
        # It answers pings: so it is tried again and again, with what is in the journal.
        await until(lambda: len(broker.publishes) >= 3)
        tried = [[m.body for m in messages] for _, messages in broker.publishes]
        assert tried == [[b"1"]] * len(tried)
        broker.gate.set()
        await until(lambda: b"1" in bodies(broker))


async def test_it_is_ready_though_its_broker_answers_nothing_and_nobody_has_noticed(tmp_path: Path) -> None:
    """Were it not, no request would come, and nobody would ever notice."""

    class Hung(ScriptedBroker):
        async def ping(self) -> None:
            await self.gate.wait()

    broker = Hung()
    async with journaling(broker, tmp_path) as gateway:
        broker.gate.clear()
        assert (await gateway.client.get("/readyz")).status_code == 200
        broker.gate.set()
