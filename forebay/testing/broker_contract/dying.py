"""Dead letters: they keep what they were, say why they rest, and can be sent back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from forebay.brokers.api import Ack, Broker, DeadLetter, Delivery, Failure, Release, Retry
from forebay.brokers.naming import dead_letter_queue
from forebay.errors import QueueFull
from forebay.ids import new_id
from forebay.testing.broker_contract.harness import (
    FAILURE,
    BrokerHarness,
    ContractTests,
    collect,
    drain,
    failed_attempts,
    fresh_name,
    ids,
    is_empty,
    message,
    messages,
    publish,
    until_depth,
)


async def kill_one(
    broker: Broker, queue: str, within: float, failure: Failure, rename: str | None = None
) -> None:
    async with broker.subscribe(queue, prefetch=1) as subscription:
        [delivery] = await subscription.receive(1, within)
        assert await subscription.settle([DeadLetter(delivery, failure, rename)]) == []


class DeadLetterContract(ContractTests):
    async def test_a_dead_letter_keeps_everything_and_says_why(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = message(b"\x00poison", key="k", headers={"a": "\u00fc"}, content_type="text/plain")
        await publish(broker, queue, [sent])
        async with broker.subscribe(queue, prefetch=1) as subscription:
            [delivery] = await subscription.receive(1, harness.patience)
            await subscription.settle([Retry(delivery, 0, FAILURE)])
            [delivery] = await subscription.receive(1, harness.latest(0, broker.capabilities) + 1)
            before = datetime.now(UTC)
            await subscription.settle([DeadLetter(delivery, FAILURE)])

        [dead] = await drain(broker, dead_letter_queue(queue), 1, harness.patience)

        assert dead.message == sent
        assert (dead.queue, dead.attempt) == (dead_letter_queue(queue), 1)
        death = dead.death
        assert death is not None
        assert death.failure == FAILURE
        assert (death.queue, death.attempts, death.original_id) == (queue, 2, None)
        tolerance = timedelta(seconds=1)
        assert before - tolerance <= death.died_at <= datetime.now(UTC) + tolerance

    async def test_a_dead_letter_can_rest_under_a_new_id(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = message(b"other bytes")
        await publish(broker, queue, [sent])
        renamed = new_id()
        await kill_one(broker, queue, harness.patience, FAILURE, renamed)

        [dead] = await drain(broker, dead_letter_queue(queue), 1, harness.patience)

        assert (dead.message.id, dead.message.body) == (renamed, sent.body)
        assert dead.death is not None
        assert dead.death.original_id == sent.id

    async def test_a_dead_letter_left_unsettled_keeps_its_death(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message()])
        await kill_one(broker, queue, harness.patience, FAILURE)
        within = harness.latest(0, broker.capabilities) + harness.patience
        dead = dead_letter_queue(queue)
        async with broker.subscribe(dead, prefetch=1) as subscription:
            [first] = await subscription.receive(1, within)
            await subscription.settle([Release(first)])
            [second] = await subscription.receive(1, within)
            await subscription.settle([Retry(second, 0, FAILURE)])
        async with broker.subscribe(dead, prefetch=1) as subscription:
            [third] = await subscription.receive(1, within)
        assert first.death == second.death == third.death
        assert third.death is not None
        assert third.attempt == 2

    async def test_what_failed_before_goes_with_a_message_into_its_dead_letter(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """Through retries, a release and a stop; the dead letter begins anew and keeps it in its death."""
        tried = failed_attempts(5)
        within = harness.latest(0, broker.capabilities) + harness.patience
        await publish(broker, queue, [message()])
        async with broker.subscribe(queue, prefetch=1) as subscription:
            [delivery] = await subscription.receive(1, within)
            assert delivery.history == ()
            await subscription.settle([Retry(delivery, 0, FAILURE, tried[:2])])
            [delivery] = await subscription.receive(1, within)
            assert delivery.history == tried[:2]
            await subscription.settle([Retry(delivery, 0, FAILURE, tried[:4])])
            [delivery] = await subscription.receive(1, within)
            assert delivery.history == tried[:4]
            await subscription.settle([Release(delivery)])
            [delivery] = await subscription.receive(1, within)
            assert (delivery.history, delivery.attempt) == (tried[:4], 3)
        async with broker.subscribe(queue, prefetch=1) as subscription:
            [delivery] = await subscription.receive(1, within)
            assert delivery.history == tried[:4]
            await subscription.settle([DeadLetter(delivery, FAILURE, history=tried)])

        dead_queue = dead_letter_queue(queue)
        async with broker.subscribe(dead_queue, prefetch=1) as subscription:
            [dead] = await subscription.receive(1, within)
            assert dead.history == ()
            assert dead.death is not None
            assert dead.death.history == tried
            await subscription.settle([Retry(dead, 0, FAILURE, tried[:1])])
        [dead] = await drain(broker, dead_queue, 1, within)
        assert dead.history == tried[:1]
        assert dead.death is not None
        assert dead.death.history == tried

    async def test_what_is_redriven_begins_anew(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        within = harness.latest(0, broker.capabilities) + harness.patience
        await publish(broker, queue, [message()])
        async with broker.subscribe(queue, prefetch=1) as subscription:
            [delivery] = await subscription.receive(1, within)
            await subscription.settle([DeadLetter(delivery, FAILURE, history=failed_attempts(1))])
        [dead] = await drain(broker, dead_letter_queue(queue), 1, within)
        await publish(broker, queue, [dead.message])

        [again] = await drain(broker, queue, 1, within)

        assert (again.attempt, again.history, again.death) == (1, (), None)

    async def test_the_largest_message_that_is_taken_goes_all_the_way(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """
        Retried, dead-lettered and sent back, with all that is told of each failure.

        What is taken with the longest headers leaves room for what is added on the way, or
        that is made shorter; it is not lost, and holds up nobody.
        """
        body = b"x" * broker.capabilities.max_body_bytes
        probe = fresh_name()
        await broker.declare(probe)
        fits, too_long = 0, 300_000
        while too_long - fits > 1:
            length = (fits + too_long) // 2
            [result] = await broker.publish(probe, [message(body, headers={"a": "v" * length})], timeout=10)
            fits, too_long = (length, too_long) if result.ok else (fits, length)
            if isinstance(result.error, QueueFull):
                too_long = fits + 1
        within = harness.latest(0, broker.capabilities) + 2 * harness.patience
        sent = message(body, headers={"a": "v" * fits})
        failure = Failure(
            reason="\u20ac" * 500, error_class="E" * 100, destination="d" * 200, detail="\U0001f41f" * 2_000
        )
        one = replace(failed_attempts(1)[0], reason="\u20ac" * 200, error_class="E" * 100)
        history = tuple(replace(one, number=n) for n in range(1, 6))
        await publish(broker, queue, [sent])
        async with broker.subscribe(queue, prefetch=5) as subscription:
            for attempt in range(1, 13):
                [delivery] = await subscription.receive(1, within)
                assert (delivery.message, delivery.attempt) == (sent, attempt)
                assert await subscription.settle([Retry(delivery, 0, failure, history)]) == []
            neighbour = message(b"small")
            await publish(broker, queue, [neighbour])
            held = await collect(subscription, 2, within)
            [delivery] = [d for d in held if d.message.id == sent.id]
            [other] = [d for d in held if d.message.id == neighbour.id]
            assert (
                await subscription.settle([DeadLetter(delivery, failure, history=history), Ack(other)]) == []
            )
        async with broker.subscribe(dead_letter_queue(queue), prefetch=1) as subscription:
            for attempt in (1, 2):
                [dead] = await subscription.receive(1, within)
                assert (dead.message, dead.attempt) == (sent, attempt)
                assert dead.death is not None
                assert dead.death.failure.reason.startswith("\u20ac" * 60)
                assert dead.death.attempts == 13
                await subscription.settle([Retry(dead, 0, failure, history)])
            [dead] = await subscription.receive(1, within)
            await publish(broker, queue, [dead.message])
            await subscription.settle([Ack(dead)])

        [back] = await drain(broker, queue, 1, within)

        assert (back.message, back.attempt) == (sent, 1)

    async def test_a_very_long_detail_does_not_keep_a_message_from_its_rest(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message()])
        failure = Failure(reason="r", error_class="E", detail="x" * 100_000)
        await kill_one(broker, queue, harness.patience, failure)
        [dead] = await drain(broker, dead_letter_queue(queue), 1, harness.patience)
        assert dead.death is not None
        assert dead.death.failure.detail.startswith("xxxx")

    async def test_a_flood_of_what_is_not_ours_rests_untouched_and_holds_up_nothing(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        before, after = messages(5), messages(5)
        foreign = [b"\xff\x00 not ours %d" % n for n in range(200)]
        await publish(broker, queue, before)
        await harness.write_foreign(queue, foreign)
        await publish(broker, queue, after)
        got: list[Delivery] = []
        async with broker.subscribe(queue, prefetch=50) as subscription:
            for _ in range(10):
                [delivery] = await collect(subscription, 1, 6 * harness.patience)
                assert await subscription.settle([Ack(delivery)]) == []
                got.append(delivery)
            assert await subscription.receive(1, harness.look) == []
            dead = await drain(broker, dead_letter_queue(queue), 200, 6 * harness.patience)
        assert sorted(ids(got)) == sorted(ids([*before, *after]))
        assert {d.attempt for d in got} == {1}
        assert sorted(d.message.body for d in dead) == sorted(foreign)
        for letter in dead:
            assert letter.death is not None
            assert (letter.death.queue, letter.death.failure.error_class) == (queue, "MessageDecodeError")
            assert letter.death.failure.reason
        assert await is_empty(broker, dead_letter_queue(queue))

    async def test_dead_letters_do_not_come_back_by_themselves(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = messages(2)
        await publish(broker, queue, sent)
        async with broker.subscribe(queue, prefetch=10) as subscription:
            got = await collect(subscription, 2, harness.patience)
            await subscription.settle([DeadLetter(got[0], FAILURE), Ack(got[1])])
            assert await subscription.receive(1, 0.3) == []

    async def test_a_dead_letter_can_be_sent_back(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        sent = message(b"mended")
        await publish(broker, queue, [sent])
        await kill_one(broker, queue, harness.patience, FAILURE)
        async with broker.subscribe(dead_letter_queue(queue), prefetch=1) as subscription:
            [dead] = await subscription.receive(1, harness.patience)
            assert dead.death is not None
            await publish(broker, dead.death.queue, [dead.message])
            await subscription.settle([Ack(dead)])

        [back] = await drain(broker, queue, 1, harness.patience)

        assert (ids([back]), back.attempt, back.death) == ([sent.id], 1, None)

    async def test_a_dead_letter_cannot_die_again(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        """It has nowhere to go; whoever asks for that has a bug, and the message stays."""
        await publish(broker, queue, [message()])
        await kill_one(broker, queue, harness.patience, FAILURE)
        async with broker.subscribe(dead_letter_queue(queue), prefetch=1) as subscription:
            [dead] = await subscription.receive(1, harness.patience)
            with pytest.raises(ValueError, match="dead"):
                await subscription.settle([DeadLetter(dead, FAILURE)])
            assert await subscription.settle([Ack(dead)]) == []

    async def test_depth_counts_what_has_died_in_the_dead_letter_queue(
        self, harness: BrokerHarness, broker: Broker, queue: str
    ) -> None:
        await publish(broker, queue, [message(b"12345")])
        await kill_one(broker, queue, harness.patience, FAILURE)
        await until_depth(broker, queue, harness.lag, lambda d: d.waiting in (0, None))
        await until_depth(
            broker,
            dead_letter_queue(queue),
            harness.lag,
            lambda d: d.waiting in (1, None) and d.bytes in (5, None),
        )
