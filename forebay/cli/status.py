"""`forebay status`: is it fine, what is behind, when is it drained."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli._common import (
    BrokerUrlOption,
    ConfigOption,
    DatabaseUrlOption,
    JsonOption,
    open_database,
    run,
)
from forebay.cli._depths import Brokers, QueueDepth, known_queues, look, open_brokers, with_reports
from forebay.cli._exit import ExitCode
from forebay.cli._output import duration, emit, emit_json, emit_table
from forebay.cli._settings import read_settings
from forebay.cli._values import seconds
from forebay.errors import ForebayError
from forebay.figures import total

if TYPE_CHECKING:
    from forebay.settings import Settings
    from forebay.storage.database import Database


_FRESH = 5.0
"""Seconds; younger than this a message is on its way rather than behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """One queue between two looks."""

    queue: str
    """With its broker, if that is an old one."""
    due: int | None
    """What could be worked on: waiting or in hand. None: the broker cannot tell."""
    scheduled: int | None
    change: float | None
    """Messages per second; negative while the queue drains."""
    dead: int | None = 0
    unknown: str = ""
    """Why a figure is None."""
    reported_age: float | None = None
    """Seconds since the consumers reported what the broker cannot tell."""
    fresh: bool = False
    """All of it was accepted a moment ago: messages pass through, nothing is behind."""

    @property
    def name(self) -> str:
        """The queue alone."""
        return self.queue.split(" ")[0]

    @property
    def drained_in(self) -> float | None:
        """Seconds, at the pace just seen; None: not in sight."""
        if not self.due or self.change is None or self.change >= 0:
            return None
        return self.due / -self.change


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    ok: bool
    sentence: str


def trends(before: Sequence[QueueDepth], after: Sequence[QueueDepth], elapsed: float) -> list[Trend]:
    then = {depth.label: _due(depth) for depth in before}
    found = []
    for depth in after:
        was, now = then.get(depth.label), _due(depth)
        found.append(
            Trend(
                queue=depth.label,
                due=now,
                scheduled=depth.depth.scheduled if depth.depth else 0,
                change=None if was is None or now is None else (now - was) / elapsed,
                dead=total(depth.dead) if depth.dead else 0,
                fresh=_is_fresh(depth),
                unknown=depth.figures.unknown if depth.figures else "",
                reported_age=depth.figures.reported_age if depth.figures else None,
            )
        )
    return found


def _is_fresh(of: QueueDepth) -> bool:
    return of.depth is not None and of.depth.oldest_age is not None and of.depth.oldest_age < _FRESH


def _due(of: QueueDepth) -> int | None:
    if not of.declared:
        return 0
    if of.depth is None or of.depth.waiting is None:
        return None
    return of.depth.waiting + (of.depth.in_hand or 0)


