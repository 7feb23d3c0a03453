"""Token buckets: what is taken comes back with time, and a debt is paid first."""

from __future__ import annotations

import pytest

from gateway.quotas import Quota


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_batch_gets_what_is_left_and_its_bytes_are_charged_afterwards() -> None:
    clock = Clock()
    quota = Quota(rate=10, burst=20, bytes_per_second=1000, clock=clock)

    assert quota.take_some(15) == 15
    assert quota.take_some(15) == 5
    assert quota.take_some(1) == 0
    assert quota.retry_after(5) == pytest.approx(0.5)
    quota.charge(3000)
    clock.now += 1.0
    assert quota.take_some(5) == 0, "the bytes are in debt for two seconds"
    assert quota.used_up == ["bytes"]
    clock.now += 1.5
    assert quota.take_some(50) == 20


def test_a_pause_fills_the_bucket_and_no_more() -> None:
    clock = Clock()
    quota = Quota(rate=10, clock=clock)
    clock.now += 3600
    assert quota.take_some(100) == 10


def test_a_rate_below_one_still_lets_one_message_through() -> None:
    clock = Clock()
    quota = Quota(rate=0.5, clock=clock)

    assert quota.take(1)
    assert not quota.take(1)
    clock.now += 2
    assert quota.take(1)


def test_other_limits_count_from_now_on() -> None:
    clock = Clock()
    quota = Quota(rate=10, clock=clock)
    assert quota.take_some(10) == 10
    quota.limit(rate=100, burst=None, bytes_per_second=None)
    assert quota.take_some(1) == 0
    clock.now += 0.5
    assert quota.take_some(100) == 50


def test_nothing_is_told_of_a_quota_without_limits() -> None:
    assert Quota().headers() == []
    assert Quota().take_some(1000) == 1000


def test_what_was_told_is_told_again_when_it_is_old_or_far_from_what_is_so() -> None:
    clock = Clock()
    quota = Quota(rate=1000, burst=1000, bytes_per_second=1_000_000, clock=clock)
    assert quota.to_tell(202), "never told before"
    assert not quota.to_tell(202)
    assert quota.to_tell(429), "a refusal always says it"
    clock.now += 0.02
    assert quota.to_tell(200), "old, although nothing was taken since"
    assert quota.take_whole(9_000)
    assert not quota.to_tell(202)
    assert quota.take_whole(2_000)
    assert quota.to_tell(202), "more than a hundredth of the bytes is gone"


def test_a_whole_message_is_taken_with_its_bytes_or_not_at_all() -> None:
    clock = Clock()
    quota = Quota(rate=2, burst=2, bytes_per_second=100, clock=clock)
    assert quota.take_whole(150)
    assert not quota.take_whole(1), "the bytes are in debt"
    clock.now += 0.6
    assert quota.take_whole(1)
    assert quota.take_some(9) == 1, "the refused one took nothing"
