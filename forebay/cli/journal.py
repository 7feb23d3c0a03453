"""`forebay journal`: what gateways kept while their broker was away; looked at, repaired, drained."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forebay.cli._common import (
    BrokerUrlOption,
    ConfigOption,
    DryRunOption,
    JsonOption,
    require_url,
    run,
    usable,
)
from forebay.cli._exit import CommandError, ExitCode
from forebay.cli._output import duration, emit, emit_json, emit_table, note, progress, size, warn
from forebay.cli._settings import read_settings

if TYPE_CHECKING:
    from forebay.journal.files import JournalFile
    from forebay.journal.journal import Repaired
    from forebay.journal.looking import Status
    from forebay.settings import Settings

DirectoryOption = Annotated[
    Path | None,
    typer.Option("--directory", metavar="DIR", help="The journal's directory; else gateway.journal."),
]

NO_LIMIT = 2**62


def status(
    directory: DirectoryOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """
    List the journals: whose gateway lives, and what they hold.

    Examples:
      forebay journal status
      forebay journal status --directory /var/lib/forebay/journal --json

    owner      alive: a gateway has it, and drains it by itself. none: it waits for a gateway
               that shares the directory, or for `forebay journal drain`
    oldest     since the oldest message was accepted
    set aside  refused by the broker for good; `forebay journal export` shows them
    """
    settings = read_settings(config)
    found = run(_look(settings, _directory(settings, directory)))
    if as_json:
        emit_json([one.as_json() for one in found])
        return
    if not found:
        note("there are no journals; a gateway with gateway.journal makes one when it starts")
        return
    columns = ["journal", "owner", "messages", "bytes", "oldest", "set aside"]
    emit_table(columns, [_row(one) for one in found])
    for one in found:
        if one.trouble:
            warn(f"{one.file.name}: {one.trouble.splitlines()[0]}; run `forebay journal check`")


def check(
    directory: DirectoryOption = None,
    config: ConfigOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """
    Read each journal in full; repair what can be repaired.

    Examples:
      forebay journal check --dry-run
      forebay journal check

    A damaged file is moved to DIR/damaged as it is, and what can be read of it is put into a
    new one in its place. Journals whose gateway lives are left alone: it checks its own when it
    starts. Exit code 8 if messages could not be read, 1 if --dry-run found damage.
    """
    settings = read_settings(config)
    outcomes = run(_check(settings, _directory(settings, directory), dry_run))
    if as_json:
        emit_json([{"file": str(file.path), **found} for file, found in outcomes])
    else:
        for file, found in outcomes:
            emit(f"{file.name}: {_said(found)}")
    if any(found["unreadable"] or found["unplaced"] for _, found in outcomes):
        raise CommandError(
            "some messages could not be rescued; `sqlite3 FILE .recover` may find more in the damaged file",
            ExitCode.PARTLY_FAILED,
        )
    if dry_run and any(found["verdict"] == "damaged" for _, found in outcomes):
        raise CommandError("damage was found; without --dry-run it is repaired", ExitCode.FAILED)


def drain(
    directory: DirectoryOption = None,
    broker_url: BrokerUrlOption = None,
    config: ConfigOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """
    Publish what is in journals without a gateway to the broker.

    Examples:
      forebay journal drain --dry-run
      forebay journal drain --broker-url amqp://user@host/vhost
      forebay journal drain --json

    In order, each message confirmed before it is let go; interrupted, it goes on where it was.
    Messages that the broker refuses for good are set aside in the journal. Exit code 8 if
    something is left.
    """
    settings = read_settings(config, broker_url=broker_url)
    require_url(settings, "broker")
    where = _directory(settings, directory)
    found = run(_look(settings, where))
    for one in found:
        if one.owned and one.messages:
            note(f"{one.file.name}: its gateway is alive and drains its {one.messages} messages by itself")
    waiting = [one for one in found if not one.owned and (one.messages or one.trouble)]
    total = sum(one.messages or 0 for one in waiting)
    if dry_run:
        if as_json:
            emit_json({"published": 0, "set_aside": 0, "left": total})
        else:
            emit(f"{total} messages in {len(waiting)} journals would be published")
        return
    moved = left = aside = 0
    if waiting:
        moved, left, aside = run(_drain(settings, [one.file for one in waiting], total))
    if as_json:
        emit_json({"published": moved, "set_aside": aside, "left": left})
    else:
        emit(f"{moved} published, {aside} set aside, {left} left" if waiting else "nothing to do")
    if left or aside:
        raise CommandError(
            "not everything could be published; `forebay journal status` shows what is left",
            ExitCode.PARTLY_FAILED,
        )


def export(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files to read, damaged ones too; else all journals.")
    ] = None,
    directory: DirectoryOption = None,
    config: ConfigOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A new file, instead of stdout.")
    ] = None,
) -> None:
    """
    Write what journals hold as NDJSON, one message a line.

    Examples:
      forebay journal export > journal.ndjson
      forebay journal export /var/lib/forebay/journal/damaged/journal-1-20261126T101500.db

    Nothing is taken out. A body that is UTF-8 is in `body`, any other in `body_base64`: its exact
    bytes either way. What was set aside has the queue `<name>.dead`.
    """
    import orjson

    from forebay.journal.files import journal_files
    from forebay.journal.looking import records

    if not files:
        settings = read_settings(config)
        files = [file.path for file in journal_files(_directory(settings, directory))]
    count = 0
    with usable("name files that are there, and a new file to write"):
        for path in files:
            path.stat()
        if output is not None:
            output.touch(mode=0o600, exist_ok=False)
        with nullcontext(sys.stdout.buffer) if output is None else output.open("wb") as out:
            for path in files:
                for record in records(path):
                    out.write(orjson.dumps(record) + b"\n")
                    count += 1
            out.flush()
    note(f"{count} written" + (f" to {output}" if output else ""))


def _directory(settings: Settings, given: Path | None) -> Path:
    from forebay.errors import SettingsError

    directory = given or settings.gateway.journal
    if directory is None:
        raise SettingsError(
            "no journal is configured; name its directory with --directory DIR, or set gateway.journal"
            ' (journal = "/var/lib/forebay/journal" in [gateway], or FOREBAY_GATEWAY__JOURNAL=…)'
        )
    if given is not None and not given.is_dir():
        # A gateway makes the directory of the settings; one that is named by hand and not there is a slip.
        raise CommandError(f"there is no directory {given}; `gateway.journal` names it", ExitCode.NOT_FOUND)
    return directory


async def _look(settings: Settings, directory: Path) -> list[Status]:
    from forebay.journal.files import journal_files
    from forebay.journal.looking import look
    from forebay.wiring import journal_opener

    opener = journal_opener(settings, create=False)
    return [await look(file, opener) for file in journal_files(directory)]


def _row(one: Status) -> list[object]:
    return [
        one.file.name,
        "alive" if one.owned else "none",
        one.messages,
        None if one.bytes is None else size(one.bytes),
        duration(one.oldest_age),
        one.set_aside,
    ]


async def _check(
    settings: Settings, directory: Path, dry_run: bool
) -> list[tuple[JournalFile, dict[str, object]]]:
    from forebay.journal.files import journal_files
    from forebay.journal.journal import repair, trouble
    from forebay.wiring import journal_opener

    found: list[tuple[JournalFile, dict[str, object]]] = []
    for file in journal_files(directory):
        claim = file.claim()
        if claim is None:
            found.append((file, _found("in use")))
            continue
        try:
            finding = await asyncio.to_thread(partial(trouble, file, in_full=True))
            if finding is None:
                found.append((file, _found("sound")))
            elif dry_run:
                found.append((file, _found("damaged", finding)))
            else:
                repaired = await repair(claim, journal_opener(settings, create=True), finding)
                found.append((file, _found("repaired", finding, repaired)))
        finally:
            claim.release()
    return found


def _found(verdict: str, finding: str | None = None, repaired: Repaired | None = None) -> dict[str, object]:
    return {
        "verdict": verdict,
        "finding": finding,
        "damaged_file": str(repaired.set_aside) if repaired else None,
        "rescued": repaired.rescued if repaired else 0,
        "unreadable": repaired.unreadable if repaired else 0,
        "unplaced": repaired.unplaced if repaired else 0,
    }


def _said(found: dict[str, object]) -> str:
    match found["verdict"]:
        case "in use":
            return "in use by a gateway; it was checked when that started"
        case "repaired":
            return (
                f"was damaged ({found['finding']}); {found['rescued']} messages rescued,"
                f" {found['unreadable']} unreadable, {found['unplaced']} of no known queue;"
                f" the damaged file is {found['damaged_file']}"
            )
        case "damaged":
            return f"damaged: {found['finding']}"
        case _:
            return "sound"


async def _drain(settings: Settings, files: list[JournalFile], total: int) -> tuple[int, int, int]:
    from forebay.brokers.factory import open_broker
    from forebay.journal.draining import Drain
    from forebay.journal.journal import open_journal
    from forebay.wiring import journal_opener

    moved = left = aside = 0
    opener = journal_opener(settings, create=True)
    async with open_broker(settings.broker) as broker:
        with progress("draining", total) as bar:

            def count(more: int) -> None:
                nonlocal moved
                moved += more
                bar.advance(more)

            for file in files:
                claim = file.claim()
                if claim is None:
                    continue  # a gateway has adopted it meanwhile
                try:
                    async with open_journal(
                        claim, opener, max_bytes=NO_LIMIT, max_age=float("inf")
                    ) as journal:
                        before = journal.set_aside
                        for queue in journal.queues:
                            done = Drain(journal, queue, target=lambda _: broker, moved=count)
                            # Twice: a queue that was not there is declared the first time.
                            if not await done.run_once():
                                await done.run_once()
                        left += journal.messages
                        aside += journal.set_aside - before
                finally:
                    claim.release()
    return moved - aside, left, aside
