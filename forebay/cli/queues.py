"""`forebay queues`: how much waits where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forebay.cli._common import BrokerUrlOption, ConfigOption, JsonOption, open_broker, run
from forebay.cli._depths import QueueDepth, known_queues, look, total
from forebay.cli._output import duration, emit_json, emit_table, note, size
from forebay.cli._settings import read_settings

if TYPE_CHECKING:
    from forebay.settings import Settings


def queues(
    broker_url: BrokerUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    List the queues and how much waits in each.

    Examples:
      forebay queues
      forebay queues --json

    waiting    can be received now
    scheduled  wait for their time: delayed, or between two attempts
    in hand    on loan to a consumer
    dead       given up and not yet archived in the database (`forebay dead-letters list`)
    A dash is something the broker cannot tell.
    """
    depths = run(_look(read_settings(config, broker_url=broker_url)))
    if as_json:
        emit_json([depth.as_json() for depth in depths])
        return
    if not depths:
        note("there are no queues; add one: FOREBAY_QUEUE_NAMES=orders, or queue_names in forebay.toml")
        return
    emit_table(
        ("queue", "waiting", "scheduled", "in hand", "dead", "bytes", "oldest"), [_row(d) for d in depths]
    )
    for depth in depths:
        if not depth.declared:
            note(f"{depth.queue} is in the settings but not on the broker yet; `forebay gateway` creates it")


async def _look(settings: Settings) -> list[QueueDepth]:
    async with open_broker(settings) as broker:
        return await look(broker, await known_queues(broker, settings.queues))


def _row(of: QueueDepth) -> tuple[object, ...]:
    depth, dead = of.depth, total(of.dead)
    if depth is None:
        return of.queue, None, None, None, dead, None, None
    return (
        of.queue,
        depth.waiting,
        depth.scheduled,
        depth.in_hand,
        dead,
        size(depth.bytes),
        duration(depth.oldest_age),
    )
