"""What the embedded queue's tables promise: no scans, true counters, fair shares, leases that end."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pytest

from forebay.brokers.api import Ack, DeadLetter, Delivery, Release, Retry
from forebay.brokers.sqlite import broker as reads
from forebay.brokers.sqlite import consuming, parking, publishing, schema
from forebay.brokers.sqlite.broker import SQLiteBroker
from forebay.brokers.sqlite.files import Turn
from forebay.brokers.sqlite.settings import SQLiteSettings
from forebay.brokers.sqlite.writer import Transaction
from forebay.errors import BrokerUnavailable, PublishRejected
from forebay.testing.broker_contract.harness import FAILURE, collect, drain, ids, message, messages, publish

SETTINGS = SQLiteSettings(ballast_bytes=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


STATEMENTS = [
    text
    for module in (consuming, parking, publishing, reads)
    for name, text in vars(module).items()
    if isinstance(text, str) and name != "_SELECT" and re.match(r"(select|insert|delete|update) ", text)
]


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_no_statement_scans_or_sorts(path: Path, statement: str) -> None:
    """The cost of a message must not depend on how many wait."""
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
    db = schema.connect(path, synchronous="normal")
    plan = [str(row[3]) for row in db.execute(f"explain query plan {statement}", (1,) * statement.count("?"))]
    db.close()
    assert len(STATEMENTS) >= 14
    bad = [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step]
    # One row per subscription; there is no index because there is nothing to skip.
    assert [step for step in bad if step not in ("SCAN o", "SCAN owner")] == []


async def test_counters_equal_what_is_there_after_every_kind_of_settlement(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message(b"x" * i) for i in range(20)])
        async with broker.subscribe("orders", prefetch=20) as subscription:
            got = await collect(subscription, 16, 2.0)
            await subscription.settle(
                [
                    *[Ack(d) for d in got[:4]],
                    *[Retry(d, 60, FAILURE) for d in got[4:8]],
                    *[DeadLetter(d, FAILURE) for d in got[8:12]],
                    *[Release(d) for d in got[12:14]],
                ]
            )
            db = schema.connect(path, synchronous="normal")
            counted = db.execute(
                "select q.name, q.messages, q.bytes, count(m.seq), coalesce(sum(length(m.body)), 0)"
                " from queue q left join (select queue, seq from slot union all"
                " select o.queue, l.seq from lease l join owner o on o.id = l.owner) s on s.queue = q.id"
                " left join message m on m.seq = s.seq group by q.id order by q.name"
            ).fetchall()
            orphans = db.execute(
                "select count(*) from message"
                " where seq not in (select seq from slot union select seq from lease)"
            ).get
            db.close()
    assert [row[1:3] for row in counted] == [row[3:5] for row in counted]
    assert [row[1] for row in counted] == [12, 4]
    assert orphans == 0


async def test_neither_fresh_nor_scheduled_messages_starve(path: Path) -> None:
    """A flood of retries leaves half of each batch to fresh messages, and the other way round."""
    moment = [1_000_000.0]
    async with SQLiteBroker.open(path, SETTINGS, clock=lambda: moment[0]) as broker:
        await broker.declare("orders")
        due = datetime.fromtimestamp(moment[0] + 10, UTC)
        scheduled = [message(b"s", not_before=due) for _ in range(40)]
        fresh = [message(b"f") for _ in range(40)]
        await publish(broker, "orders", scheduled)
        await publish(broker, "orders", fresh)
        moment[0] += 20
        async with broker.subscribe("orders", prefetch=100) as subscription:
            ten = [d.message.body for d in await subscription.receive(10, 1)]
            ones = [(await subscription.receive(1, 1))[0].message.body for _ in range(10)]
    assert ten.count(b"s") == ten.count(b"f") == 5
    assert ones.count(b"s") == ones.count(b"f") == 5


async def test_a_clock_set_back_hides_no_message(path: Path) -> None:
    moment = [2_000_000_000.0]
    async with SQLiteBroker.open(path, SETTINGS, clock=lambda: moment[0]) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", messages(3))
        moment[0] -= 86_400
        assert len(await drain(broker, "orders", 3, 1.0)) == 3


async def test_a_released_message_returns_to_its_old_place(path: Path) -> None:
    sent = messages(6)
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", sent)
        async with broker.subscribe("orders", prefetch=10) as subscription:
            got = await collect(subscription, 3, 1.0)
            await subscription.settle([Release(d) for d in reversed(got)])
        back = await drain(broker, "orders", 6, 1.0)
    assert ids(back) == ids(sent)
    assert [d.deferrals for d in back] == [1, 1, 1, 0, 0, 0]


async def test_a_delay_is_exact_to_some_milliseconds(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        lates = []
        async with broker.subscribe("orders", prefetch=10) as subscription:
            for _ in range(5):
                due = datetime.now(UTC) + timedelta(seconds=0.15)
                await publish(broker, "orders", [message(not_before=due)])
                await subscription.receive(1, 5)
                lates.append((datetime.now(UTC) - due).total_seconds())
    assert min(lates) >= 0
    assert sorted(lates)[2] < 0.05, lates


async def test_a_lease_is_renewed_while_its_holder_lives(path: Path) -> None:
    settings = SETTINGS.model_copy(update={"lease": 0.6})
    async with SQLiteBroker.open(path, settings) as broker, SQLiteBroker.open(path, settings) as other:
        await broker.declare("orders")
        await publish(broker, "orders", [message()])
        async with (
            broker.subscribe("orders", prefetch=1) as holder,
            other.subscribe("orders", prefetch=1) as waiting,
        ):
            [held] = await holder.receive(1, 1)
            assert await waiting.receive(1, 2.0) == []
            assert await holder.settle([Ack(held)]) == []


async def test_a_holder_whose_loop_hangs_loses_its_lease_and_is_told(path: Path) -> None:
    settings = SETTINGS.model_copy(update={"lease": 0.3})
    async with SQLiteBroker.open(path, settings) as broker, SQLiteBroker.open(path, SETTINGS) as other:
        await broker.declare("orders")
        await publish(broker, "orders", messages(2))
        async with (
            broker.subscribe("orders", prefetch=2) as holder,
            other.subscribe("orders", prefetch=2) as second,
        ):
            held = await collect(holder, 2, 1.0)
            keeper = broker._keeper
            assert keeper is not None
            keeper.cancel()  # what a loop that hangs does not run
            got = await collect(second, 2, 5.0)
            assert sorted(ids(got)) == sorted(ids(held))
            assert await holder.settle([Ack(d) for d in held]) == held, "somebody else has them now"
            assert await second.settle([Ack(d) for d in got]) == []


async def test_a_holder_that_lost_its_lease_goes_on_with_a_new_one(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", messages(3))
        async with broker.subscribe("orders", prefetch=3) as subscription:
            [held] = await subscription.receive(1, 1)
            db = apsw.Connection(str(path))
            db.execute("delete from owner; delete from lease")
            db.close()
            again = await subscription.receive(2, 1)
            assert await subscription.settle([Ack(held)]) == [held]
            assert await subscription.settle([Ack(d) for d in again]) == []


async def test_text_that_is_no_unicode_is_refused_alone(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        bad = [message(key="\ud800"), message(headers={"a": "\udfff"}), message(content_type="\ud800")]
        results = await broker.publish("orders", [message(), *bad, message()], timeout=5)
    assert [r.ok for r in results] == [True, False, False, False, True]
    assert all(isinstance(r.error, PublishRejected) for r in results[1:4])


async def test_publishes_that_arrive_together_share_transactions(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        commits = 0

        def count(_db: apsw.Connection, _name: str, _pages: int) -> int:
            nonlocal commits
            commits += 1
            return 0

        db = broker._publisher._db
        assert db is not None
        db.set_wal_hook(count)
        await asyncio.gather(*(publish(broker, "orders", [m]) for m in messages(100)))
    assert commits < 20


async def test_an_idle_subscription_does_not_take_turns(path: Path) -> None:
    """Looking needs no lock; a hundred idle subscriptions must not queue before a publisher."""
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        async with broker.subscribe("orders", prefetch=1) as subscription:
            assert await subscription.receive(1, 0) == []
            took = 0
            turn = broker._consumer._turn
            assert turn is not None
            original = type(turn).__enter__

            def counted(self: object) -> None:
                nonlocal took
                took += 1
                original(turn)

            type(turn).__enter__ = counted  # type: ignore[method-assign]
            try:
                started = time.monotonic()
                assert await subscription.receive(1, 2.3) == []
                assert time.monotonic() - started >= 2.2
            finally:
                type(turn).__enter__ = original  # type: ignore[method-assign]
    assert took <= 1, "one for moving the log when idle"


async def test_deliveries_are_equal_by_what_they_say(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        sent = message(b"a")
        await publish(broker, "orders", [sent])
        [got] = await drain(broker, "orders", 1, 1.0)
    assert got == Delivery(message=sent, queue="orders", attempt=1, receipt=None)


async def test_what_a_failed_settlement_left_on_loan_is_delivered_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller was told BrokerUnavailable and has let go of it; the loan must not last for ever."""
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        sent = messages(3)
        await publish(broker, "orders", sent)
        async with broker.subscribe("orders", prefetch=3) as subscription:
            held = await collect(subscription, 3, 1.0)

            def fail(*_: object) -> bool:
                raise apsw.IOError("unplugged")

            with monkeypatch.context() as patched:
                patched.setattr(consuming.Settle, "apply", fail)
                with pytest.raises(BrokerUnavailable, match="unplugged"):
                    await subscription.settle([Ack(d) for d in held])

            again = await collect(subscription, 3, 4.0)

            assert sorted(ids(again)) == sorted(ids(sent))
            assert {d.attempt for d in again} == {1}
            assert await subscription.settle([Ack(d) for d in again]) == []


