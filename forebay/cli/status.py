"""`forebay status`: is it fine, what is behind, when is it drained."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli._common import (
    BrokerUrlOption,
    ConfigOption,
    DatabaseUrlOption,
    JsonOption,
    log_to_stderr,
    run,
)
from forebay.cli._exit import ExitCode
from forebay.cli._facts import Facts, QueueFacts, facts
from forebay.cli._looks import Looker
from forebay.cli._output import duration, emit, emit_json, emit_table, warn
from forebay.cli._settings import read_settings
from forebay.cli._values import seconds
from forebay.cli._verdict import Verdict, judge

if TYPE_CHECKING:
    from forebay.settings import Settings

KINDS = {
    "amqp": "RabbitMQ",
    "amqps": "RabbitMQ",
    "kafka": "Kafka",
    "mariadb": "MariaDB",
    "mysql": "MySQL",
    "postgresql": "PostgreSQL",
}
"""What is behind a URL, by its scheme."""

CLEAR = "\x1b[H\x1b[J"


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again until Ctrl-C.")] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval", parser=seconds, metavar="DURATION", show_default="1s", help="Between the two looks."
        ),
    ] = 1.0,
    broker_url: BrokerUrlOption = None,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Is it fine, what is behind, and when is it drained.

    Examples:
      forebay status
      forebay status --watch --interval 5s

    Asks the broker, the database, the gateways and the consumers, each for itself: whatever does
    not answer is named, and the others are shown. It looks twice, so that it can tell catching up
    from standing still. Whom it asks: [status] of the settings (docs/observability.md).

    in, out     messages per second, as gateways and consumers count them
    drained in  at the pace just seen; full in: until the broker takes no more, at that pace
    –           nobody knows

    Exit codes: 0 fine or catching up, 1 not, 6 broker and 7 database unreachable; 0 when
    --watch is ended with Ctrl-C.
    """
    settings = read_settings(config, broker_url=broker_url, database_url=database_url)
    log_to_stderr("error")  # What does not answer is in the picture itself.
    try:
        code = run(_status(settings, max(interval, 0.1), watch, as_json))
    except KeyboardInterrupt:
        if not watch:
            raise
        code = ExitCode.OK  # That is how one leaves.
    if code is not ExitCode.OK:
        raise typer.Exit(code)


async def _status(settings: Settings, interval: float, watch: bool, as_json: bool) -> ExitCode:
    from forebay.brokers.factory import room

    told = partial(
        facts,
        broker=_kind(settings.broker.url, "the embedded queue"),
        database=_kind(settings.database.url, "SQLite"),
        in_database=lambda queue: settings.queue(queue).sink in ("database", "table", "python"),
        room=lambda of_queue, of_all: room(settings.broker, of_queue=of_queue, of_all=of_all),
    )
    async with Looker(settings) as looker:
        before = await looker.look()
        while True:
            await asyncio.sleep(interval)
            after, now = await looker.look(), datetime.now(UTC)
            found = told(before, after, now=now)
            verdict = judge(found, now=now, advice=_advice(settings))
            _show(verdict, found, as_json=as_json, watch=watch)
            if not watch:
                return _code(verdict, found)
            before = after


def _kind(url: Any, otherwise: str) -> str:
    scheme = url.get_secret_value().partition(":")[0].lower() if url is not None else ""
    return KINDS.get(scheme.partition("+")[0], otherwise)


def _code(verdict: Verdict, found: Facts) -> ExitCode:
    if found.broker_trouble or found.unreached:
        return ExitCode.BROKER_UNREACHABLE
    if found.database_trouble:
        return ExitCode.DATABASE_UNREACHABLE
    return ExitCode.OK if verdict.ok else ExitCode.FAILED


def _advice(settings: Settings) -> str:
    """What to do when nothing moves although the database, where we know it, has just answered."""
    consumer = settings.consumer
    if consumer.health_port:
        host = f"[{consumer.health_host}]" if ":" in consumer.health_host else consumer.health_host
        page = f"http://{host}:{consumer.health_port}/readyz?verbose (on its host)"
    else:
        page = "/readyz?verbose, if it was started with --port"
    asked = (
        "The database was not asked: database.url is not set here."
        if settings.database.url is None
        else "The database answers."
    )
    return f"Then its log says why it waits, and so does its {page}. {asked}"


def _show(verdict: Verdict, found: Facts, *, as_json: bool, watch: bool) -> None:
    if as_json:
        emit_json(_as_json(verdict, found))
        return
    if watch and sys.stdout.isatty():
        sys.stdout.write(CLEAR)
    emit(verdict.sentence)
    for part, why in _details(found):
        # In a picture that is drawn again and again it would be overwritten, or stay behind.
        emit(f"{part}: {why}") if watch else warn(f"{part}: {why}")
    rows = [_row(q) for q in found.queues if watch or _shown(q)]
    if rows:
        emit()
        emit_table(
            (
                "queue", "waiting", "retrying", "dead", "in", "out", "oldest", "drained in", "full in", "",
            ),
            rows,
            plain=True,
        )  # fmt: skip
    if watch:
        emit()
    sys.stdout.flush()


def _details(found: Facts) -> list[tuple[str, str]]:
    """What those said that do not answer, in their own words, one line each."""
    parts = [(found.broker, found.broker_trouble), (found.database, found.database_trouble)]
    for asked in (found.gateways, found.consumers):
        parts += asked.silent if asked.named else ()
    return [(part, " ".join(why.split())) for part, why in parts if why]


def _shown(q: QueueFacts) -> bool:
    return (q.waiting, q.retrying, q.dead, q.pause) != (0, 0, 0, None) or bool(q.coming or q.leaving)


def _row(q: QueueFacts) -> tuple[object, ...]:
    notes = [
        f"{q.journaled:,} in journals" if q.journaled else "",
        f"seen {duration(q.seen_ago)} ago" if q.seen_ago is not None else "",
        "paused" if q.pause else "",
    ]
    return (
        q.label,
        q.waiting,
        q.retrying,
        q.dead,
        _rate(q.coming),
        _rate(q.leaving),
        None if q.oldest is None else duration(q.oldest),
        None if q.drained_in is None else duration(q.drained_in),
        None if q.full_in is None else duration(q.full_in),
        ", ".join(note for note in notes if note),
    )


def _rate(change: float | None) -> str | None:
    return None if change is None else f"{change:,.1f}/s"


def _as_json(verdict: Verdict, found: Facts) -> dict[str, Any]:
    return {
        "ok": verdict.ok,
        "sentence": verdict.sentence,
        "dead_letters": found.dead_letters,
        "journaled": found.journaled,
        "broker": {"kind": found.broker, "trouble": found.broker_trouble or None},
        "database": {"kind": found.database, "trouble": found.database_trouble or None},
        "unreached": list(found.unreached),
        "gateways": [{"address": p.address, "ready": p.ready} for p in found.gateways.processes],
        "consumers": [{"address": p.address, "ready": p.ready} for p in found.consumers.processes],
        "silent": dict((*found.gateways.silent, *found.consumers.silent)),
        "consumers_reporting": found.consumers_alive,
        "queues": [q.as_json() for q in found.queues],
    }
