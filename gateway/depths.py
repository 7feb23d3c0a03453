"""How much the queues hold, for GET /v1/queues: the broker's word, and the consumers' where it has none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import structlog

from forebay.brokers.api import Broker, Depth
from forebay.brokers.naming import dead_letter_queue
from forebay.errors import BrokerUnavailable, QueueNotFound
from forebay.figures import Place, Reported, complete_queue, lacks
from gateway.asking import NoAnswer, Questions

if TYPE_CHECKING:
    from forebay.storage.database import Database
    from forebay.storage.reports import LeftBehind

log = structlog.get_logger()

TIMEOUT = 3.0


async def queue_depths(broker: Broker, questions: Questions, queues: Sequence[str]) -> list[dict[str, Any]]:
    """
    One document per queue. The database is asked only for what the broker cannot tell.

    Raises:
        BrokerError
    """
    looked = await asyncio.gather(*(_look(broker, queue) for queue in queues))
    reports: dict[Place, Reported] | str = {}
    if any(lacks(live) or lacks(dead) for live, dead in looked):
        reports = await _reports(broker, questions)
    return [
        {"name": queue} | complete_queue((broker.identity, queue), live, dead, reports).as_json()
        for queue, (live, dead) in zip(queues, looked, strict=True)
    ]


async def _look(broker: Broker, queue: str) -> tuple[Depth, Depth | None]:
    try:
        async with asyncio.timeout(TIMEOUT):
            live = await broker.depth(queue)
            try:
                return live, await broker.depth(dead_letter_queue(queue))
            except QueueNotFound:
                return live, None
    except TimeoutError:
        raise BrokerUnavailable("no answer in time") from None


async def _reports(broker: Broker, questions: Questions) -> dict[Place, Reported] | str:
    def read(database: Database) -> dict[Place, Reported]:
        from forebay.storage.reports import read_reports

        return read_reports(database, [broker.identity])

    try:
        return await questions.ask(read)
    except NoAnswer as error:
        return f"the consumers' reports are in the database: {error}"


async def warn_of_left_behind(broker: Broker, questions: Questions, drained: Sequence[str]) -> None:
    """Say so in the log if another broker still held messages and nobody looks after them."""

    def read(database: Database) -> list[LeftBehind]:
        from forebay.storage.reports import left_behind

        return left_behind(database, known=[broker.identity], urls=drained)

    try:
        found = await questions.ask(read)
    except NoAnswer:
        return  # The consumers, who cannot do without the database, look too.
    for left in found:
        log.warning(left.sentence, setting=left.setting)
