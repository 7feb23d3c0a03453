from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from forebay import Message, Reject, RetryLater, Unavailable
from forebay.brokers.api import Ack, DeadLetter, Release, Retry
from forebay.testing import deliver


def test_the_handler_gets_the_message_as_it_would_be_sent() -> None:
    seen: list[Message] = []

    deliver(
        seen.append,
        {"n": 1},
        headers={"Tenant": "a"},
        key="k",
        content_type="text/plain",
        message_id="x",
        attempt=3,
    )

    [message] = seen
    assert message.body == b'{"n": 1}'
    assert (message.id, message.key, message.headers, message.content_type) == (
        "x",
        "k",
        {"tenant": "a"},
        "text/plain",
    )


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (None, Ack),
        (Reject("no"), DeadLetter),
        (RetryLater(30), Retry),
        (ValueError("odd"), Retry),
        (Unavailable("down"), Release),
    ],
)
def test_the_fate_is_what_a_consumer_would_decide(error: Exception | None, fate: type) -> None:
    def handle(message: Message) -> None:
        if error is not None:
            raise error

    assert isinstance(deliver(handle, b""), fate)


def test_the_last_attempt_is_a_dead_letter() -> None:
    def handle(message: Message) -> None:
        raise ValueError("odd")

    assert isinstance(deliver(handle, b"", attempt=12), DeadLetter)


def test_what_a_failed_call_wrote_is_gone_and_what_was_there_before_is_not() -> None:
    def handle(message: Message, db: Connection) -> None:
        db.execute(sa.text("INSERT INTO t VALUES (2)"))
        raise ValueError("odd")

    engine = sa.create_engine("sqlite://")
    with engine.connect() as db:
        db.execute(sa.text("CREATE TABLE t (n INTEGER)"))
        db.execute(sa.text("INSERT INTO t VALUES (1)"))
        deliver(handle, b"", db=db)

        assert db.execute(sa.text("SELECT n FROM t")).scalars().all() == [1]
    engine.dispose()


async def test_an_async_test_delivers_in_a_thread() -> None:
    async def handle(message: Message) -> None:
        await asyncio.sleep(0)

    assert isinstance(await asyncio.to_thread(deliver, handle, b""), Ack)