async def test_a_trickle_does_not_cost_a_transaction_per_message(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    apply = consuming.Lease.apply

    def counted(self: consuming.Lease, tx: Transaction) -> consuming.Lent:
        nonlocal looks
        looks += 1
        return apply(self, tx)

    monkeypatch.setattr(consuming.Lease, "apply", counted)
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        async with broker.subscribe("orders", prefetch=200) as subscription:
            receiving = asyncio.create_task(subscription.receive(200, 30))
            started = time.monotonic()
            for m in messages(200):
                await publish(broker, "orders", [m])
            took = time.monotonic() - started
            assert len(await receiving) == 200
    # One look per 5 ms at most, however many messages came.
    assert looks <= took / 0.005 + 3


async def test_a_receive_on_a_held_file_ends_soon_and_says_why(path: Path) -> None:
    async with SQLiteBroker.open(path, SETTINGS) as broker:
        await broker.declare("orders")
        await publish(broker, "orders", [message()])
        async with broker.subscribe("orders", prefetch=1) as subscription:
            turn = Turn(path.with_name("queue.db.run"))
            await asyncio.to_thread(turn.__enter__)
            started = time.monotonic()
            with pytest.raises(BrokerUnavailable, match="no turn to take"):
                await subscription.receive(1, 0)
            assert time.monotonic() - started < 4
            turn.__exit__(None, None, None)
            turn.close()
            assert len(await subscription.receive(1, 5)) == 1, "what the look found late is not lost"
