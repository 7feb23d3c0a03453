"""Where a message is, and what rests there."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from forebay import ids
from forebay.brokers.api import Attempt
from forebay.storage.audit import entries
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
from forebay.storage.messages import MessageStore
from forebay.storage.once import claim
from forebay.storage.prune import prune
from forebay.storage.queries import digests, table_sizes
from forebay.storage.redrive_jobs import JobStore
from forebay.storage.states import message_status, message_statuses
from tests.unit.storage.deliveries import ACCEPTED, dead, delivery, stored_count


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_a_message_that_nobody_has_seen_has_no_status(database: Database) -> None:
    assert message_status(database, ids.new_id()) is None
    assert message_status(database, "not an id") is None


def test_stored(database: Database) -> None:
    sent = delivery(attempt=2)
    MessageStore(database).write([sent])

    status = message_status(database, sent.message.id.upper())

    assert status is not None
    assert (status.id, status.state, status.queue, status.attempts) == (
        sent.message.id,
        "stored",
        "orders",
        2,
    )
    assert status.accepted_at == ACCEPTED
    assert status.conflicts is None


def test_done(database: Database) -> None:
    sent = delivery()
    with database.begin() as connection:
        claim(connection, "handler:orders", [sent])

    status = message_status(database, sent.message.id)

    assert status is not None
    assert (status.state, status.destination) == ("done", "handler:orders")
    assert status.stored_at is not None


@pytest.mark.parametrize(
    ("marked", "state"), [("dead", "dead"), ("redriving", "waiting"), ("discarded", "discarded")]
)
def test_dead_waiting_and_discarded(database: Database, marked: str, state: str) -> None:
    letters = DeadLetterStore(database)
    sent = dead()
    letters.archive([sent])
    letters.mark(letters.get(sent.message.id), status=marked, expected="dead")  # type: ignore[arg-type]  # a status

    status = message_status(database, sent.message.id)

    assert status is not None
    assert (status.state, status.queue, status.reason) == (
        state,
        "orders",
        "23514 CheckViolation, constraint positive",
    )


def test_an_open_dead_letter_outweighs_a_discarded_one(database: Database) -> None:
    letters = DeadLetterStore(database)
    sent = dead(destination="a", minute=5)
    letters.archive([sent])
    letters.mark(letters.get(sent.message.id), status="discarded", expected="dead")
    letters.archive([dead(id=sent.message.id, destination="b")])

    status = message_status(database, sent.message.id)

    assert status is not None
    assert (status.state, status.destination) == ("dead", "b")


def test_a_stored_message_is_not_dead_and_names_its_conflicts(database: Database) -> None:
    sent = delivery(b"a")
    MessageStore(database).write([sent])
    DeadLetterStore(database).archive([dead(b"b", id=sent.message.id)])

    status = message_status(database, sent.message.id)

    assert status is not None
    assert status.state == "stored"
    assert status.conflicts == (ids.conflict_id(sent.message.id, b"b"),)


def test_a_dead_letters_life_is_told_in_order(database: Database) -> None:
    letters = DeadLetterStore(database)
    tried = Attempt(
        number=1, failed_at=ACCEPTED + timedelta(minutes=3), worker="h:1", seconds=0.1, error_class="X",
        reason="500 Internal Server Error",
    )  # fmt: skip
    sent = dead(destination="http:orders")
    assert sent.death is not None
    sent = replace(sent, death=replace(sent.death, history=(tried,)))
    letters.archive([sent])
    with database.begin() as connection:
        claim(connection, "http:orders", [sent])

    status = message_status(database, sent.message.id)

    assert status is not None
    assert status.state == "done"
    assert [(event.state, event.attempt) for event in status.timeline] == [
        ("accepted", None),
        ("retrying", 1),
        ("dead", None),
        ("done", None),
        ("resolved", None),
    ]


def test_the_states_of_many_are_one_query(database: Database) -> None:
    stored, done, died = (delivery(b"%d" % n) for n in range(3))
    MessageStore(database).write([stored])
    with database.begin() as connection:
        claim(connection, "handler:orders", [done])
    DeadLetterStore(database).archive([dead(b"2", id=died.message.id)])
    asked: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *a: asked.append(a[2]))

    found = message_statuses(database, [d.message.id for d in (stored, done, died)] + [ids.new_id()])

    assert {i: status.state for i, status in found.items()} == {
        stored.message.id: "stored",
        done.message.id: "done",
        died.message.id: "dead",
    }
    assert len([statement for statement in asked if "SELECT" in statement]) == 1


def test_digests_tell_where_and_what(database: Database) -> None:
    kept, done, died, discarded, resolved = (delivery(b"%d" % n) for n in range(5))
    letters = DeadLetterStore(database)
    MessageStore(database).write([kept, resolved])
    with database.begin() as connection:
        claim(connection, "handler:orders", [done])
    letters.archive([
        dead(b"2", id=died.message.id),
        dead(b"3", id=discarded.message.id),
        dead(b"4", id=resolved.message.id),
        dead(b"other", id=kept.message.id),
    ])  # fmt: skip
    letters.mark(letters.get(discarded.message.id), status="discarded", expected="dead")

    found = digests(
        database, [d.message.id for d in (kept, done, died, discarded, resolved)] + [ids.new_id()]
    )

    assert {i: {(x.where, x.digest, x.original_id) for x in where} for i, where in found.items()} == {
        kept.message.id: {("stored", sha(b"0"), None), ("dead", sha(b"other"), kept.message.id)},
        done.message.id: {("done", sha(b"1"), None)},
        died.message.id: {("dead", sha(b"2"), None)},
        discarded.message.id: {("discarded", sha(b"3"), None)},
        resolved.message.id: {("stored", sha(b"4"), None)},
    }


def test_digests_of_many_ids_come_in_batches(database: Database) -> None:
    batch = [delivery(b"%d" % n) for n in range(6000)]
    MessageStore(database).write(batch)

    found = digests(database, [d.message.id for d in batch])

    assert {i: [x.digest for x in where] for i, where in found.items()} == {
        d.message.id: [sha(d.message.body)] for d in batch
    }


def test_table_sizes_count_rows_and_growth(database: Database) -> None:
    MessageStore(database).write([delivery() for _ in range(3)])
    DeadLetterStore(database).archive([dead()])

    sizes = {s.name: s for s in table_sizes(database)}

    assert {n: s.rows for n, s in sizes.items()} == {
        "messages": 3,
        "dead_letters": 1,
        "processed_messages": 0,
        "answers": 0,
    }
    assert sizes["messages"].rows_last_day == 3
    assert all((s.bytes or 0) > 0 for s in sizes.values()) == (database.dialect != "sqlite")


# ---- pruning


def age(database: Database, table: str, column: str, ids: list[str], days: int) -> None:
    """Let rows be `days` old."""
    from forebay.storage.tables import metadata

    t = metadata.tables[table]
    with database.begin() as connection:
        connection.execute(
            sa.update(t).where(t.c.id.in_(ids)).values({column: datetime.now(UTC) - timedelta(days=days)})
        )


DAY = 86_400.0


def test_old_rows_are_deleted_in_batches_and_open_dead_letters_never(database: Database) -> None:
    letters = DeadLetterStore(database)
    old, new = [delivery(queue=q) for q in ("a", "b") for _ in range(25)], [delivery() for _ in range(3)]
    MessageStore(database).write(old + new)
    with database.begin() as connection:
        claim(connection, "x", old + new)
    opened, resolved, discarded, fresh = (dead() for _ in range(4))
    letters.archive([opened, resolved, discarded, fresh])
    letters.mark(letters.get(resolved.message.id), status="resolved", expected="dead")
    letters.mark(letters.get(discarded.message.id), status="discarded", expected="dead")
    letters.mark(letters.get(fresh.message.id), status="discarded", expected="dead")
    age(database, "messages", "stored_at", [d.message.id for d in old], 91)
    age(database, "processed_messages", "processed_at", [d.message.id for d in old], 91)
    age(
        database,
        "dead_letters",
        "changed_at",
        [d.message.id for d in (opened, resolved, discarded)],
        31,
    )
    steps: list[int] = []
    arguments = {"older_than": 90 * DAY, "resolved_older_than": 30 * DAY, "batch": 10}

    dry = prune(database, dry_run=True, **arguments)  # type: ignore[arg-type]  # numbers
    assert stored_count(database) == 53
    wet = prune(database, dry_run=False, progress=steps.append, **arguments)  # type: ignore[arg-type]  # numbers

    for report in (dry, wet):
        assert (report.messages, report.dead_letters, report.processed_messages) == (50, 2, 50)
    assert sum(steps) == wet.total == 102
    assert max(steps) == 10
    assert stored_count(database) == 3
    assert {r.id for r in letters.list(DeadLetterFilter(), limit=10)} == {
        opened.message.id,
        fresh.message.id,
    }
    assert prune(database, dry_run=False, **arguments).total == 0  # type: ignore[arg-type]  # numbers


def test_without_an_age_messages_are_kept(database: Database) -> None:
    MessageStore(database).write([delivery()])
    report = prune(database, older_than=None, resolved_older_than=0, dry_run=False)
    assert report.total == 0
    assert stored_count(database) == 1


def test_audit_entries_and_ended_redrives_go_when_their_own_age_is_given(database: Database) -> None:
    """A redrive that goes on is kept, however long ago it began."""
    jobs = JobStore(database)
    ended, going_on = (
        jobs.create(
            DeadLetterFilter(queue=queue), total=1, by="ann", origin="cli", owner=None, canary=False,
            rate=None, max_died_share=0.5, patience=60.0,
        ).id
        for queue in ("orders", "clicks")
    )  # fmt: skip
    fresh, old = (entry.id for entry in entries(database, limit=10))
    age(database, "audit_log", "at", [old], 400)
    age(database, "redrive_jobs", "created_at", [ended, going_on], 400)
    age(database, "redrive_jobs", "ended_at", [ended], 400)

    kept = prune(database, older_than=0, resolved_older_than=0, dry_run=False)
    assert (kept.audit_log, kept.redrive_jobs) == (0, 0)
    gone = prune(database, older_than=None, resolved_older_than=0, audit_older_than=365 * DAY, dry_run=False)

    assert (gone.audit_log, gone.redrive_jobs) == (1, 1)
    assert [entry.id for entry in entries(database, limit=10)] == [fresh]
    assert jobs.get(going_on).ended_at is None