def judge(
    queues: Sequence[Trend],
    *,
    database: str = "",
    unreached: Sequence[str] = (),
    dead_letters: int = 0,
    advice: str = "Then its log says why it waits.",
    paused: Mapping[str, str] | None = None,
) -> Verdict:
    """
    The one sentence. `database` is why it does not answer, if it does not; `unreached`
    says so of each old broker.

    `advice` is where to look when nothing moves: why a consumer waits, only it knows.
    `paused` says why nothing is taken from a queue, where somebody knows.

    Standing still is judged by a queue that has work and neither shrinks nor grows:
    with nobody sending, that is what a missing consumer looks like.
    """
    # On a queue that is paused nothing passes through, however fresh it is.
    behind = [t for t in queues if t.due and (not t.fresh or t.name in (paused or {}))]
    waiting = sum(trend.due or 0 for trend in behind)
    dead = f" {_messages(dead_letters)} given up: forebay dead-letters list" if dead_letters else ""
    names = ", ".join(trend.queue for trend in behind)
    if database:
        # Also what came a moment ago: nothing of it can be on its way.
        waiting = sum(trend.due or 0 for trend in queues)
        held = f"{_messages(waiting)} wait safely until it is back" if waiting else "nothing waits yet"
        return Verdict(ok=False, sentence=f"The database does not answer ({database}); {held}.{dead}")
    if unreached:
        more = judge(queues, dead_letters=dead_letters, advice=advice).sentence
        return Verdict(ok=False, sentence=f"What waits is not all known: {'; '.join(unreached)}. {more}")
    if not behind:
        later = sum(trend.scheduled or 0 for trend in queues)
        rest = f"; {_messages(later)} wait for their time" if later else ""
        blind = [trend for trend in queues if trend.due is None]
        if blind:
            names = ", ".join(trend.queue for trend in blind)
            return Verdict(
                ok=False, sentence=f"Not known: how much waits on {names} ({blind[0].unknown}){rest}.{dead}"
            )
        return Verdict(ok=True, sentence=f"Fine: nothing is behind{rest}.{dead}")
    # A report may be some seconds old: what shrinks is not paused any more.
    resting = {trend.name for trend in behind if trend.change is None or trend.change >= 0}
    reasons = {queue: why for queue, why in (paused or {}).items() if queue in resting}
    if reasons:
        which = "; ".join(f"{queue} is paused: {why}" for queue, why in reasons.items())
        return Verdict(
            ok=False,
            sentence=f"Paused: {_messages(waiting)} waiting on {names}. {_sentence(which)}"
            f" Nothing is lost and no attempt is counted.{dead}",
        )
    stuck = [trend for trend in behind if trend.change == 0]
    growing = [trend for trend in behind if trend.change is not None and trend.change > 0]
    if stuck:
        which = ", ".join(trend.queue for trend in stuck)
        still = _messages(sum(trend.due or 0 for trend in stuck))
        return Verdict(
            ok=False,
            sentence=f"Standing still: {still} on {which}, and none moves. Does a consumer run?"
            f" {advice}{dead}",
        )
    if growing:
        which = ", ".join(trend.queue for trend in growing)
        rate = sum(trend.change or 0.0 for trend in growing)
        return Verdict(
            ok=False,
            sentence=f"Falling behind: {_messages(waiting)} on {names};"
            f" {which} grows by {rate:,.0f}/s.{dead}",
        )
    ends = [trend.drained_in for trend in behind]
    known = [end for end in ends if end is not None]
    when = f"drained in about {duration(max(known))}" if known and len(known) == len(ends) else "draining"
    return Verdict(ok=True, sentence=f"Catching up: {_messages(waiting)} on {names}, {when}.{dead}")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _messages(count: int) -> str:
    return f"{count:,} message" + ("" if count == 1 else "s")


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

    Looks at the queues twice, so that it can tell catching up from standing still.
    Exit codes: 0 fine or catching up, 1 not, 6 broker and 7 database unreachable.
    """
    settings = read_settings(config, broker_url=broker_url, database_url=database_url)
    code = run(_status(settings, max(interval, 0.1), watch, as_json))
    if code is not ExitCode.OK:
        raise typer.Exit(code)


async def _status(settings: Settings, interval: float, watch: bool, as_json: bool) -> ExitCode:
    with _database(settings) as database:
        async with open_brokers(settings) as brokers:
            before, at = await _look(brokers, settings), time.monotonic()
            while True:
                await asyncio.sleep(interval)
                after, now = await _look(brokers, settings), time.monotonic()
                trouble, dead, paused = await asyncio.to_thread(_ask_database, database)
                found = trends(before, after, now - at)
                verdict = judge(
                    found,
                    database=trouble,
                    unreached=brokers.unreached,
                    dead_letters=dead,
                    advice=_advice(settings),
                    paused=paused,
                )
                _show(verdict, found, dead, paused, as_json=as_json)
                if not watch:
                    if trouble:
                        return ExitCode.DATABASE_UNREACHABLE
                    if brokers.unreached:
                        return ExitCode.BROKER_UNREACHABLE
                    return ExitCode.OK if verdict.ok else ExitCode.FAILED
                before, at = after, now


async def _look(brokers: Brokers, settings: Settings) -> list[QueueDepth]:
    return await with_reports(await look(brokers, await known_queues(brokers, settings.queues)), settings)


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


def _database(settings: Settings) -> AbstractContextManager[Database | None]:
    """None where none is set: a gateway's host need not know the database."""
    if settings.database.url is None:
        return nullcontext()
    return open_database(settings)


def _ask_database(database: Database | None) -> tuple[str, int, dict[str, str]]:
    """Why it does not answer, how many dead letters are open in it, and which queues are paused and why."""
    from forebay.storage import controls
    from forebay.storage.dead_letters import DeadLetterFilter, DeadLetterStore
    from forebay.storage.reports import paused_queues

    if database is None:
        return "", 0, {}
    try:
        dead = DeadLetterStore(database).count(DeadLetterFilter(status="dead"))
        paused = {
            c.queue: f"{c.reason or 'no reason given'} ({c.changed_by}); to go on: forebay resume {c.queue}"
            for c in controls.read(database).values()
            if c.paused
        }
        return "", dead, {p.queue: p.reason for p in paused_queues(database)} | paused
    except ForebayError as error:
        return str(error), 0, {}


def _show(
    verdict: Verdict, found: Sequence[Trend], dead_letters: int, paused: Mapping[str, str], *, as_json: bool
) -> None:
    if as_json:
        emit_json(_as_json(verdict, found, dead_letters, paused))
        return
    emit(verdict.sentence)
    for queue, why in paused.items():
        if queue not in verdict.sentence:
            emit(f"{queue} is paused: {why}")
    rows = [
        (trend.queue, trend.due, trend.scheduled, _rate(trend.change), duration(trend.drained_in), trend.dead)
        for trend in found
        if (trend.due, trend.scheduled, trend.dead) != (0, 0, 0)
    ]
    if rows:
        emit()
        emit_table(("queue", "behind", "scheduled", "change", "drained in", "dead"), rows)


def _rate(change: float | None) -> str | None:
    return None if change is None else f"{change:+,.1f}/s"


def _as_json(
    verdict: Verdict, found: Sequence[Trend], dead_letters: int, paused: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "ok": verdict.ok,
        "sentence": verdict.sentence,
        "dead_letters": dead_letters,
        "queues": [
            {
                "queue": trend.queue,
                "behind": trend.due,
                "scheduled": trend.scheduled,
                "change_per_second": trend.change,
                "drained_in_seconds": trend.drained_in,
                "dead_on_broker": trend.dead,
                "reported_age": trend.reported_age,
                "unknown": trend.unknown,
                "pause_reason": paused.get(trend.name),
            }
            for trend in found
        ],
    }
