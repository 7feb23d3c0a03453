"""`forebay verify`: the proof that everything sent has arrived, from the sender's own record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import islice
from pathlib import Path
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
from forebay.cli._depths import Brokers, look, open_brokers
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import emit, emit_json, emit_table, note, progress, warn
from forebay.cli._settings import read_settings
from forebay.cli._values import seconds
from forebay.errors import BrokerUnavailable, SettingsError, SinkUnavailable

if TYPE_CHECKING:
    from forebay.cli._output import Progress
    from forebay.ledger import Accountant, Ledger, Record, Sent
    from forebay.settings import Settings
    from forebay.storage.database import Database

Held = Callable[[], Awaitable[int | None]]
"""How much the queues hold now; None when that cannot be told."""

_BATCH = 5_000
_SHOWN = 10
_BETWEEN_LOOKS = 0.5


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by `forebay send --record`.")],
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            parser=seconds,
            metavar="DURATION",
            show_default=False,
            help="Look again until nothing is missing or this time is over.",
        ),
    ] = 0.0,
    broker_url: BrokerUrlOption = None,
    database_url: DatabaseUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """
    Prove that everything sent has arrived, exactly once and unchanged.

    Examples:
      forebay send flights --ndjson flights.ndjson --record sent.txt
      forebay verify sent.txt --wait 1m

    recorded    different messages in FILE (id and digest of the body)
    stored      in the database with exactly those bytes
    done        handled: the once-only record has them, with that digest
    dead        given up; see `forebay dead-letters list`
    discarded   given up, and let go by an operator
    waiting     missing in the database, and the queues hold that many: an estimate,
                since other senders' messages wait there too
    lost        missing beyond all that the queues hold
    duplicated  counted once above, but in effect at two places: stored and handled,
                handled under two destinations, stored and still open among the dead
                letters, or stored under its own id and another. (Two rows with one
                id in one table are ruled out by the primary key.)
    altered     the id is there, the bytes are others

    Two bodies recorded under one id are two messages: one is stored, the other one
    rests among the dead letters as `idempotency-conflict`, and is counted there.

    Exit codes: 0 it adds up, 1 something is lost, duplicated or altered (with --wait
    also: something still waits).
    """
    from forebay.ledger import read_record

    try:
        with file.open("rb") as lines:
            record = read_record(lines)
    except OSError as error:
        # Not exit code 1, which says that something is lost.
        text = f"{file}: {error.strerror}; give the file that `forebay send --record` wrote"
        raise CommandError(text, ExitCode.USAGE) from error
    if not record.sent:
        if record.unreadable:
            raise CommandError(
                f"{file} is not a record of `forebay send --record`: its lines are not 'id sha256 queue'",
                ExitCode.USAGE,
            )
        raise CommandError(f"{file} is empty: nothing was recorded, so nothing is proved", ExitCode.USAGE)
    settings = read_settings(config, broker_url=broker_url, database_url=database_url)
    with open_database(settings) as database:
        ledger, blind = run(_verify(settings, database, record, wait))
    if as_json:
        emit_json(_as_json(record, ledger))
    else:
        _print(record, ledger)
    _conclude(record, ledger, blind, waited=wait > 0)


async def _verify(settings: Settings, database: Database, record: Record, wait: float) -> tuple[Ledger, str]:
    """The ledger at the end, and why the queues could not be asked, if so."""
    async with AsyncExitStack() as stack:
        held: Held = _nobody_tells
        blind = ""
        try:
            brokers = await stack.enter_async_context(open_brokers(settings))
        except (BrokerUnavailable, CommandError, SettingsError) as error:
            blind = str(error)
        else:
            blind = "; ".join(brokers.unreached)
            if not blind:
                held = partial(_held, settings, brokers, record.queues)
        deadline = time.monotonic() + wait
        await _wait(held, database, record, deadline)
        with progress("comparing", len(record.sent)) as bar:
            return await _compare(held, database, record, record.sent, bar), blind


async def _wait(held: Held, database: Database, record: Record, deadline: float) -> None:
    """Return when nothing is missing, when what is missing cannot come any more, or at the deadline."""
    missing: Sequence[Sent] = record.sent
    looks_without_hope = 0
    with progress("waiting", len(record.sent)) as bar:
        while time.monotonic() < deadline:
            try:
                ledger = await _compare(held, database, record, missing, bar, count=False)
            except (SinkUnavailable, BrokerUnavailable) as error:
                bar.describe(f"waiting ({error})")
            else:
                missing, before = ledger.missing, len(missing)
                bar.advance(before - len(missing))
                # Two empty looks, not one: a redrive may move a message past a single one.
                looks_without_hope = looks_without_hope + 1 if ledger.held == 0 else 0
                if not missing or looks_without_hope == 2:
                    return
            await asyncio.sleep(_BETWEEN_LOOKS)


async def _compare(
    held: Held,
    database: Database,
    record: Record,
    messages: Sequence[Sent],
    bar: Progress,
    *,
    count: bool = True,
) -> Ledger:
    from forebay.ledger import Accountant

    accountant = Accountant(record.shared, held=await held())
    for batch in _batches(messages):
        await asyncio.to_thread(_look_up, database, accountant, batch)
        if count:
            bar.advance(len(batch))
    return accountant.ledger


def _look_up(database: Database, accountant: Accountant, batch: Sequence[Sent]) -> None:
    from forebay.storage.queries import digests

    places = digests(database, [m.id for m in batch])
    elsewhere = accountant.elsewhere(batch, places)
    if elsewhere:
        places |= digests(database, elsewhere)
    accountant.add(batch, places)


async def _held(settings: Settings, brokers: Brokers, queues: Sequence[str]) -> int | None:
    """
    What the queues of the record hold together, on all brokers and in the journals of this host; None
    when that cannot be told.

    Consumers' reports are too old for this: what one of them has just received is not in them.
    """
    held = 0
    for depth in await look(brokers, queues):
        if depth.held is None:
            return None
        held += depth.held
    if settings.gateway.journal is not None:
        from forebay.journal.looking import waiting
        from forebay.wiring import journal_opener

        held += await waiting(settings.gateway.journal, journal_opener(settings, create=False), queues)
    return held


async def _nobody_tells() -> int | None:
    return None


def _batches(messages: Sequence[Sent]) -> Iterator[list[Sent]]:
    rest = iter(messages)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _as_json(record: Record, ledger: Ledger) -> dict[str, Any]:
    return {
        "adds_up": ledger.adds_up,
        "recorded": ledger.recorded,
        "lines": record.lines,
        "unreadable_lines": len(record.unreadable),
        "stored": ledger.stored,
        "done": ledger.done,
        "dead": ledger.dead,
        "discarded": ledger.discarded,
        "conflicts": ledger.conflicts,
        "waiting": ledger.waiting,
        "waiting_is_estimate": True,
        "held_by_queues": ledger.held,
        "lost": ledger.lost,
        "duplicated": len(ledger.duplicated),
        "altered": len(ledger.altered),
        "attempts": {str(n): count for n, count in sorted(ledger.attempts.items())},
        "max_attempts": max(ledger.attempts, default=0),
        "stored_after_more_than_one_attempt": _repeated(ledger),
        "missing_ids": [m.id for m in ledger.missing[:_SHOWN]],
        "duplicated_ids": [m.id for m in ledger.duplicated[:_SHOWN]],
        "altered_ids": [m.id for m in ledger.altered[:_SHOWN]],
    }


def _repeated(ledger: Ledger) -> int:
    return sum(count for attempts, count in ledger.attempts.items() if attempts > 1)


def _print(record: Record, ledger: Ledger) -> None:
    again = record.lines - ledger.recorded
    held = "the queues cannot tell" if ledger.held is None else f"the queues hold {ledger.held}"
    rows: list[tuple[str, int, str]] = [
        ("recorded", ledger.recorded, f"{again} recorded more than once" if again else ""),
        ("stored", ledger.stored, ""),
        ("done", ledger.done, ""),
        ("dead", ledger.dead, f"{ledger.conflicts} under a conflict's id" if ledger.conflicts else ""),
        ("discarded", ledger.discarded, ""),
        ("waiting", ledger.waiting, f"estimate: {held}"),
        ("lost", ledger.lost, ""),
        ("duplicated", len(ledger.duplicated), ""),
        ("altered", len(ledger.altered), ""),
    ]
    emit_table(("figure", "messages", ""), rows)
    if ledger.attempts:
        emit()
        emit(
            f"attempts of the stored: at most {max(ledger.attempts)};"
            f" {_repeated(ledger)} needed more than one"
        )
        if _repeated(ledger):
            emit(", ".join(f"{n}: {count}" for n, count in sorted(ledger.attempts.items())))


def _conclude(record: Record, ledger: Ledger, blind: str, *, waited: bool) -> None:
    if record.unreadable:
        warn(
            f"{len(record.unreadable)} lines are no record (the first is line {record.unreadable[0]}):"
            " a sender was killed while it wrote; send again with the same --key-prefix to complete it"
        )
    for what, messages in (("duplicated", ledger.duplicated), ("altered", ledger.altered)):
        if messages:
            note(f"{what}: {_ids(messages)}")
    if ledger.missing:
        note(f"missing: {_ids(ledger.missing)}")
    if ledger.missing and blind:
        raise CommandError(
            f"{len(ledger.missing)} messages are not in the database; the queues cannot be asked: {blind}",
            ExitCode.BROKER_UNREACHABLE,
        )
    if not ledger.adds_up:
        raise CommandError("it does not add up; look at one with: forebay message ID")
    if ledger.waiting and waited:
        raise CommandError(f"{ledger.waiting} messages still wait when the time is over; see: forebay status")
    if ledger.waiting:
        note(f"it adds up so far; {ledger.waiting} messages still wait (--wait 1m looks until they arrived)")
    else:
        note("it adds up: every message is accounted for")


def _ids(messages: Sequence[Sent]) -> str:
    more = f" and {len(messages) - _SHOWN} more" if len(messages) > _SHOWN else ""
    return ", ".join(m.id for m in messages[:_SHOWN]) + more
