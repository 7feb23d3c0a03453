"""No call of the sink holds a key twice, and what is behind a failure goes back: also across batches."""

from __future__ import annotations

import random
from collections import deque
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from consumers.waves import Holds, Waves
from forebay.brokers.api import Ack, DeadLetter, Delivery, Failure, Release, Retry, Settlement
from forebay.message import Message

FAILURE = Failure(reason="no", error_class="E")


def delivery(key: str | None, n: int) -> Delivery:
    message = Message(id=f"{key}{n}", body=b"", accepted_at=datetime.now(UTC), key=key)
    return Delivery(message=message, queue="orders", attempt=1, receipt=n)


def batch(keys: str) -> list[Delivery]:
    """One delivery per letter; "-" has no key."""
    return [delivery(None if key == "-" else key, n) for n, key in enumerate(keys)]


def numbers(of: list[Delivery]) -> list[int]:
    return [place(d) for d in of]


def place(d: Delivery) -> int:
    assert isinstance(d.receipt, int)
    return d.receipt


def test_each_wave_has_the_next_message_of_each_key() -> None:
    waves = Waves(batch("aab-aba-"))
    assert [numbers(waves.next()) for _ in range(5)] == [[0, 2, 3, 7], [1, 5], [4], [6], []]


def test_after_a_retry_or_a_release_the_rest_of_the_key_is_released() -> None:
    sent = batch("aabbccc")
    waves = Waves(sent)
    waves.next()
    waves.decided([Retry(sent[0], 1.0, FAILURE), Release(sent[2]), DeadLetter(sent[4], FAILURE)])
    assert numbers(waves.next()) == [5]
    waves.decided([Ack(sent[5])])
    assert numbers(waves.next()) == [6]
    assert waves.next() == []
    assert waves.rest() == [Release(sent[1]), Release(sent[3])]
    assert waves.rest() == []


def test_what_was_received_before_a_failure_was_settled_goes_back_too() -> None:
    holds = Holds()
    one, two, three = holds.returned(), holds.returned(), holds.returned()
    failed = [Retry(delivery("a", 0), 1.0, FAILURE)]
    assert holds.split([delivery("a", 0)], [one])[1] == []
    holds.decided(failed)
    live, back = holds.split([delivery("a", 1), delivery("b", 2)], [two, two])
    assert (numbers(live), [s.delivery.receipt for s in back]) == ([2], [1])
    holds.decided(back)
    holds.settling(failed)
    holds.settling(back)
    assert numbers(holds.split([delivery("a", 3)], [three])[0]) == []


def test_what_is_received_after_the_settlement_is_written() -> None:
    holds = Holds()
    holds.split([delivery("a", 0)], [holds.returned()])
    failed = [Retry(delivery("a", 0), 1.0, FAILURE)]
    holds.decided(failed)
    holds.settling(failed)
    assert numbers(holds.split([delivery("a", 0)], [holds.returned()])[0]) == [0]


def test_the_failed_message_behind_one_that_goes_back_goes_back_with_it() -> None:
    """A batch may be made of two calls of `receive`, one on each side of the settlement."""
    holds = Holds()
    holds.split([delivery("a", 0)], [holds.returned()])
    before = holds.returned()
    failed = [Retry(delivery("a", 0), 0.0, FAILURE)]
    holds.decided(failed)
    holds.settling(failed)
    calls = [before, holds.returned(), holds.returned()]
    mixed = [delivery("a", 1), delivery("a", 0), delivery("b", 2)]
    assert numbers(holds.split(mixed, calls)[0]) == [2]


@given(keys=st.lists(st.sampled_from("abc-"), min_size=1, max_size=60), seed=st.integers(0, 2**20))
def test_random_failures_never_turn_a_key_round(keys: list[str], seed: int) -> None:
    """
    The three steps of a worker in any interleaving, on a queue that keeps the contract and no more.
    """
    rng = random.Random(seed)
    waiting = [delivery(None if key == "-" else key, n) for n, key in enumerate(keys)]
    failed: set[str] = set()
    holds = Holds()
    received: deque[tuple[list[Delivery], list[int]]] = deque()
    decided: deque[list[Settlement]] = deque()
    receiving: tuple[list[Delivery], list[int]] = ([], [])
    on_loan: list[Delivery] = []
    draining: set[str] = set()
    effects: list[Delivery] = []
    failures = 0

    def lend(count: int) -> list[Delivery]:
        out: list[Delivery] = []
        for d in [*waiting]:
            heads = [x for x in waiting if x.message.id in failed and x.message.key == d.message.key]
            free = d.message.key not in draining and all(place(d) <= place(head) for head in heads)
            if len(out) < count and free:
                out.append(d)
                on_loan.append(d)
                waiting.remove(d)
        return out

    def settle(settlements: list[Settlement]) -> None:
        for s in settlements:
            on_loan.remove(s.delivery)
            if isinstance(s, (Retry, Release)) and s.delivery.message.key is not None:
                draining.add(s.delivery.message.key)
            if isinstance(s, Retry):
                failed.add(s.delivery.message.id)
            elif isinstance(s, Ack):
                failed.discard(s.delivery.message.id)
        waiting.extend(s.delivery for s in settlements if not isinstance(s, Ack))
        waiting.sort(key=place)
        draining.intersection_update([d.message.key for d in on_loan])

    for _ in range(100_000):
        if len(effects) == len(keys) and not decided:
            break
        step = rng.choice(["receive", "receive", "write", "settle"])
        if step == "receive":
            lent = lend(rng.randint(1, 6))
            receiving[0].extend(lent)
            receiving[1].extend([holds.returned()] * len(lent))
            if receiving[0] and rng.random() < 0.6:
                received.append(receiving)
                receiving = ([], [])
        elif step == "write" and received:
            live, out = holds.split(*received.popleft())
            waves = Waves(live)
            while wave := waves.next():
                settlements: list[Settlement] = []
                for d in wave:
                    if failures < 40 and rng.random() < 0.2:
                        failures += 1
                        settlements.append(Retry(d, 0.0, FAILURE) if rng.random() < 0.5 else Release(d))
                    else:
                        effects.append(d)
                        settlements.append(Ack(d))
                waves.decided(settlements)
                out += settlements
            out += waves.rest()
            holds.decided(out)
            decided.append(out)
        elif step == "settle" and decided:
            holds.settling(decided[0])
            settle(decided.popleft())
    assert sorted(numbers(effects)) == list(range(len(keys)))
    for key in "abc":
        of_key = numbers([d for d in effects if d.message.key == key])
        assert of_key == sorted(of_key)
