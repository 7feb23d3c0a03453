"""What waits behind a failed message of its key in one partition, and what a commit says of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from forebay.brokers.kafka import parking
from forebay.brokers.kafka.parking import Failed, Parking
from forebay.brokers.kafka.partition import Epoch
from forebay.brokers.kafka.records import Incoming
from forebay.brokers.kafka.tracker import MAX_FAILED, MAX_METADATA, CommitTracker, failed_above
from forebay.brokers.wire import Decoded
from forebay.message import Message

NOW = 1_000_000_000


def record(offset: int, key: str | None) -> Incoming:
    message = Message(id=str(offset), body=b"", accepted_at=datetime.now(UTC), key=key)
    return Incoming(decoded=Decoded(message=message, attempt=1, deferrals=0, death=None), due=0, hop=0)


def epoch_of(keys: str, *, metadata: str = "", position: int = 0, ordered: bool = True) -> Epoch:
    """An epoch that has read one record per letter; "-" has no key."""
    failed = failed_above(position, metadata)
    tracker = CommitTracker(position, metadata)
    epoch = Epoch("orders", 0, tracker, Parking(ordered=ordered, failed=failed))
    for offset, key in enumerate(keys):
        epoch.received(offset, record(offset, None if key == "-" else key))
    return epoch


@dataclass
class Borrowed:
    """What a test has on loan of an epoch."""

    epoch: Epoch
    held: dict[int, Incoming] = field(default_factory=dict)

    def take(self, count: int = 100, now: int = NOW) -> list[int]:
        entries = self.epoch.lendable(count, now)
        for offset, incoming in entries:
            self.epoch.lend(offset, incoming, None)  # type: ignore[arg-type]  # the delivery is not looked at
            self.held[offset] = incoming
        self.epoch.drop(entries)
        return [offset for offset, _ in entries]

    def attempt(self, offset: int) -> int:
        return self.held[offset].decoded.attempt

    def fail(self, offset: int, due: int = 0) -> None:
        del self.epoch.lent[offset]
        self.epoch.fail(offset, self.held.pop(offset), due)

    def release(self, offset: int) -> None:
        del self.epoch.lent[offset]
        self.epoch.put(offset, self.held.pop(offset))

    def finish(self, offset: int) -> None:
        del self.epoch.lent[offset]
        self.epoch.finish(offset, self.held.pop(offset))


def test_behind_a_failed_message_its_key_waits_and_the_others_go_on() -> None:
    mine = Borrowed(epoch_of("aab-aa"))
    assert mine.take(1) == [0]
    mine.fail(0, due=NOW + 5)
    assert mine.take() == [2, 3]
    assert mine.take(now=NOW + 5) == [0]
    assert mine.attempt(0) == 2
    assert mine.take() == []
    mine.finish(0)
    assert mine.take() == [1, 4, 5]


def test_a_head_that_is_handed_back_comes_first_again_and_is_not_counted() -> None:
    mine = Borrowed(epoch_of("aa"))
    mine.take(1)
    mine.fail(0)
    assert mine.take() == [0]
    mine.release(0)
    assert mine.take() == [0]
    assert mine.attempt(0) == 2


def test_two_failed_messages_of_a_key_come_one_after_the_other() -> None:
    mine = Borrowed(epoch_of("aaa"))
    assert mine.take() == [0, 1, 2]
    mine.fail(1)
    mine.fail(0)
    mine.release(2)
    for offset in (0, 1):
        assert mine.take() == [offset]
        assert mine.attempt(offset) == 2
        mine.finish(offset)
    assert mine.take() == [2]


def test_the_next_owner_knows_attempts_and_times_and_keeps_the_order() -> None:
    first = Borrowed(epoch_of("abab"))
    first.take(2)
    first.fail(0, due=NOW + 1)
    first.finish(1)
    position, metadata = first.epoch.progress
    assert position == 0
    heir = Borrowed(epoch_of("abab", metadata=metadata))
    assert heir.take() == [3], "0 is not due, 1 is done, 2 is behind 0"
    assert heir.take(now=NOW + 2_000_000) == [0]
    assert heir.attempt(0) == 2


def test_without_order_the_next_owner_lends_them_at_once_and_counted() -> None:
    first = Borrowed(epoch_of("aa"))
    first.take(1)
    first.fail(0, due=NOW + 10**9)
    heir = Borrowed(epoch_of("aa", metadata=first.epoch.progress[1], ordered=False))
    assert heir.take() == [0, 1]
    assert heir.attempt(0) == 2


def test_beyond_so_many_failed_messages_nothing_else_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MOST_HEADS", 2)
    mine = Borrowed(epoch_of("abcd"))
    mine.take(2)
    mine.fail(0, due=NOW + 5)
    mine.fail(1, due=NOW + 9)
    assert mine.take() == []
    assert mine.take(now=NOW + 5) == [0]
    mine.finish(0)
    assert mine.take() == [2, 3]


def test_beyond_so_many_set_aside_the_partition_is_not_read_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MOST_SET_ASIDE", 3)
    mine = Borrowed(epoch_of("aaaa"))
    mine.take(1)
    mine.fail(0)
    mine.epoch.lendable(10, NOW)
    assert mine.epoch.parking.crowded
    mine.take(1)
    mine.finish(0)
    assert not mine.epoch.parking.crowded


def test_what_a_commit_says_stays_within_what_kafka_takes() -> None:
    failed = {n * 1_000: Failed(12, (NOW + n) * 10**6) for n in range(500)}
    tracker = CommitTracker(0)
    for offset in range(20_000):
        tracker.receive(offset)
    for offset in range(1, 20_000, 2):
        tracker.finish(offset)
    text = tracker.metadata(failed)
    assert len(text) <= MAX_METADATA + MAX_FAILED + 10 < 4_096
    known = failed_above(0, text)
    assert len(known) >= parking.MOST_HEADS
    assert known == {o: failed[o] for o in sorted(failed)[: len(known)]}


@pytest.mark.parametrize("text", ["f2:", "f2:1,2;", "f2:;1.2", "f2:;x.1.1", "f3:1;1.1.1", "theirs"])
def test_a_text_that_is_not_ours_tells_of_no_failure(text: str) -> None:
    assert failed_above(0, text) == {}


@pytest.mark.parametrize("seed", range(30))
def test_random_failures_never_turn_a_key_round_and_lose_nothing(seed: int) -> None:
    """With a new owner now and then, who knows what the last commit said."""
    rng = random.Random(seed)
    keys = "".join(rng.choice("abc-") for _ in range(60))
    mine = Borrowed(epoch_of(keys))
    attempts = dict.fromkeys(range(60), 1)
    done: list[int] = []
    for step in range(5_000):
        if len(done) == 60:
            break
        if step % 97 == 0:
            position, text = mine.epoch.progress
            heir = epoch_of("", metadata=text, position=position)
            for offset in range(position, 60):
                heir.received(offset, record(offset, None if keys[offset] == "-" else keys[offset]))
            mine = Borrowed(heir)
        for offset in mine.take(rng.randint(1, 5), now=NOW * 1_000_000):
            assert mine.attempt(offset) == attempts[offset]
        if not mine.held:
            continue
        key = keys[rng.choice(sorted(mine.held))]
        first, *behind = sorted(o for o in mine.held if keys[o] == key)
        if key != "-" and rng.random() < 0.3:
            attempts[first] += 1
            mine.fail(first, due=rng.choice([0, NOW]))
            for offset in behind:
                mine.release(offset)
        else:
            mine.finish(first)
            done.append(first)
    assert sorted(done) == list(range(60))
    for key in "abc":
        of_key = [o for o in done if keys[o] == key]
        assert of_key == sorted(of_key)
