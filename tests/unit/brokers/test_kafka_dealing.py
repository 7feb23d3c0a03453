"""Partitions: dealt evenly, kept where messages are in hand, and handed over when they are not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.brokers.kafka.assignor import Claims, Partition, deal

TOPICS = {"orders": range(12), "orders.retry-1s": range(12)}
ALL = [(t, p) for t in TOPICS for p in TOPICS[t]]


def owners(dealt: dict[str, list[Partition]]) -> dict[Partition, str]:
    return {tp: m for m, own in dealt.items() for tp in own}


@st.composite
def groups(draw: st.DrawFn) -> dict[str, Claims]:
    """Members of two generations, claims of the newest one disjoint as they must be."""
    members = [f"m{i}" for i in range(draw(st.integers(1, 6)))]
    generations = {m: draw(st.sampled_from((6, 7))) for m in members}
    claims: dict[str, dict[Partition, bool]] = {m: {} for m in members}
    for tp in ALL:
        who = draw(st.sampled_from([None, *members]))
        if who is not None:
            claims[who][tp] = draw(st.booleans())
    return {m: (generations[m], claims[m]) for m in members}


@given(groups())
def test_every_partition_is_dealt_once(claims: dict[str, Claims]) -> None:
    dealt, _ = deal(TOPICS, claims)
    assert sorted(tp for own in dealt.values() for tp in own) == sorted(ALL)


@given(groups())
def test_what_is_in_hand_stays_where_it_is(claims: dict[str, Claims]) -> None:
    newest = max(generation for generation, _ in claims.values())
    who = owners(deal(TOPICS, claims)[0])
    for m, (generation, own) in claims.items():
        if generation == newest:
            assert all(who[tp] == m for tp, in_hand in own.items() if in_hand)


@given(groups())
def test_without_what_must_be_given_up_the_shares_are_even(claims: dict[str, Claims]) -> None:
    dealt, surplus = deal(TOPICS, claims)
    for topic in TOPICS:
        keep = {m: [tp for tp in own if tp[0] == topic and tp not in surplus[m]] for m, own in dealt.items()}
        assert max(len(own) for own in keep.values()) <= -(-12 // len(claims))


@given(groups())
def test_a_second_deal_after_the_handover_is_even_and_moves_nothing_more(claims: dict[str, Claims]) -> None:
    dealt, surplus = deal(TOPICS, claims)
    idle = {m: (8, {tp: tp not in surplus[m] for tp in own}) for m, own in dealt.items()}
    again, rest = deal(TOPICS, idle)
    assert not any(rest.values())
    for topic in TOPICS:
        counts = [sum(t == topic for t, _ in own) for own in again.values()]
        assert max(counts) - min(counts) <= 1
    still, _ = deal(TOPICS, {m: (9, dict.fromkeys(own, False)) for m, own in again.items()})
    assert owners(still) == owners(again)


def test_claims_of_an_older_generation_are_void() -> None:
    """Somebody else may have read the partition since."""
    dealt, _ = deal({"orders": [0]}, {"late": (3, {("orders", 0): True}), "now": (5, {("orders", 0): True})})
    assert dealt == {"late": [], "now": [("orders", 0)]}
