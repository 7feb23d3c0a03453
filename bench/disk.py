"""
What a message takes on disk while it waits, beside its body; and as a row.

Published in batches of 100, then the growth of the server's folder: what an outage needs per message.
For docs/operations.md; there is nothing to compare with, and no target.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from pydantic import SecretStr

from bench.load import messages
from bench.report import record, versions
from forebay.brokers.api import Delivery
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from forebay.message import Message
from forebay.storage.database import Database
from forebay.storage.messages import MessageStore
from forebay.storage.schema import migrate
from tests.servers.kafka import Kafka
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import RabbitMQ

MESSAGES = 20_000
SIZE = 500
BATCH = 100


def on_disk(folder: Path, files: str = "**/*") -> int:
    """Bytes that these files of a folder take, holes not counted."""
    return sum(path.stat().st_blocks * 512 for path in folder.glob(files) if path.is_file())


async def publish(url: str, load: list[Message], taken: Callable[[], int]) -> float:
    """Bytes a message, its body not counted, while all of them wait."""
    async with open_broker(BrokerSettings(url=SecretStr(url))) as broker:
        await broker.declare("orders")
        before = taken()
        for start in range(0, len(load), BATCH):
            for result in await broker.publish("orders", load[start : start + BATCH], timeout=30):
                assert result.ok, result.error
        return (taken() - before) / len(load) - SIZE


def waiting() -> dict[str, float]:
    load = list(messages(MESSAGES, size=SIZE))
    found = {}
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as name:
        folder = Path(name)
        asyncio.run(publish(f"sqlite:///{folder / 'queue.db'}", load, lambda: 0))
        # Without the write-ahead file, which is 64 MiB at most however many wait.
        found["embedded queue"] = on_disk(folder, "queue.db") / len(load) - SIZE
    with RabbitMQ() as rabbitmq:
        found["RabbitMQ"] = asyncio.run(publish(rabbitmq.url, load, lambda: on_disk(rabbitmq.folder)))
    with Kafka() as kafka:
        found["Kafka"] = asyncio.run(publish(kafka.url, load, lambda: on_disk(kafka.folder)))
    return found


def rows() -> dict[str, float]:
    """In PostgreSQL's table `messages`, its index included."""
    load = list(messages(MESSAGES, size=SIZE))
    found = {}
    with Postgres(durable=False) as server:
        for name, payload in (("with payload", True), ("without payload", False)):
            database = Database(server.create_database())
            migrate(database)
            store = MessageStore(database, payload=payload)
            lent = [Delivery(message=m, queue="orders", attempt=1, receipt=None) for m in load]
            for start in range(0, len(lent), 500):
                store.write(lent[start : start + 500])
            with database.read() as connection:
                size = connection.execute(sa.text("select pg_total_relation_size('messages')")).scalar_one()
            found[name] = size / MESSAGES - SIZE
            database.dispose()
    return found


def main() -> int:
    figures = {
        "method": f"{MESSAGES} messages of {SIZE} bytes; bytes on disk per message beside its body; one node",
        "waiting": {name: round(size) for name, size in waiting().items()},
        "row in PostgreSQL": {name: round(size) for name, size in rows().items()},
    }
    return record("disk", figures, [], versions("apsw", "pika", "aiokafka", "psycopg"))


if __name__ == "__main__":
    sys.exit(main())
