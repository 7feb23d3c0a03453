"""Prefer: wait: what a client that waits is told, and what its waiting costs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from forebay.brokers.api import Death, Delivery, Failure
from forebay.ids import new_id
from forebay.message import Message
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore
from forebay.storage.messages import MessageStore
from forebay.storage.schema import migrate
from gateway.asking import NoAnswer
from gateway.waiting import FASTEST, Found, Waiting, Wanted
from tests.unit.gateway.support import Running, request, running
from tests.waiting import until


@pytest.fixture
def own(tmp_path: Path) -> Database:
    """The database as a consumer has it."""
    made = Database(f"sqlite:///{tmp_path / 'f.db'}")
    migrate(made)
    return made


@pytest.fixture
def opened(tmp_path: Path, own: Database) -> Callable[[], Database]:
    """Opens it as the gateway does."""
    return lambda: Database(f"sqlite:///{tmp_path / 'f.db'}")


def store(own: Database, *messages: Message) -> None:
    MessageStore(own).write(
        [Delivery(message=message, queue="orders", attempt=1, receipt=None) for message in messages]
    )


async def first_message(gateway: Running) -> Message:
    await until(lambda: bool(gateway.broker.messages))
    return gateway.broker.messages[0]


async def test_a_message_stored_in_time_is_answered_201(own: Database, opened: Any) -> None:
    async with running(database=opened) as gateway:
        sending = asyncio.create_task(gateway.post(headers={"Prefer": "wait=20, durability=synced"}))
        store(own, await first_message(gateway))
        answer = await sending

    assert (answer.status_code, answer.json()["state"]) == (201, "stored")
    assert answer.headers["preference-applied"] == "durability=synced, wait=20"
    assert answer.headers["location"] == f"/v1/messages/{answer.json()['id']}"
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_one_that_is_not_stored_in_time_is_answered_202_all_the_same(opened: Any) -> None:
    async with running(database=opened) as gateway:
        answer = await gateway.post(headers={"Prefer": "wait=1"})

    assert (answer.status_code, answer.json()["state"]) == (202, "accepted")
    assert answer.headers["preference-applied"] == "wait=1"


async def test_one_that_died_meanwhile_is_answered_202_with_the_reason(own: Database, opened: Any) -> None:
    async with running(database=opened) as gateway:
        sending = asyncio.create_task(gateway.post(headers={"Prefer": "wait=20"}))
        message = await first_message(gateway)
        death = Death(
            failure=Failure(reason="422 Unprocessable Entity", error_class="http-422", destination="d"),
            queue="orders", attempts=1, died_at=message.accepted_at,
        )  # fmt: skip
        DeadLetterStore(own).archive(
            [Delivery(message=message, queue="orders.dead", attempt=1, receipt=None, death=death)]
        )
        answer = await sending

    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["reason"]) == ("dead", "422 Unprocessable Entity")


async def test_more_than_thirty_seconds_are_thirty(own: Database, opened: Any) -> None:
    async with running(database=opened) as gateway:
        sending = asyncio.create_task(gateway.post(headers={"Prefer": "wait=100000"}))
        store(own, await first_message(gateway))

        assert (await sending).headers["preference-applied"] == "wait=30"


async def test_a_wait_that_is_no_number_is_refused_before_anything_is_stored(opened: Any) -> None:
    async with running(database=opened) as gateway:
        answer = await gateway.post(headers={"Prefer": "wait=soon"})

        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-header")
        assert not gateway.broker.messages


async def test_without_a_database_nobody_is_kept_waiting() -> None:
    async with running() as gateway:
        answer = await gateway.post(headers={"Prefer": "wait=30"})

    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


async def test_the_end_of_the_gateway_ends_the_waiting_with_a_202(opened: Any) -> None:
    async with running(database=opened) as gateway:
        sending = asyncio.create_task(gateway.post(headers={"Prefer": "wait=30"}))
        await first_message(gateway)
        gateway.stop.set()
        answer = await sending

    assert (answer.status_code, answer.json()["state"]) == (202, "accepted")


async def test_a_database_that_dies_meanwhile_makes_no_error(tmp_path: Path) -> None:
    broken = Database(f"sqlite:///{tmp_path / 'no' / 'such.db'}")
    async with running(database=lambda: broken) as gateway:
        answer = await gateway.post(headers={"Prefer": "wait=1"})

    assert (answer.status_code, answer.json()["state"]) == (202, "accepted")


async def test_another_message_under_the_same_key_is_not_taken_for_ours(own: Database, opened: Any) -> None:
    """The key was used at a replica that this one knows nothing of: what is stored is not what we sent."""
    async with running(database=opened) as gateway:
        key = {"Idempotency-Key": "k"}
        sending = asyncio.create_task(gateway.post(b"mine", headers={**key, "Prefer": "wait=20"}))
        message = await first_message(gateway)
        store(own, Message(id=message.id, body=b"another", accepted_at=message.accepted_at))
        death = Death(
            failure=Failure(reason="conflict", error_class="idempotency-conflict", destination="database"),
            queue="orders", attempts=1, died_at=message.accepted_at,
        )  # fmt: skip
        DeadLetterStore(own).archive(
            [Delivery(message=message, queue="orders.dead", attempt=1, receipt=None, death=death)]
        )
        answer = await sending

    assert (answer.status_code, answer.json()["state"]) == (202, "dead")


async def test_a_status_can_be_waited_for(own: Database, opened: Any) -> None:
    async with running(database=opened) as gateway:
        sent = await gateway.post()
        asking = asyncio.create_task(
            gateway.client.get(sent.headers["location"], headers={"Prefer": "wait=20"})
        )
        await until(lambda: bool(_waiting(gateway)._waiters))
        store(own, gateway.broker.messages[0])
        answer = await asking

    assert (answer.status_code, answer.json()["state"]) == (200, "stored")
    assert [event["state"] for event in answer.json()["timeline"]] == ["accepted", "stored"]
    assert answer.headers["preference-applied"] == "wait=20"


async def test_five_hundred_who_wait_are_one_query_at_a_time(own: Database, opened: Any) -> None:
    """As many queries as ticks of the clock, however many wait; each is about all of them."""
    queries: list[str] = []

    def counted() -> Database:
        database: Database = opened()

        def note(_c: Any, _u: Any, statement: str, *_: Any) -> None:
            if "UNION" in statement:
                queries.append(statement)

        sa.event.listen(database.engine, "before_cursor_execute", note)
        return database

    async with running(database=counted) as gateway:
        # Each on a connection of its own.
        clients = [await gateway.connect() for _ in range(500)]
        for client in clients:
            await client.send(request(b"{}", headers="Prefer: wait=30\r\n"))
        await until(lambda: len(_waiting(gateway)._waiters) == 500, timeout=30)
        asked, began = len(queries), asyncio.get_running_loop().time()
        await until(lambda: len(queries) > asked)
        store(own, *gateway.broker.messages)
        answers = [await client.answer(30) for client in clients]
        ticks = (asyncio.get_running_loop().time() - began) / FASTEST

        assert {a.status for a in answers} == {201}
        assert len(queries) - asked <= ticks + 1
        left = len(queries)
        await until(lambda: _waiting(gateway)._task is None)
        assert len(queries) == left  # nobody waits, nobody asks


async def test_a_client_that_leaves_costs_nothing_further(opened: Any) -> None:
    async with running(database=opened) as gateway:
        connection = await gateway.connect()
        await connection.send(request(b"{}", headers="Prefer: wait=30\r\n"))
        await until(lambda: bool(_waiting(gateway)._waiters))
        connection.close()
        await until(lambda: not _waiting(gateway)._waiters and _waiting(gateway)._task is None)


# ---- when it asks


class Database_:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.down = False

    async def look(self, wanted: list[Wanted]) -> Found:
        self.asked.append(asyncio.get_running_loop().time())
        if self.down:
            raise NoAnswer("it cannot be reached")
        return {}


async def never() -> Any:
    await asyncio.Event().wait()


async def test_a_database_that_is_down_is_asked_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.waiting.PATIENCE", 0.2)
    database = Database_()
    database.down = True
    waiting = Waiting(database.look, most=100)

    told = await asyncio.gather(*(waiting.outcome(Wanted(new_id()), 1.0, never) for _ in range(50)))

    assert told == [None] * 50
    pauses = [b - a for a, b in zip(database.asked, database.asked[1:], strict=False)]
    assert len(pauses) <= 3  # 0.2, 0.4, and what is left
    assert all(b > a for a, b in itertools.pairwise(pauses))


async def test_when_as_many_wait_as_may_the_others_are_not_kept() -> None:
    waiting = Waiting(Database_().look, most=1)
    first = asyncio.create_task(waiting.outcome(Wanted(new_id()), 30.0, never))
    await asyncio.sleep(0)

    assert not waiting.takes_more
    waiting.close()
    assert await first is None


def _waiting(gateway: Running) -> Waiting:
    parts = gateway.app.parts
    assert parts is not None
    return parts.waiting
