"""What services answered to forwarded requests."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from forebay.ids import new_id
from forebay.storage.answers import KeptAnswer, answers_to, forget_answers, keep
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore
from forebay.storage.once import claim
from forebay.storage.states import message_status
from tests.unit.storage.deliveries import dead, delivery

NOW = datetime.now(UTC).replace(microsecond=0)


def answer(id: str, body: bytes = b"\x00yes", *, status: int = 200, age: float = 0.0) -> KeptAnswer:
    return KeptAnswer(
        id=id,
        destination="http:billing",
        status=status,
        headers={"content-type": "text/plain"},
        body=body,
        complete=True,
        digest=hashlib.sha256(b'{"n": 1}').digest(),
        answered_at=NOW - timedelta(seconds=age),
    )


def test_an_answer_is_kept_as_it_was_and_a_later_one_takes_its_place(database: Database) -> None:
    first, second = answer(new_id()), answer(new_id(), b"x" * 100_000)
    with database.begin() as connection:
        keep(connection, [first, second])
    with database.begin() as connection:
        keep(connection, [later := answer(first.id, b"again", status=201)])

    assert answers_to(database, [first.id.upper(), second.id, new_id()]) == {
        first.id: later,
        second.id: second,
    }


def test_a_message_that_was_answered_says_so(database: Database) -> None:
    sent = delivery()
    with database.begin() as connection:
        claim(connection, "http:billing", [sent])
        keep(connection, [answer(sent.message.id)])

    status = message_status(database, sent.message.id)

    assert status is not None
    assert status.queue == "billing"
    assert (status.state, status.digest) == ("done", hashlib.sha256(sent.message.body).hexdigest())
    assert status.answer is not None
    assert (status.answer.status, status.answer.complete) == (200, True)
    assert status.answer.headers == {"content-type": "text/plain"}


def test_one_that_was_refused_is_dead_before_it_is_among_the_dead_letters(database: Database) -> None:
    refused = dead(destination="http:billing")
    with database.begin() as connection:
        keep(connection, [answer(refused.message.id, status=422)])
    before = message_status(database, refused.message.id)
    DeadLetterStore(database).archive([refused])
    after = message_status(database, refused.message.id)

    assert before is not None
    assert after is not None
    assert (before.state, before.reason) == ("dead", "answered 422")
    assert (after.state, after.queue) == ("dead", "orders")
    assert after.answer == before.answer


def test_old_answers_are_forgotten(database: Database) -> None:
    # Far apart: a run of all tests takes minutes since NOW.
    old, young = answer(new_id(), age=100_000), answer(new_id(), age=10)
    with database.begin() as connection:
        keep(connection, [old, young])

    assert forget_answers(database, older_than=50_000) == 1
    assert list(answers_to(database, [old.id, young.id])) == [young.id]
