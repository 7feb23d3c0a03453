"""An embedded queue and a SQLite database in a folder, and commands run against them in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from forebay import ids
from forebay.brokers.api import Broker, DeadLetter, Death, Delivery, Depth, Failure
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from forebay.cli.main import run
from forebay.message import Message
from forebay.storage.database import Database
from forebay.storage.dead_letters import DeadLetterStore
from forebay.storage.messages import MessageStore
from forebay.storage.schema import migrate

T = TypeVar("T")

NOW = datetime.now(UTC)


def delivery(
    body: bytes = b"{}", *, id: str | None = None, queue: str = "orders", attempt: int = 1
) -> Delivery:
    message = Message(id=id or ids.new_id(), body=body, accepted_at=NOW, content_type="application/json")
    return Delivery(message=message, queue=queue, attempt=attempt, receipt=None)


def dead(
    body: bytes = b"{}",
    *,
    id: str | None = None,
    queue: str = "orders",
    reason: str = "23514 CheckViolation",
    error_class: str = "CheckViolation",
    ago: float = 60.0,
    original_id: str | None = None,
) -> Delivery:
    """As it comes from a dead-letter queue, given up `ago` seconds ago."""
    found = delivery(body, id=id, queue=queue)
    found.death = Death(
        failure=Failure(reason=reason, error_class=error_class, destination="database", detail="the row"),
        queue=queue,
        attempts=12,
        died_at=NOW - timedelta(seconds=ago),
        original_id=original_id,
    )
    return found


@dataclass
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Installation:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        self.broker_settings = BrokerSettings.model_validate({"url": f"sqlite:///{folder}/queue.db"})
        with self.database() as database:
            migrate(database)
        self.on_broker(lambda broker: broker.declare("orders"))

    @contextmanager
    def database(self) -> Iterator[Database]:
        database = Database(f"sqlite:///{self.folder}/forebay.db")
        try:
            yield database
        finally:
            database.dispose()

    def store(self, *deliveries: Delivery) -> None:
        with self.database() as database:
            results = MessageStore(database).write(deliveries)
        assert not [result.error for result in results if result.error]

    def archive(self, *deliveries: Delivery) -> None:
        with self.database() as database:
            DeadLetterStore(database).archive(deliveries)

    def status_of(self, id: str) -> str:
        with self.database() as database:
            (record,) = DeadLetterStore(database).get(id)
        return record.status

    def on_broker(self, act: Callable[[Broker], Awaitable[T]]) -> T:
        async def opened() -> T:
            async with open_broker(self.broker_settings) as broker:
                return await act(broker)

        return asyncio.run(opened())

    def publish(self, queue: str, *messages: Message) -> None:
        results = self.on_broker(lambda broker: broker.publish(queue, messages, timeout=10))
        assert all(result.ok for result in results)

    def receive(self, queue: str = "orders", count: int = 100) -> list[Delivery]:
        """What waits; handed back at once."""

        async def act(broker: Broker) -> list[Delivery]:
            async with broker.subscribe(queue, prefetch=count) as subscription:
                return await subscription.receive(count, 0.2)

        return self.on_broker(act)

    def kill_one(self, queue: str = "orders") -> None:
        """Move one message to the dead-letter queue on the broker."""

        async def act(broker: Broker) -> None:
            async with broker.subscribe(queue, prefetch=1) as subscription:
                (one,) = await subscription.receive(1, 5)
                await subscription.settle([DeadLetter(one, Failure(reason="no", error_class="No"))])

        self.on_broker(act)

    def depth(self, queue: str = "orders") -> Depth:
        return self.on_broker(lambda broker: broker.depth(queue))

    def record(self, *sent: Delivery) -> str:
        """The record of a sender who was answered 202 for these."""
        from hashlib import sha256

        path = self.folder / "sent.txt"
        with path.open("a") as file:
            for one in sent:
                file.write(f"{one.message.id} {sha256(one.message.body).hexdigest()} {one.queue}\n")
        return str(path)

    def run(self, *args: str) -> Done:
        self._capsys.readouterr()
        code = run(args)
        captured = self._capsys.readouterr()
        return Done(code, captured.out, captured.err)


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return sorted(one.message.body for one in deliveries)
