"""The queues as operators see them: how much each holds, and what was said about it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from typing import Any

from forebay.admin.work import Line
from forebay.brokers.api import Broker, Depth
from forebay.brokers.naming import dead_letter_queue
from forebay.errors import BrokerError, QueueNotFound
from forebay.figures import complete_queue
from forebay.storage import controls
from forebay.storage.controls import Control
from forebay.storage.database import Database
from forebay.storage.reports import read_reports, reported_queues


def known_queues(database: Database, named: Iterable[str]) -> list[str]:
    """Those of the settings, and all that any consumer or operator ever spoke of."""
    return sorted({*named, *reported_queues(database), *controls.read(database)})


def shown_control(control: Control) -> dict[str, Any]:
    names = ("queue", "paused", "paused_by", "reason", "rate", "allowance", "changed_at", "changed_by")
    return {name: getattr(control, name) for name in names}


async def look(database: Database, line: Line, named: Iterable[str]) -> list[dict[str, Any]]:
    """Each queue with its figures; where the broker does not answer these are null, with the reason."""
    names = await asyncio.to_thread(known_queues, database, named)
    said = await asyncio.to_thread(controls.read, database)
    broker = line.broker
    reports = await asyncio.to_thread(read_reports, database, [broker.identity]) if broker else {}
    found = []
    for name in names:
        live, dead = await _depths(broker, name, line.why)
        place = (broker.identity if broker else "", name)
        figures = complete_queue(place, live, dead, reports)
        control = shown_control(said.get(name, Control(queue=name)))
        found.append({"name": name} | figures.as_json() | {"control": control})
    return found


async def _depths(broker: Broker | None, queue: str, why: str) -> tuple[Depth, Depth | None]:
    if broker is None:
        return dataclasses.replace(_UNKNOWN, unknown=f"the broker cannot be reached: {why}"), None
    try:
        live = await broker.depth(queue)
    except QueueNotFound:
        return dataclasses.replace(_UNKNOWN, unknown="it is not on the broker yet"), None
    except BrokerError as error:
        return dataclasses.replace(_UNKNOWN, unknown=str(error)), None
    try:
        return live, await broker.depth(dead_letter_queue(queue))
    except BrokerError:
        return live, None


_UNKNOWN = Depth(waiting=None, scheduled=None, in_hand=None, bytes=None, oldest_age=None)
