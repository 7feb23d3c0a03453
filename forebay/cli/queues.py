"""`forebay queues`: how much waits where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forebay.cli._common import BrokerUrlOption, ConfigOption, DatabaseUrlOption, JsonOption, run
from forebay.cli._depths import QueueDepth, known_queues, look, open_brokers, reasons, with_reports
from forebay.cli._output import duration, emit_json, emit_table, note, size, warn
from forebay.cli._settings import read_settings
from forebay.figures import QueueFigures, total

if TYPE_CHECKING:
    from forebay.settings import Settings


def queues(
    broker_url: BrokerUrlOption = None,
    database_url: DatabaseUrlOption = None,
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
    oldest     since the oldest of these was accepted

    What a broker cannot tell is what its consumers last reported in the database, with
    the age of that report, or a dash. Brokers in broker.drain are listed too.
    """
    settings = read_settings(config, broker_url=broker_url, database_url=database_url)
    depths, unreached = run(_look(settings))
    for text in unreached:
        warn(text)
    if as_json:
        emit_json([depth.as_json() for depth in depths])
        return
    if not depths:
        note("there are no queues; add one: FOREBAY_QUEUE_NAMES=orders, or queue_names in forebay.toml")
        return
    _print(depths)
    for depth in depths:
        if not depth.declared:
            note(f"{depth.queue} is in the settings but not on the broker yet; `forebay gateway` creates it")

    for reason, names in reasons(depths).items():
        note(f"– is not known ({', '.join(names)}): {reason}")


async def _look(settings: Settings) -> tuple[list[QueueDepth], list[str]]:
    async with open_brokers(settings) as brokers:
        depths = await look(brokers, await known_queues(brokers, settings.queues))
        return await with_reports(depths, settings), brokers.unreached


def _print(depths: Sequence[QueueDepth]) -> None:
    columns = ["queue", "waiting", "scheduled", "in hand", "dead", "bytes", "oldest"]
    rows = [_row(depth) for depth in depths]
    if any(depth.figures and depth.figures.reported for depth in depths):
        columns.append("reported")
        for row, depth in zip(rows, depths, strict=True):
            row.append(_source(depth.figures))
    if any(depth.draining for depth in depths):
        columns.append("broker")
        for row, depth in zip(rows, depths, strict=True):
            row.append(f"{depth.broker}{' (draining)' if depth.draining else ''}")
    emit_table(columns, rows)


def _source(figures: QueueFigures | None) -> str | None:
    if figures is None or figures.reported_age is None:
        return None
    return f"{', '.join(figures.reported)}: {duration(figures.reported_age)} ago"


def _row(of: QueueDepth) -> list[object]:
    depth, dead = of.depth, total(of.dead)
    if depth is None:
        return [of.queue, None, None, None, dead, None, None]
    return [
        of.queue,
        depth.waiting,
        depth.scheduled,
        depth.in_hand,
        dead,
        size(depth.bytes),
        duration(depth.oldest_age),
    ]
