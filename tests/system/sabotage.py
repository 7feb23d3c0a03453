"""
`forebay` with a part of it replaced, to hurt it at an exact point or to weaken it: what no setting may do.

    python tests/system/sabotage.py HOW forebay's arguments...

HOW is one of the functions below, for some with `=` and an argument.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from forebay.brokers.api import Delivery
from forebay.message import Message
from forebay.sinks import WriteResult

LATE = 0.2
"""Seconds by which a weakened consumer writes later than it says."""


def die_after_commit(order: str) -> None:
    """
    SIGKILL, by itself, with a batch committed and not acknowledged, when the file `order` appears.

    One of those who look for the file takes it; the batch's ids are then in `order`.batch.
    """
    from consumers.sinks.database import DatabaseSink

    write = DatabaseSink.write

    async def write_and_die(self: DatabaseSink, batch: Sequence[Delivery]) -> list[WriteResult]:
        results = await write(self, batch)
        if taken():
            told([d.message.id for d in batch])
            os.kill(os.getpid(), signal.SIGKILL)
        return results

    def taken() -> bool:
        try:
            os.unlink(order)
        except FileNotFoundError:
            return False
        return True

    def told(ids: list[str]) -> None:
        Path(f"{order}.batch").write_text("\n".join(ids))

    DatabaseSink.write = write_and_die  # type: ignore[method-assign]


def die_before_answer(order: str) -> None:
    """SIGKILL of a gateway with a message published and not answered, if the file `order` is there."""
    from gateway.ingest import Ingest

    settled = Ingest._settled

    def die_or_settle(*arguments: Any) -> None:
        _die_if(order)
        settled(*arguments)

    Ingest._settled = die_or_settle  # type: ignore[assignment,method-assign]


def ack_first(_: str) -> None:
    """Acknowledge what is not in the database yet."""
    from consumers.sinks.database import DatabaseSink

    write = DatabaseSink.write
    pending: set[asyncio.Task[None]] = set()

    async def write_late(self: DatabaseSink, batch: Sequence[Delivery]) -> None:
        await asyncio.sleep(LATE)
        await write(self, batch)

    async def promise(self: DatabaseSink, batch: Sequence[Delivery]) -> list[WriteResult]:
        task = asyncio.create_task(write_late(self, batch))
        pending.add(task)
        task.add_done_callback(pending.discard)
        return [WriteResult(message_id=d.message.id) for d in batch]

    DatabaseSink.write = promise  # type: ignore[method-assign]


def confirms_off(_: str) -> None:
    """RabbitMQ: a message counts as stored when it is written to the connection."""
    from forebay.brokers.rabbitmq.confirms import Batch, Confirms

    sent = Confirms.sent

    def sent_is_stored(
        self: Confirms, batch: Batch, start: int, sizes: list[int], exchange: str, routing_key: str
    ) -> None:
        sent(self, batch, start, sizes, exchange, routing_key)
        for index in range(start, start + len(sizes)):
            batch.settle(index, None)

    Confirms.sent = sent_is_stored  # type: ignore[method-assign]


def acks_1(_: str) -> None:
    """Kafka: the leader's word is enough."""
    from aiokafka import AIOKafkaProducer

    init = AIOKafkaProducer.__init__

    def careless(self: Any, **settings: Any) -> None:
        init(self, **{**settings, "acks": 1, "enable_idempotence": False})

    AIOKafkaProducer.__init__ = careless


def auto_commit(_: str) -> None:
    """Kafka: what was read counts as done."""
    from aiokafka import AIOKafkaConsumer

    from forebay.brokers.kafka.holdings import Holdings

    init = AIOKafkaConsumer.__init__

    def careless(self: Any, *topics: str, **settings: Any) -> None:
        if settings.get("group_id"):
            settings |= {"enable_auto_commit": True, "auto_commit_interval_ms": int(LATE * 500)}
        init(self, *topics, **settings)

    async def commit(self: Holdings, consumer: AIOKafkaConsumer) -> None:
        pass  # the client does

    AIOKafkaConsumer.__init__ = careless
    Holdings.commit = commit  # type: ignore[method-assign]


def die_in_handler(order: str) -> None:
    """SIGKILL, with three messages handled and nothing committed, if the file `order` is there."""
    _after_third_message(lambda: _die_if(order))


def die_handled(order: str) -> None:
    """SIGKILL with a handler's batch committed and not acknowledged, if the file `order` is there."""
    _after_commit(lambda: _die_if(order))


def stay_in_handler(_: str) -> None:
    """Say so and do no more, with three messages handled and nothing committed."""
    _after_third_message(_stay)


def stay_handled(_: str) -> None:
    """Say so and do no more with a handler's batch committed and not acknowledged."""
    _after_commit(_stay)


STAYS = "stays here until it is killed"


def _die_if(order: str) -> None:
    try:
        os.unlink(order)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _stay() -> None:
    print(STAYS, flush=True)
    while True:
        time.sleep(60)


def _after_third_message(then: Callable[[], None]) -> None:
    from consumers.handlers import Handler

    call = Handler.call
    done = 0

    def call_and_then(self: Handler, messages: Sequence[Message], db: Connection | None) -> None:
        nonlocal done
        call(self, messages, db)
        done += 1
        if done == 3:
            then()

    Handler.call = call_and_then  # type: ignore[method-assign]


def _after_commit(then: Callable[[], None]) -> None:
    from consumers.sinks.python import PythonSink

    write = PythonSink.write

    async def write_and_then(self: PythonSink, batch: Sequence[Delivery]) -> list[WriteResult]:
        results = await write(self, batch)
        then()
        return results

    PythonSink.write = write_and_then  # type: ignore[method-assign]


HOW = {
    f.__name__: f
    for f in (
        die_after_commit, die_before_answer, ack_first, confirms_off, acks_1, auto_commit,
        die_in_handler, die_handled, stay_in_handler, stay_handled,
    )
}  # fmt: skip


if __name__ == "__main__":
    name, _, argument = sys.argv.pop(1).partition("=")
    HOW[name](argument)
    from forebay.cli.main import main

    main()
