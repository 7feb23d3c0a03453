"""
Replicas of `forebay consume` with a handler that takes its time: for a system test (a cut) and `make soak`.

The replicas are started first, and seen to take part, before the measured messages are
published in one go; the rate is that from the first effect to the last.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from pydantic import SecretStr

from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from forebay.ids import new_id
from forebay.message import Message
from tests.system.harness import Process, Site, until

QUEUE = "slow"
TAKES = 0.02
"""Seconds that the handler takes for a message."""
TOGETHER = 10
"""Messages in one call of publish."""
WARM_UP = 12 * TOGETHER
"""Messages at a time, until every replica has taken part."""
PATIENCE = 120.0

_HANDLER = f"""
import os, time

effects = os.open(f"effects-{{os.getpid()}}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def handle(message):
    time.sleep({TAKES})
    os.write(effects, f"{{time.monotonic()}} {{message.id}}\\n".encode())
"""


@dataclass(kw_only=True)
class Outcome:
    replicas: int
    messages: int
    per_second: float
    shares: list[int]
    """How many of the messages each replica did."""
    doubled: int
    """Effects beyond the first of a message."""


def _says_ready(consumer: Process) -> bool:
    return "consuming " in consumer.output


class Replicas:
    """One queue and so many consumers of it."""

    def __init__(self, site: Site, broker_url: str, replicas: int) -> None:
        self.site = site
        site.queues = QUEUE
        site.settings |= {"BROKER__URL": broker_url, f"QUEUES__{QUEUE}__HANDLER": "slow_handler:handle"}
        (site.folder / "slow_handler.py").write_text(_HANDLER)
        self._url = broker_url
        self.consumers: list[Process] = [site.consumer() for _ in range(replicas)]
        for consumer in self.consumers:
            consumer.until(partial(_says_ready, consumer), what="its word that it is ready")

    def effects(self) -> dict[int, list[tuple[float, str]]]:
        """By process: when, and of which message."""
        found = {}
        for consumer in self.consumers:
            file = self.site.folder / f"effects-{consumer.pid}"
            lines = file.read_text().splitlines() if file.exists() else []
            pairs = [line.split() for line in lines if line.count(" ") == 1]
            found[consumer.pid] = [(float(at), id) for at, id in pairs]
        return found

    def until_all_take_part(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not all(self.effects().values()):
            counts = {pid: len(effects) for pid, effects in self.effects().items()}
            assert time.monotonic() < deadline, f"a replica takes nothing: {counts}"
            ids = set(self.publish(WARM_UP))
            self._until_done(ids)

    def measure(self, count: int) -> Outcome:
        ids = set(self.publish(count))
        self._until_done(ids)
        effects = [[(at, id) for at, id in each if id in ids] for each in self.effects().values()]
        moments = sorted(at for each in effects for at, _ in each)
        times = Counter(id for each in self.effects().values() for _, id in each)
        return Outcome(
            replicas=len(self.consumers), messages=count,
            per_second=(len(moments) - 1) / (moments[-1] - moments[0]),
            shares=[len(each) for each in effects],
            doubled=times.total() - len(times),
        )  # fmt: skip

    def publish(self, count: int) -> list[str]:
        made = [
            Message(id=new_id(), body=b"%d" % n, accepted_at=datetime.now(UTC), content_type="text/plain")
            for n in range(count)
        ]

        async def send() -> None:
            async with open_broker(BrokerSettings(url=SecretStr(self._url))) as broker:
                await broker.declare(QUEUE)
                # In small parts, as requests come: a part without keys goes to one of Kafka's partitions.
                parts = [made[at : at + TOGETHER] for at in range(0, count, TOGETHER)]
                for results in await asyncio.gather(*(broker.publish(QUEUE, p, timeout=60) for p in parts)):
                    for result in results:
                        if result.error is not None:
                            raise result.error

        asyncio.run(send())
        return [m.id for m in made]

    def _until_done(self, ids: set[str]) -> None:
        def done() -> bool:
            for consumer in self.consumers:
                assert consumer.running, consumer.tail()
            return ids <= {id for each in self.effects().values() for _, id in each}

        until(done, within=PATIENCE + len(ids) * TAKES * 2, what="all effects", every=0.1)

    def close(self) -> None:
        for consumer in self.consumers:
            assert consumer.stop() == 0, consumer.tail()
