"""
Order by key through failures, with real processes: shared by the system test (a cut) and `make soak`.

Two consumers of one queue, one of which is killed again and again, and a handler that fails at random:
5 % of its calls are to be tried again, 1 % of the messages are rejected, and now and then its
destination is away. It writes down which message took effect, numbered by the database in the same
transaction. An inversion is an effect of a key with a smaller number than one before it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import SecretStr

from forebay.brokers.api import Broker
from forebay.brokers.factory import open_broker
from forebay.brokers.settings import BrokerSettings
from forebay.ids import new_id
from forebay.message import Message
from tests.system.harness import Process, Site

QUEUE = "orders"

HANDLER = """
import json
import os
import random
import zlib

from sqlalchemy import Connection, text

from forebay import Message, Reject, RetryLater, Unavailable

INSERT = text("insert into effects (key, n, pid) values (:key, :n, :pid)")


def handle(message: Message, db: Connection) -> None:
    if zlib.crc32(message.body) % 100 == 0:
        raise Reject("one of a hundred")
    roll = random.random()
    if roll < 0.0003:
        raise Unavailable("away for a moment")
    if roll < 0.025:
        raise RetryLater(0.1)
    if roll < 0.05:
        raise RuntimeError("failed at random")
    body = json.loads(message.body)
    db.execute(INSERT, {"key": body["key"], "n": body["n"], "pid": os.getpid()})
"""

SETTINGS = {
    "QUEUE_DEFAULTS__ORDER": "key",
    "QUEUE_DEFAULTS__HANDLER": "ordered_handler:handle",
    "QUEUE_DEFAULTS__RETRY__BASE": "0.1s",
    "QUEUE_DEFAULTS__RETRY__CAP": "0.4s",
    "QUEUE_DEFAULTS__RETRY__MAX_ATTEMPTS": "30",
    "QUEUE_DEFAULTS__BREAKER__RECOVERY_TIME": "0.1s",
    "BROKER__SQLITE__LEASE": "5s",
    "BROKER__KAFKA__SESSION_TIMEOUT": "6s",
    "BROKER__KAFKA__PARTITIONS": "6",
}


@dataclass(kw_only=True)
class Outcome:
    """What the run did and what it left behind."""

    messages: int
    keys: int
    rejected: int
    """So many the handler does not want: these must be dead, and no other."""
    kills: int = 0
    seconds: float = 0.0
    effects: int = 0
    inversions: int = 0
    twice: int = 0
    """Messages with more than one effect."""
    lost: int = 0
    """Messages that are neither an effect nor dead."""
    dead: int = 0
    workers: int = 0
    """Processes that took part."""


def run(
    site: Site, broker_url: str, *, count: int, keys: int, kills: int, seed: int = 1, within: float = 120.0
) -> Outcome:
    """Publish `count` messages over `keys` keys and have them handled; return when all is quiet."""
    site.settings |= {**SETTINGS, "BROKER__URL": broker_url}
    site.queues = QUEUE
    (site.folder / "ordered_handler.py").write_text(HANDLER)
    site.sql("create table effects (seq bigserial primary key, key text, n integer, pid integer)")
    bodies = _bodies(count, keys, random.Random(seed))
    wanted = [body for body in bodies if zlib.crc32(body) % 100]
    outcome = Outcome(messages=count, keys=keys, rejected=count - len(wanted))
    half = count // 2
    asyncio.run(_publish(broker_url, bodies[:half]))
    began = time.monotonic()
    victim, other = site.consumer(QUEUE), site.consumer(QUEUE)
    asyncio.run(_publish(broker_url, bodies[half:]))
    for number in range(kills):
        _until_effects(site, other, round(len(wanted) * (number + 1) / (kills + 2)), within)
        victim.kill()
        outcome.kills += 1
        victim = site.consumer(QUEUE)
    _until_effects(site, other, len(wanted), within)
    query = f"select count(*) from dead_letters where queue = '{QUEUE}'"
    other.until(
        lambda: int(site.sql(query)[0][0]) >= outcome.rejected,
        within=within, what="the dead letters", every=0.5,
    )  # fmt: skip
    outcome.seconds = time.monotonic() - began
    for process in (victim, other):
        assert process.stop() == 0, process.tail()
    _take_stock(site, bodies, outcome)
    return outcome


def check(outcome: Outcome) -> None:
    assert outcome.inversions == 0, outcome
    assert (outcome.lost, outcome.twice, outcome.dead) == (0, 0, outcome.rejected), outcome
    assert outcome.workers >= 2 + outcome.kills, outcome


def _bodies(count: int, keys: int, rng: random.Random) -> list[bytes]:
    next_of = dict.fromkeys(range(keys), 0)
    out: list[bytes] = []
    for _ in range(count):
        key = rng.randrange(keys)
        out.append(json.dumps({"key": f"k{key}", "n": next_of[key]}).encode())
        next_of[key] += 1
    return out


async def _publish(url: str, bodies: list[bytes]) -> None:
    settings = BrokerSettings.model_validate({"url": SecretStr(url), "kafka": {"partitions": 6}})
    async with open_broker(settings) as broker:
        await broker.declare(QUEUE)
        for start in range(0, len(bodies), 500):
            await _publish_batch(broker, bodies[start : start + 500])


async def _publish_batch(broker: Broker, bodies: list[bytes]) -> None:
    batch = [
        Message(id=new_id(), body=body, accepted_at=datetime.now(UTC), key=json.loads(body)["key"])
        for body in bodies
    ]
    for result in await broker.publish(QUEUE, batch, timeout=60):
        assert result.error is None, result.error


def _until_effects(site: Site, process: Process, count: int, within: float) -> None:
    process.until(
        lambda: int(site.sql("select count(*) from effects")[0][0]) >= count,
        within=within, what=f"{count} effects", every=0.2,
    )  # fmt: skip


def _take_stock(site: Site, bodies: list[bytes], outcome: Outcome) -> None:
    last: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    rows = site.sql("select key, n from effects order by seq")
    for key, n in rows:
        if (key, n) in seen:
            outcome.twice += 1
            continue
        seen.add((key, n))
        outcome.inversions += n < last.get(key, -1)
        last[key] = max(n, last.get(key, -1))
    outcome.effects = len(rows)
    dead = [bytes(row[0]) for row in site.sql(f"select body from dead_letters where queue = '{QUEUE}'")]
    outcome.dead = len(dead)
    ended = seen | {(body["key"], body["n"]) for body in map(json.loads, dead)}
    outcome.lost = len({(body["key"], body["n"]) for body in map(json.loads, bodies)} - ended)
    outcome.workers = int(site.sql("select count(distinct pid) from effects")[0][0])
