"""Batches of messages become rows, once each, whatever else is in the batch."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from forebay import ids
from forebay.brokers.api import Delivery
from forebay.errors import IdempotencyConflict, MessageRejected, SinkUnavailable
from forebay.sinks import WriteResult
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from forebay.storage.messages import MessageStore, statements_for
from tests.unit.storage.deliveries import (
    ACCEPTED,
    add_check,
    dead,
    delivery,
    messages_locked,
    stored,
    stored_count,
)


def test_every_field_is_kept(database: Database) -> None:
    sent = delivery(
        b'{"city": "K\xc3\xb6ln"}', key="customer-7", headers={"ce-type": "order.placed", "x": "é"}, attempt=3
    )

    assert MessageStore(database).write([sent]) == [WriteResult(message_id=sent.message.id)]

    row = stored(database, sent.message.id)
    stored_at = row.pop("stored_at")
    assert abs(stored_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert row == {
        "id": sent.message.id,
        "queue": "orders",
        "key": "customer-7",
        "content_type": "application/json",
        "headers": {"ce-type": "order.placed", "x": "é"},
        "payload": {"city": "Köln"},
        "body": b'{"city": "K\xc3\xb6ln"}',
        "accepted_at": ACCEPTED,
        "attempts": 3,
    }


def test_times_are_kept_to_the_microsecond_in_any_zone_and_before_2000(database: Database) -> None:
    import zoneinfo

    sent = [delivery(), delivery(), delivery()]
    sent[0].message.accepted_at = datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    sent[1].message.accepted_at = datetime(2026, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    sent[2].message.accepted_at = datetime(9999, 1, 1, tzinfo=UTC)

    MessageStore(database).write(sent)

    for d in sent:
        assert stored(database, d.message.id)["accepted_at"] == d.message.accepted_at


def test_an_empty_batch_is_nothing(database: Database) -> None:
    assert MessageStore(database).write([]) == []


def test_results_are_in_the_order_of_the_batch(database: Database) -> None:
    batch = [delivery(b"%d" % n) for n in range(50)]
    random.Random(1).shuffle(batch)

    results = MessageStore(database).write(batch)

    assert [r.message_id for r in results] == [d.message.id for d in batch]
    assert all(r.error is None and not r.duplicate for r in results)
    assert stored_count(database) == 50


def test_a_stored_id_with_the_same_bytes_is_a_duplicate(database: Database) -> None:
    store = MessageStore(database)
    first, second = delivery(b"a"), delivery(b"b")
    store.write([first])

    results = store.write([second, delivery(b"a", id=first.message.id, attempt=2)])

    assert results == [
        WriteResult(message_id=second.message.id),
        WriteResult(message_id=first.message.id, duplicate=True),
    ]
    assert stored(database, first.message.id)["attempts"] == 1


def test_a_stored_id_with_other_bytes_is_a_conflict_and_changes_nothing(database: Database) -> None:
    store = MessageStore(database)
    first = delivery(b"a")
    store.write([first])

    [result] = store.write([delivery(b"b", id=first.message.id)])

    assert isinstance(result.error, IdempotencyConflict)
    assert result.error.message_id == first.message.id
    assert result.error.new_id == ids.conflict_id(first.message.id, b"b")
    assert stored(database, first.message.id)["body"] == b"a"


def test_ids_repeated_in_a_batch_are_stored_once(database: Database) -> None:
    same, other = delivery(b"a"), delivery(b"b")
    id = same.message.id

    results = MessageStore(database).write([same, other, delivery(b"a", id=id), delivery(b"c", id=id)])

    assert [(r.duplicate, type(r.error)) for r in results] == [
        (False, type(None)),
        (False, type(None)),
        (True, type(None)),
        (False, IdempotencyConflict),
    ]
    assert stored_count(database) == 2


def test_a_rejected_first_does_not_reject_or_conflict_with_the_second_of_its_id(database: Database) -> None:
    add_check(database, "short", "length(queue) < 10")
    bad = delivery(b"a", queue="much-too-long")

    first, second = MessageStore(database).write([bad, delivery(b"b", id=bad.message.id)])

    assert isinstance(first.error, MessageRejected)
    assert second == WriteResult(message_id=bad.message.id)


@pytest.mark.parametrize("bad", [0, 1, 499, 998, 999])
def test_one_bad_row_among_a_thousand_hurts_only_itself(database: Database, bad: int) -> None:
    add_check(database, "polite", "queue <> 'rude'")
    batch = [delivery(queue="rude" if n == bad else "orders") for n in range(1000)]

    results = MessageStore(database).write(batch)

    assert [n for n, r in enumerate(results) if r.error is not None] == [bad]
    error = results[bad].error
    assert isinstance(error, MessageRejected)
    assert "constraint polite" in str(error)
    assert "rude" not in str(error), "reasons hold no row values"
    assert stored_count(database) == 999


def test_many_bad_rows_are_all_found(database: Database) -> None:
    add_check(database, "polite", "queue <> 'rude'")
    rng = random.Random(5)
    batch = [delivery(queue=rng.choice(["rude", "orders"])) for _ in range(100)]

    results = MessageStore(database).write(batch)

    assert [r.error is not None for r in results] == [d.queue == "rude" for d in batch]


def test_bad_rows_duplicates_and_conflicts_are_told_apart_in_one_batch(database: Database) -> None:
    add_check(database, "polite", "queue <> 'rude'")
    store = MessageStore(database)
    old = delivery(b"old")
    store.write([old])
    batch = [
        delivery(b"new"),
        delivery(b"old", id=old.message.id),
        delivery(queue="rude"),
        delivery(b"other", id=old.message.id),
    ]

    new, duplicate, rejected, conflict = store.write(batch)

    assert new == WriteResult(message_id=batch[0].message.id)
    assert duplicate.duplicate
    assert type(rejected.error) is MessageRejected
    assert isinstance(conflict.error, IdempotencyConflict)


def test_an_id_that_is_no_uuid_harms_no_other(database: Database) -> None:
    good, bad = delivery(), delivery(id="not-a-uuid")

    results = MessageStore(database).write([good, bad])

    assert results[0] == WriteResult(message_id=good.message.id)
    if database.dialect != "postgresql":  # ids are text there
        assert results[1] == WriteResult(message_id="not-a-uuid")
    else:
        assert isinstance(results[1].error, MessageRejected)


def test_storing_resolves_the_open_dead_letters_of_the_message_and_no_others(database: Database) -> None:
    letters = DeadLetterStore(database)
    mine, other_bytes, stranger, discarded = dead(b"a"), dead(b"b"), dead(b"c"), dead(b"d")
    letters.archive([mine, other_bytes, stranger, discarded])
    letters.mark(letters.get(discarded.message.id), status="discarded", expected="dead")

    MessageStore(database).write([
        delivery(b"a", id=mine.message.id),
        delivery(b"x", id=other_bytes.message.id),
        delivery(b"d", id=discarded.message.id),
    ])  # fmt: skip

    status = {r.id: r.status for r in letters.list(DeadLetterFilter(), limit=10)}
    assert status == {
        mine.message.id: "resolved",
        other_bytes.message.id: "dead",
        stranger.message.id: "dead",
        discarded.message.id: "discarded",
    }


def test_a_duplicate_resolves_too(database: Database) -> None:
    letters = DeadLetterStore(database)
    sent = delivery(b"a")
    with database.begin() as connection:
        # Dead and stored at once: two consumers had it, and neither saw the other.
        statements_for(database.dialect).insert(connection, [sent], payload=True)
    letters.archive([dead(b"a", id=sent.message.id)])
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE dead_letters SET status = 'dead'")

    [result] = MessageStore(database).write([sent])

    assert result.duplicate
    assert [r.status for r in letters.get(sent.message.id)] == ["resolved"]


def test_two_writers_with_the_same_messages_store_each_once(
    database: Database, another: Callable[[], Database]
) -> None:
    batch = [delivery(b"%d" % n) for n in range(200)]
    backwards = batch[::-1]
    together = threading.Barrier(2)
    second = another()

    def write(where: Database, what: list[Delivery]) -> list[WriteResult]:
        together.wait(10)
        return MessageStore(where).write(what)

    with ThreadPoolExecutor(2) as threads:
        results = [
            f.result(30)
            for f in (threads.submit(write, database, batch), threads.submit(write, second, backwards))
        ]

    assert stored_count(database) == 200
    fresh = [r.message_id for half in results for r in half if not r.duplicate]
    assert sorted(fresh) == sorted(d.message.id for d in batch)


def test_without_payload_no_copy_is_kept(database: Database) -> None:
    sent = delivery(b"{}")
    MessageStore(database, payload=False).write([sent])
    assert stored(database, sent.message.id)["payload"] is None


def test_a_lock_that_is_not_given_up_makes_the_destination_unavailable(
    database: Database, another: Callable[[], Database]
) -> None:
    """The batch is tried again as a whole, never row by row, and then handed back."""
    with (
        messages_locked(another()),
        capture_logs() as log,
        pytest.raises(SinkUnavailable, match="gave up after 4 attempts"),
    ):
        MessageStore(database).write([delivery(), delivery()])

    assert stored_count(database) == 0
    tries = [line for line in log if line["event"] == "writing a batch again"]
    assert [line["attempt"] for line in tries] == [1, 2, 3]
    assert all(line["reason"] for line in tries)


def test_a_lock_that_is_given_up_in_time_is_waited_for(
    database: Database, another: Callable[[], Database]
) -> None:
    holder = another()
    locked, writing = threading.Event(), threading.Event()

    def hold() -> None:
        with messages_locked(holder):
            locked.set()
            writing.wait(10)

    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(hold)
        assert locked.wait(10)
        threading.Timer(0.1, writing.set).start()
        results = MessageStore(database).write([delivery()])
        held.result(10)

    assert results[0].error is None
