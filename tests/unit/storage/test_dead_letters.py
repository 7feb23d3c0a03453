"""Dead letters are kept whole, once each, and are found, grouped and marked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from forebay import ids
from forebay.storage.database import Database
from forebay.storage.dead_letters import (
    DeadLetterFilter,
    DeadLetterRecord,
    DeadLetterStore,
    fingerprint_of,
)
from forebay.storage.messages import MessageStore
from tests.unit.storage.deliveries import ACCEPTED, dead, delivery

EVERYTHING = DeadLetterFilter()


@pytest.fixture
def store(database: Database) -> DeadLetterStore:
    return DeadLetterStore(database)


def test_every_field_is_kept(store: DeadLetterStore) -> None:
    original = ids.new_id()
    sent = dead(b"\x00\xff", original_id=original)
    sent.message.key, sent.message.headers = "k\x00", {"a": "b\ud800"}

    store.archive([sent])

    assert store.get(sent.message.id) == [
        DeadLetterRecord(
            id=sent.message.id,
            destination="database",
            queue="orders",
            key="k\ufffd",
            content_type="application/json",
            headers={"a": "b\ufffd"},
            body=b"\x00\xff",
            accepted_at=ACCEPTED,
            attempts=12,
            reason="23514 CheckViolation, constraint positive",
            error_class="CheckViolation",
            fingerprint=fingerprint_of(
                "CheckViolation", "database", "23514 CheckViolation, constraint positive"
            ),
            detail="row (1)",
            died_at=ACCEPTED + timedelta(hours=1),
            status="dead",
            original_id=original,
        )
    ]
    assert store.get(original) == store.get(sent.message.id)


def test_what_another_program_put_there_is_kept_too(store: DeadLetterStore) -> None:
    store.archive([delivery(b"x", queue="orders.dead")])
    [record] = store.list(EVERYTHING, limit=10, bodies=True)
    assert (record.queue, record.body, record.error_class) == ("orders", b"x", "unknown")


def test_the_same_death_twice_is_one_record_and_keeps_what_was_done_to_it(store: DeadLetterStore) -> None:
    sent = dead()
    store.archive([sent, sent])
    store.mark(store.get(sent.message.id), status="discarded", expected="dead")

    store.archive([sent])

    assert [r.status for r in store.get(sent.message.id)] == ["discarded"]


def test_a_later_death_opens_the_record_again(store: DeadLetterStore) -> None:
    sent = dead()
    store.archive([sent])
    store.mark(store.get(sent.message.id), status="redriving", expected="dead")

    store.archive([dead(id=sent.message.id, reason="again", minute=5)])

    [record] = store.get(sent.message.id)
    assert (record.status, record.reason) == ("dead", "again")


def test_a_redriven_one_that_dies_where_the_clock_is_behind_is_dead_again(store: DeadLetterStore) -> None:
    first = dead(minute=5)
    store.archive([first])
    store.mark(store.get(first.message.id), status="redriving", expected="dead")

    store.archive([first])
    assert store.get(first.message.id)[0].status == "redriving"
    store.archive([dead(id=first.message.id, minute=4)])
    assert store.get(first.message.id)[0].status == "dead"


def test_two_destinations_have_a_record_each(store: DeadLetterStore) -> None:
    sent = dead()
    store.archive([sent, dead(id=sent.message.id, destination="handler:orders")])
    assert {r.destination for r in store.get(sent.message.id)} == {"database", "handler:orders"}


def test_other_bytes_under_a_dead_id_get_an_id_of_their_own(store: DeadLetterStore) -> None:
    first = dead(b"a")
    other = dead(b"b", id=first.message.id, minute=1)

    store.archive([first, other])
    store.archive([other])

    records = {r.id: r for r in store.get(first.message.id)}
    renamed = ids.conflict_id(first.message.id, b"b")
    assert {i: (r.body, r.original_id) for i, r in records.items()} == {
        first.message.id: (b"a", None),
        renamed: (b"b", first.message.id),
    }


def test_another_death_of_a_conflict_that_was_redriven_and_stored_is_resolved(
    database: Database, store: DeadLetterStore
) -> None:
    stored, other = delivery(b"1"), b"2"
    moved = ids.conflict_id(stored.message.id, other)
    MessageStore(database).write([stored, delivery(other, id=moved)])

    store.archive([dead(other, id=stored.message.id, error_class="expired")])

    assert [(r.id, r.status) for r in store.get(stored.message.id)] == [(moved, "resolved")]


def test_a_dead_letter_that_is_stored_is_resolved_and_one_with_other_bytes_is_not(
    database: Database, store: DeadLetterStore
) -> None:
    same, other = delivery(b"a"), delivery(b"b")
    MessageStore(database).write([same, other])

    store.archive([dead(b"a", id=same.message.id), dead(b"x", id=other.message.id)])

    assert [r.status for r in store.get(same.message.id)] == ["resolved"]
    [renamed] = store.get(other.message.id)
    assert (renamed.id, renamed.status) == (ids.conflict_id(other.message.id, b"x"), "dead")


def test_filters_and_counts_agree(store: DeadLetterStore) -> None:
    letters = [
        dead(minute=0),
        dead(minute=1, error_class="DataError", reason="22003 too large"),
        dead(minute=2, queue="clicks"),
    ]
    store.archive(letters)
    store.mark(store.get(letters[0].message.id), status="discarded", expected="dead")
    wanted = {
        DeadLetterFilter(): [0, 1, 2],
        DeadLetterFilter(queue="orders"): [0, 1],
        DeadLetterFilter(status="dead"): [1, 2],
        DeadLetterFilter(error_class="DataError"): [1],
        DeadLetterFilter(fingerprint=fingerprint_of("DataError", "database", "22003 too large")): [1],
        DeadLetterFilter(ids=(letters[2].message.id,)): [2],
        DeadLetterFilter(ids=()): [],
        DeadLetterFilter(died_after=ACCEPTED + timedelta(hours=1)): [1, 2],
        DeadLetterFilter(died_before=ACCEPTED + timedelta(hours=1, minutes=2)): [0, 1],
        DeadLetterFilter(queue="orders", status="dead"): [1],
    }
    for which, expected in wanted.items():
        assert [r.id for r in store.list(which, limit=10)] == [letters[n].message.id for n in expected]
        assert store.count(which) == len(expected)


@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_cover_everything_once_though_times_are_equal(
    store: DeadLetterStore, newest_first: bool
) -> None:
    store.archive([dead(minute=n // 4) for n in range(23)])
    seen: list[DeadLetterRecord] = []
    while page := store.list(
        EVERYTHING, limit=5, after=seen[-1] if seen else None, newest_first=newest_first
    ):
        seen += page
        store.mark(page, status="discarded", expected="dead")

    assert len(seen) == len({r.id for r in seen}) == 23
    assert [r.died_at for r in seen] == sorted((r.died_at for r in seen), reverse=newest_first)
    assert all(r.body == b"" for r in seen)


def test_marking_needs_the_expected_status(store: DeadLetterStore) -> None:
    store.archive([dead() for _ in range(3)])
    records = store.list(EVERYTHING, limit=10)
    assert store.mark(records[:1], status="discarded", expected="dead") == 1

    assert store.mark(records, status="redriving", expected="dead") == 2
    assert store.mark(records, status="resolved", expected=("redriving", "discarded")) == 3
    assert store.mark([], status="dead", expected="dead") == 0


def test_two_that_take_the_same_records_share_them_out(
    store: DeadLetterStore, another: Callable[[], Database]
) -> None:
    store.archive([dead() for _ in range(50)])
    records = store.list(EVERYTHING, limit=100)
    together = threading.Barrier(2)

    def take(where: DeadLetterStore, what: list[DeadLetterRecord]) -> list[DeadLetterRecord]:
        together.wait(10)
        return where.take(what, status="redriving", expected="dead")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(take, store, records)
        second = threads.submit(take, DeadLetterStore(another()), records[::-1])
        taken = [r.id for r in first.result(30) + second.result(30)]

    assert sorted(taken) == sorted(r.id for r in records)


def test_groups_put_the_most_frequent_first(store: DeadLetterStore) -> None:
    store.archive(
        [dead(reason=f"row {n} is bad", minute=n) for n in range(3)] + [dead(error_class="Other", minute=9)]
    )

    frequent, rare = store.groups(EVERYTHING)

    assert (frequent.count, frequent.error_class, frequent.destination) == (3, "CheckViolation", "database")
    assert frequent.last_died_at - frequent.first_died_at == timedelta(minutes=2)
    assert (rare.count, rare.error_class) == (1, "Other")


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("row 17 of 20", "row 3 of 99", True),
        ("id 01a20791-c2d8-71d8-abef-c1ea24b3fa80", "id 5f0c2b1e-6a55-5b8e-9d0e-0f6b8f9a1c01", True),
        ("unknown city 'Köln'", "unknown city 'Ulm'", True),
        ("timeout after 3.5 s at 12:30:01", "timeout after 7 s at 01:02:03", True),
        ("constraint a", "constraint b", False),
        ("lone \ud800", "lone \ud800", True),
    ],
)
def test_a_fingerprint_ignores_what_varies(a: str, b: str, same: bool) -> None:
    assert (fingerprint_of("E", "d", a) == fingerprint_of("E", "d", b)) is same
    assert fingerprint_of("E", "d", a) != fingerprint_of("F", "d", a)
