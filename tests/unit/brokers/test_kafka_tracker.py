"""The commit position never passes what is unfinished, and the next owner knows what is finished."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.brokers.kafka.tracker import MAX_METADATA, CommitTracker, finished_above

gaps = st.lists(st.integers(1, 4), min_size=1, max_size=60)
"""Distances between offsets: compaction and transaction markers leave holes."""


def offsets_of(distances: list[int]) -> list[int]:
    out, at = [], 9
    for distance in distances:
        at += distance
        out.append(at)
    return out


def test_finishing_later_ones_moves_nothing_until_the_first_is_finished() -> None:
    tracker = CommitTracker(3)
    for offset in (3, 4, 5):
        assert tracker.receive(offset)
    tracker.finish(4)
    tracker.finish(5)
    assert tracker.position == 3
    tracker.finish(3)
    assert tracker.position == 6


def test_an_offset_received_again_is_refused() -> None:
    tracker = CommitTracker(0)
    assert tracker.receive(0)
    assert not tracker.receive(0)
    assert tracker.next == 1


@given(gaps, st.randoms(use_true_random=False))
def test_the_position_never_passes_an_unfinished_offset(distances: list[int], rng: object) -> None:
    offsets = offsets_of(distances)
    tracker = CommitTracker(10)
    for offset in offsets:
        tracker.receive(offset)
    unfinished = set(offsets)
    order = offsets[:]
    rng.shuffle(order)  # type: ignore[attr-defined]  # a random.Random
    for offset in order:
        tracker.finish(offset)
        unfinished.discard(offset)
        assert tracker.position == min(unfinished, default=offsets[-1] + 1)


@given(gaps, st.data())
def test_the_next_owner_sees_exactly_what_was_not_finished(distances: list[int], data: st.DataObject) -> None:
    offsets = offsets_of(distances)
    tracker = CommitTracker(10)
    for offset in offsets:
        tracker.receive(offset)
    finished = data.draw(st.sets(st.sampled_from(offsets)))
    for offset in finished:
        tracker.finish(offset)

    heir = CommitTracker(tracker.position, tracker.metadata())
    again = [o for o in offsets if o >= tracker.position and heir.receive(o)]

    assert again == [o for o in offsets if o not in finished]
    assert heir.position == tracker.position


@given(gaps, st.data())
def test_an_heir_who_has_read_nothing_yet_forgets_nothing(distances: list[int], data: st.DataObject) -> None:
    """Three owners, the middle one for a moment: its commit still says what the first one finished."""
    offsets = offsets_of(distances)
    first = CommitTracker(10)
    for offset in offsets:
        first.receive(offset)
    finished = data.draw(st.sets(st.sampled_from(offsets)))
    for offset in finished:
        first.finish(offset)
    second = CommitTracker(first.position, first.metadata())
    for offset in offsets[: data.draw(st.integers(0, len(offsets)))]:
        second.receive(offset)

    third = CommitTracker(second.position, second.metadata())
    again = [o for o in offsets if o >= second.position and third.receive(o)]

    assert again == [o for o in offsets if o not in finished]


def test_metadata_stays_within_what_a_broker_takes_and_keeps_the_lowest() -> None:
    tracker = CommitTracker(0)
    for offset in range(10_000):
        tracker.receive(offset)
    for offset in range(1, 10_000, 2):
        tracker.finish(offset)
    assert tracker.crowded
    text = tracker.metadata()
    assert len(text) <= MAX_METADATA
    heir = CommitTracker(0, text)
    assert [heir.receive(o) for o in range(4)] == [True, False, True, False]
    assert 0 < finished_above(0, text) < 5_000


def test_metadata_of_others_says_nothing() -> None:
    assert (
        finished_above(5, "") == finished_above(5, "a consumer of ours") == finished_above(5, "f1:x+y") == 0
    )


def test_what_kafka_deleted_is_not_counted_as_finished_again() -> None:
    tracker = CommitTracker(10)
    for offset in range(10, 20):
        tracker.receive(offset)
    for offset in range(12, 20):
        tracker.finish(offset)
    assert finished_above(10, tracker.metadata()) == 8
    assert finished_above(10, tracker.metadata(), begin=18) == 2
    assert finished_above(10, tracker.metadata(), begin=20) == 0
