"""Messages to measure with: 500 bytes of JSON, each another one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr

from forebay.brokers.api import Broker
from forebay.brokers.settings import BrokerSettings
from forebay.ids import new_id
from forebay.message import Message

SIZE = 500


def body(number: int, size: int = SIZE) -> bytes:
    start = b'{"order_id":%d,"customer":"a customer name","note":"' % number
    return start + b"x" * (size - len(start) - 2) + b'"}'


def messages(count: int, *, start: int = 0, size: int = SIZE) -> Iterator[Message]:
    for number in range(start, start + count):
        yield Message(
            id=new_id(),
            body=body(number, size),
            accepted_at=datetime.now(UTC),
            content_type="application/json",
            headers={"source": "bench"},
        )


def broker_settings(queue_file: Path) -> BrokerSettings:
    return BrokerSettings(url=SecretStr(f"sqlite:///{queue_file}"))


async def fill(broker: Broker, queue: str, count: int, *, at_once: int = 1_000) -> None:
    """Publish `count` messages in big batches: how they got there is not what is measured."""
    for start in range(0, count, at_once):
        batch = list(messages(min(at_once, count - start), start=start))
        for result in await broker.publish(queue, batch, timeout=60):
            if result.error is not None:
                raise result.error
